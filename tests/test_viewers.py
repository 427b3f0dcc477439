"""Figures and sliders are whole, can be read aloud, and are readable on light and dark pages."""

import base64
import io
import re
from datetime import datetime
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from qsr.course import viz
from qsr.course.viewers import INK, PALETTE, STYLE, Compare, Frames, figure
from qsr.images.tensors import to_uint8

WHITE, SLATE, NIGHT = "#ffffff", "#1e2129", "#111111"  # pages: light; dark site; dark JupyterLab


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2, from 0 (black) to 1 (white)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast of WCAG 2, from 1 to 21."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", WHITE) == pytest.approx(21)
    assert contrast("#777777", WHITE) == pytest.approx(4.478, abs=1e-3)


def test_no_grey_is_readable_on_white_and_dark_pages_better_than_the_ink():
    worst = [
        min(contrast(f"#{g:02x}{g:02x}{g:02x}", p) for p in (WHITE, SLATE)) for g in range(256)
    ]
    best = worst.index(max(worst))
    assert f"#{best:02x}{best:02x}{best:02x}" == INK
    assert 4.0 <= max(worst) < 4.5  # 4.5 on both is not to be had
    assert contrast(INK, NIGHT) > 4.5


def test_the_first_colours_of_the_palette_stand_out_on_all_pages():
    for name in ("blue", "red", "green"):
        assert min(contrast(PALETTE[name], page) for page in (WHITE, SLATE, NIGHT)) > 3, name
    assert list(PALETTE)[:3] == ["blue", "red", "green"]


def picture_of(size=(6, 8), seed=0):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def array_of(picture: torch.Tensor) -> np.ndarray:
    return to_uint8(picture[0]).permute(1, 2, 0).numpy()


def plot(values=(1, 3, 2)):
    with mpl.rc_context(STYLE):
        fig, axes = plt.subplots(figsize=(3, 2))
        axes.plot(values, label="loss")
        axes.set_xlabel("step")
        axes.legend()
    return fig


def pictures_in(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def parsed(shown) -> ElementTree.Element:
    """The HTML, which is also well-formed XML; complains of ids and of anything fetched."""
    page = shown._repr_html_()
    assert not re.search(r"https?:|<script|\bid=|\burl\(", page)
    root = ElementTree.fromstring(page)
    for image in root.iter("img"):
        assert image.get("alt") and image.get("src").startswith("data:image/")
    return root


def test_a_figure_has_a_text_alternative_and_is_not_shown_twice():
    fig = plot()
    assert plt.get_fignums()
    shown = figure(fig, 'Loss & <steps> "fall"', dpi=72)
    assert not plt.get_fignums()
    image = parsed(shown)
    assert image.get("alt") == 'Loss & <steps> "fall"'
    assert image.get("width") == "216"
    assert "max-width:100%" in image.get("style")
    assert repr(shown) == 'Figure: Loss & <steps> "fall"'


def test_a_figure_is_transparent_and_its_ink_is_that_of_the_style():
    (png,) = pictures_in(figure(plot(), "loss")._repr_html_())
    assert png.size == (240, 160)  # 3 x 2 inches at the 80 dpi of the style
    pixels = np.array(png.convert("RGBA"))
    assert pixels[0, 0, 3] == 0
    opaque = {tuple(p) for p in pixels[pixels[..., 3] == 255][:, :3].tolist()}
    for colour in (INK, PALETTE["blue"]):
        assert tuple(bytes.fromhex(colour[1:])) in opaque
    dark_text = [c for c in opaque if max(c) < 100]
    assert not dark_text, "black would vanish on a dark page"


def test_a_figure_is_the_same_html_every_time():
    assert figure(plot(), "loss")._repr_html_() == figure(plot(), "loss")._repr_html_()


def test_a_figure_without_a_text_alternative_is_refused():
    with pytest.raises(ValueError, match="`alt` is empty"):
        figure(plot(), " ")
    plt.close()


def frames(**options):
    stops = [(f"{b} bits", picture_of(seed=b), f"{2**b} values") for b in (2, 4, 8)]
    return Frames(stops, **{"label": "bits <&>", "alt": "an eye", **options})


def test_frames_show_one_picture_and_hold_all_with_their_captions():
    shown = frames(quality="png")
    root, page = parsed(shown), shown._repr_html_()
    sections = root.findall("section")
    assert [s.get("hidden") for s in sections] == [None, "", ""]
    assert [s.find("img").get("alt") for s in sections] == [
        f"an eye; bits <&>: {b} bits" for b in (2, 4, 8)
    ]
    captions = ["".join(s.find("p").itertext()) for s in sections]
    assert captions == ["2 bits: 4 values", "4 bits: 16 values", "8 bits: 256 values"]
    for bits, image in zip((2, 4, 8), pictures_in(page), strict=True):
        assert (np.array(image) == array_of(picture_of(seed=bits))).all()


def test_frames_have_a_slider_for_keys_and_readers():
    slider = parsed(frames()).find("label/input")
    assert (slider.get("type"), slider.get("min"), slider.get("max")) == ("range", "0", "2")
    assert slider.get("aria-label") == "bits <&>"
    assert slider.get("aria-valuetext") == "2 bits"
    assert slider.get("data-lm-suppress-shortcuts") == "true"  # or JupyterLab takes the arrow keys


def test_frames_take_figures_and_pictures_of_other_sizes():
    stops = [("loss", plot(), ""), ("small", picture_of((3, 4)), ""), ("large", picture_of(), "")]
    shown = Frames(stops, "view", "a test")
    assert not plt.get_fignums()
    assert [p.size for p in pictures_in(shown._repr_html_())] == [(240, 160), (8, 6), (8, 6)]
    assert shown.width == 240
    assert "max-width:99px" in Frames(stops[1:], "view", "a test", width=99)._repr_html_()
    assert repr(shown) == "Frames(view: loss, small, large)"


def test_a_stop_that_is_a_mere_number_is_told_with_the_label():
    page = Frames([("2", picture_of((4, 5)), ""), ("2 bits", picture_of((4, 5)), "")], "step", "x")
    assert re.findall("<b>(.*?)</b>", page._repr_html_()) == ["step 2", "2 bits"]


def test_frames_refuse_what_they_cannot_show():
    with pytest.raises(ValueError, match="`stops` is empty"):
        Frames([], "bits", "an eye")
    with pytest.raises(ValueError, match="`alt` is empty"):
        frames(alt="")
    with pytest.raises(ValueError, match="whole multiple"):
        Frames([("a", picture_of((4, 5)), ""), ("b", picture_of((8, 8)), "")], "x", "y")
    with pytest.raises(TypeError, match="str"):
        Frames([("a", "photo.png", "")], "x", "y")


# What JupyterLab 4.6 leaves of a style in a notebook that is not trusted; there sliders are dead.
KEPT = re.compile(r"display:none|visibility:|opacity:|height:0|position:absolute|margin-\w+:-\d+%")


@pytest.mark.parametrize("shown", [frames(), Compare(picture_of(), picture_of())])
def test_no_picture_is_covered_where_sliders_are_dead(shown):
    for element in parsed(shown).iter():
        if element.tag != "i":  # the line of Compare, which has no width then
            assert not KEPT.search(element.get("style", ""))


def test_a_live_figure_is_drawn_anew_when_a_control_moves():
    widgets = pytest.importorskip("ipywidgets")
    seen = []

    def draw(bits):
        seen.append(bits)
        return plt.subplots(figsize=(1, 1))[0]

    slider = widgets.IntSlider(2, 2, 8)
    box = viz.live(draw, "a <figure>", bits=slider)
    slider.value = 5
    assert seen == [2, 5] and not plt.get_fignums()
    assert box.children[0] is slider
    image = ElementTree.fromstring(box.children[1].value)
    assert (image.get("alt"), image.get("width")) == ("a <figure>", "100")
    assert pictures_in(box.children[1].value)[0].size == (100, 100)


def test_a_live_picture_is_shown_at_its_own_size_with_its_caption():
    widgets = pytest.importorskip("ipywidgets")
    size = widgets.IntSlider(8, 4, 16)
    box = viz.live(lambda size: (picture_of((4, size)), f"{size} < 99"), "an eye", size=size)
    size.value = 12
    page = ElementTree.fromstring(f"<div>{box.children[1].value}</div>")
    assert page.find("img").get("width") == "12" and page.find("p").text == "12 < 99"
    with pytest.raises(ValueError, match="`alt` is empty"):
        viz.live(lambda size: picture_of(), "", size=size)


def sent(image: Image.Image, name="mine.jpg", **options) -> dict:
    """A file as a browser sends it to a FileUpload."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", **options)
    about = {"name": name, "type": "image/jpeg", "size": encoded.tell()}
    about["last_modified"] = datetime(2026, 11, 28)
    return {**about, "content": memoryview(encoded.getvalue())}


def test_a_picture_from_a_phone_is_shown_upright_and_small_with_a_word_on_it(capsys):
    pytest.importorskip("ipywidgets")
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright
    seen = []
    button, _ = viz.own_picture(seen.append, largest=64).children
    button.value = (sent(Image.new("RGB", (200, 100), "teal"), exif=turned),)
    assert seen[0].size == (32, 64) and seen[0].mode == "RGB"
    button.value = (sent(Image.new("L", (40, 30)), "grey.jpg"),)
    assert seen[1].size == (40, 30) and seen[1].mode == "RGB"
    button.value = ({**sent(Image.new("L", (9, 9)), "no.jpg"), "content": memoryview(b"text")},)
    assert len(seen) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if ":" in line]
    small = "made 32 × 64 here; `qsr upscale` enlarges it whole"
    assert lines[0] == f"mine.jpg: 100 × 200 pixels, {small}"
    assert lines[1] == "grey.jpg: 40 × 30 pixels"
    assert lines[2].startswith("not shown: no.jpg ") and len(lines) == 3


def test_viz_has_the_viewers_too():
    assert viz.Frames is Frames and viz.Compare is Compare and viz.figure is figure
    assert viz.STYLE is STYLE and viz.PALETTE is PALETTE


def test_a_slider_holds_both_pictures_and_fetches_nothing():
    before, after = torch.rand(1, 3, 6, 8), torch.rand(1, 3, 12, 16)
    page = Compare(before, after, quality="png")._repr_html_()
    lower, upper = pictures_in(page)
    assert (np.array(upper) == array_of(after)).all()
    squares = before[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (np.array(lower) == to_uint8(squares).permute(1, 2, 0).numpy()).all()
    parsed(Compare(before, after))


def test_a_slider_is_the_same_html_every_time_and_fits_a_notebook():
    pair = torch.rand(2, 1, 3, 64, 64)
    page = Compare(*pair)._repr_html_()
    assert page == Compare(*pair)._repr_html_()
    assert len(page) < len(Compare(*pair, quality="png")._repr_html_())


def test_a_slider_can_be_read_aloud_and_moved_by_keys():
    page = Compare(torch.rand(3, 4, 4), torch.rand(3, 4, 4), ("small & <old>", "new"))._repr_html_()
    assert '<input type="range"' in page
    assert 'data-lm-suppress-shortcuts="true"' in page  # or JupyterLab takes the arrow keys
    assert 'aria-label="move right to see more of: small &amp; &lt;old&gt;; left: new"' in page
    assert 'alt="new"' in page and 'alt="small &amp; &lt;old&gt;"' in page
    assert "<old>" not in page


def test_a_slider_takes_tensors_arrays_and_pil_images_alike():
    x = to_uint8(torch.rand(3, 5, 7))
    array = x.permute(1, 2, 0).numpy()
    pages = {
        Compare(picture, picture, quality="png")._repr_html_()
        for picture in (x / 255, x[None] / 255, array, Image.fromarray(array))
    }
    assert len(pages) == 1


def test_a_slider_refuses_sizes_that_do_not_fit_and_other_kinds():
    with pytest.raises(ValueError, match="5 x 4 and 8 x 8 pixels.*whole multiple"):
        Compare(torch.rand(3, 4, 5), torch.rand(3, 8, 8))
    with pytest.raises(TypeError, match="str"):
        Compare("photo.png", torch.rand(3, 8, 8))


def test_the_pictures_of_a_slider_say_what_they_show():
    shown = Compare(picture_of(), picture_of(), ("small", "large"), alt="an <eye>")
    alts = [image.get("alt") for image in parsed(shown).iter("img")]
    assert alts == ["small: an <eye>", "large: an <eye>"]
