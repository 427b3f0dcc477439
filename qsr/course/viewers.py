"""What notebooks show: figures for light and dark pages, and sliders that need no kernel.

    plt.rcParams.update(STYLE)                       once, at the top of a notebook
    figure(fig, alt="Loss falls ...")                a matplotlib figure with a text for those who
                                                     do not see it
    Compare(before, after)                           two pictures under a slider
    Frames([(stop, picture, caption), ...], ...)     one picture for each stop of a slider
    live(draw, "Loss ...", bits=IntSlider())         controls over a picture, where a kernel runs
    own_picture(show)                                a button for a picture of the reader's

All but the last two are one piece of HTML without ids, scripts or anything fetched: the same in a
notebook, on a static site and without a network. The sliders are moved by mouse, finger or arrow
keys.

Where handlers are removed, in a notebook that is not trusted, all pictures are seen one below the
other. So pictures are hidden, or laid upon each other, only by what JupyterLab removes together
with the handlers: `hidden=""`, `clip-path`, `grid-area`, `calc()`, and not `display` or `position`.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image
from torch import Tensor

from ..images.picture import Picture, from_array
from ..images.reading import read
from ..images.tensors import to_uint8
from ..images.writing import to_pil
from ..system.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AnyPicture = Tensor | np.ndarray | Image.Image

# Style --------------------------------------------------------------------------------------------

# Bright, the scheme of Paul Tol for colour-blind readers (sronpersonalpages.nl/~pault). The first
# three stand out from white and from dark pages by 3 : 1 or more; give the others a wide line.
PALETTE = {
    "blue": "#4477AA",
    "red": "#EE6677",
    "green": "#228833",
    "purple": "#AA3377",
    "yellow": "#CCBB44",
    "cyan": "#66CCEE",
    "grey": "#BBBBBB",
}

# The grey that has the same contrast, 4 : 1, on white and on the dark pages of the site (#1e2129);
# a lighter or a darker one gains on one of them what it loses on the other.
INK = "#7f7f7f"

STYLE: dict[str, Any] = {
    "figure.facecolor": "none",  # transparent: the page shows through
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.3,
    "axes.prop_cycle": f"cycler('color', {list(PALETTE.values())})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
    "image.interpolation": "nearest",  # a pixel is a square
}


class Colours(NamedTuple):
    """The colours of a page: behind, of words and lines, and of words that matter less."""

    paper: str
    ink: str
    faint: str


LIGHT, DARK = Colours("white", "black", "#59636e"), Colours("#0d1117", "#e6edf3", "#9198a1")

# Figures ------------------------------------------------------------------------------------------


class Shown:
    """A picture that a notebook shows, with its text alternative."""

    def __init__(self, page: str, alt: str) -> None:
        self.page, self.alt = page, alt

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_html_(self) -> str:
        return self.page


def figure(fig: Figure, alt: str, dpi: float | None = None) -> Shown:
    """A matplotlib figure, to be the last line of a cell: a PNG with a text alternative.

    alt: what the figure shows, in one sentence, for those who do not see it. dpi: pixels of the
    page per inch, None for the figure's own. Closes the figure, which would be shown twice else.
    Raises ValueError for an empty alt.
    """
    _check_alt(alt)
    return Shown(_image(fig, alt, dpi), alt)


def _image(drawn: AnyPicture | Figure, alt: str, dpi: float | None = None) -> str:
    """A figure, which is closed, or a picture as an element of a page, at its own size."""
    if hasattr(drawn, "savefig"):
        address, width = _png(cast("Figure", drawn), dpi)
    else:
        picture = _pil(drawn)
        address, width = _address(picture, "png"), picture.width
    style = "max-width:100%; height:auto"
    return f'<img alt="{html.escape(alt)}" width="{width}" style="{style}" src="{address}"/>'


def _png(fig: Figure, dpi: float | None = None) -> tuple[str, int]:
    """The figure as the address of a PNG, and its width in pixels. Closes the figure."""
    image = Image.open(_drawn(fig, dpi))
    return _address(image, "png"), image.width


def _drawn(fig: Figure, dpi: float | None = None) -> io.BytesIO:
    """The figure as a PNG. Closes the figure."""
    from matplotlib import pyplot  # here, so that `import qsr` stays fast

    encoded = _encoded(fig, dpi)
    pyplot.close(fig)
    return encoded


def _encoded(fig: Figure, dpi: float | None = None, **options) -> io.BytesIO:
    """The figure as a PNG, without the version of matplotlib."""
    encoded = io.BytesIO()
    fig.savefig(encoded, format="png", dpi=dpi or "figure", metadata={"Software": None}, **options)
    return encoded


def write_figure(fig: Figure, path: str | os.PathLike) -> Path:
    """Write a matplotlib figure as PNG in its own colours, whole or not at all; the path.

    Raises ValueError for another suffix, or a place that can't be written.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path} ends in {path.suffix!r}; figures are written as .png.")
    encoded = _encoded(fig, facecolor=fig.get_facecolor())
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.getbuffer())
    return path


def _address(image: Image.Image, quality: int | str) -> str:
    """The picture itself as an address: a JPEG of this quality, or "png"."""
    encoded = io.BytesIO()
    if quality == "png":
        image.save(encoded, format="PNG", optimize=True)
    else:
        image.convert("RGB").save(encoded, "JPEG", quality=quality, subsampling=0)
    kind = "png" if quality == "png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _check_alt(alt: str) -> None:
    if not alt.strip():
        raise ValueError("`alt` is empty; say in one sentence what the picture shows.")


# Two pictures under a slider ----------------------------------------------------------------------


class Compare:
    """Two pictures on top of each other with a slider between them, for a notebook or a web page.

    before, after: float RGB tensors [1, 3, H, W] or [3, H, W] in [0, 1], uint8 or float arrays
    [H, W, C], or PIL images. The smaller is shown in large square pixels, so `before` may be what a
    network was given. labels: what the two are. width: in CSS pixels, None for the picture's own.
    quality: of the JPEG that goes into the page, or "png". alt: what the pictures show, for those
    who do not see them; each picture's text alternative is its label and this.

    Drag on the picture, or use the slider with the arrow keys.
    Raises ValueError if one size is no multiple of the other, TypeError for other kinds.
    """

    def __init__(
        self,
        before: AnyPicture,
        after: AnyPicture,
        labels: tuple[str, str] = ("before", "after"),
        width: int | None = None,
        quality: int | str = 92,
        alt: str = "",
    ) -> None:
        first, second = _pil(before), _pil(after)
        size = max(first.size, second.size)
        self.before, self.after = _blown_up(first, size), _blown_up(second, size)
        self.labels, self.width, self.quality = labels, width or size[0], quality
        self.alt = f": {alt}" if alt else ""

    def __repr__(self) -> str:
        return f"Compare({self.labels[0]!r} | {self.labels[1]!r}, {self.before.size})"

    def _repr_html_(self) -> str:
        first, second = map(html.escape, self.labels)
        alt = html.escape(self.alt)
        show = "this.closest('div').style.setProperty('--at', this.value + '%')"
        drag = (
            "if (event.buttons) { const slider = this.nextElementSibling.children[1];"
            " slider.value = 100 * event.offsetX / this.clientWidth; slider.oninput(); }"
        )
        fill = "display:block; width:100%; margin:0; grid-area:1/1"
        # data-lm-suppress-shortcuts: JupyterLab takes the arrow keys for itself without it.
        return f"""
<div style="--at:50%; max-width:{self.width}px; font-family:sans-serif; font-size:13px">
<span style="display:grid; position:relative; touch-action:pan-y; cursor:ew-resize"
 onpointerdown="this.onpointermove(event)" onpointermove="{drag}">
<img draggable="false" alt="{first}{alt}" style="{fill}"
 src="{_address(self.before, self.quality)}"/>
<img draggable="false" alt="{second}{alt}" style="{fill}; clip-path:inset(0 0 0 var(--at))"
 src="{_address(self.after, self.quality)}"/>
<i style="position:absolute; top:0; bottom:0; left:var(--at); width:calc(2px);
 margin-left:-1px; background:#fff; box-shadow:0 0 3px #000; pointer-events:none"></i>
</span>
<label style="display:flex; gap:8px; align-items:center; margin-top:4px"><span>{first}</span>
<input type="range" min="0" max="100" value="50" style="flex:1" data-lm-suppress-shortcuts="true"
 aria-label="move right to see more of: {first}; left: {second}" oninput="{show}"/>
<span>{second}</span></label>
</div>"""


# A picture for each stop of a slider --------------------------------------------------------------


_NUMBER = re.compile(r"[-+]?[\d.]+")


class Frames:
    """A slider whose stops were computed before: one picture is seen, that of the stop.

    stops: (text, picture, caption) each; the text names the stop ("2 bits"; under the picture a
    mere number has the label before it), the picture is one that `Compare` takes or a matplotlib
    figure (then it is closed), the caption may be empty. Smaller pictures are shown in large square
    pixels; give all figures one size and the same limits of their axes. label: what the slider
    changes. alt: what the pictures show, for those who do not see them; the text of the stop is
    added. width: in CSS pixels, None for the largest picture's own. quality: of the JPEG of
    pictures, or "png"; figures are PNG.

    Raises ValueError if there are no stops, alt is empty, or sizes do not fit; TypeError for other
    kinds of pictures.
    """

    def __init__(
        self,
        stops: Sequence[tuple[str, AnyPicture | Figure, str]],
        label: str,
        alt: str,
        width: int | None = None,
        quality: int | str = 92,
    ) -> None:
        if not stops:
            raise ValueError("`stops` is empty; a slider needs at least one picture.")
        _check_alt(alt)
        pictures = [None if hasattr(p, "savefig") else _pil(p) for _, p, _ in stops]
        size = max((p.size for p in pictures if p), default=(0, 0))
        self.frames, widths = [], [size[0]]
        for (text, drawn, caption), picture in zip(stops, pictures, strict=True):
            if picture:
                address = _address(_blown_up(picture, size), quality)
            else:
                address, drawn_width = _png(cast("Figure", drawn))  # it has savefig
                widths.append(drawn_width)
            self.frames.append((str(text), address, caption))
        self.label, self.alt, self.width = label, alt, width or max(widths)

    def __repr__(self) -> str:
        return f"Frames({self.label}: {', '.join(text for text, _, _ in self.frames)})"

    def _repr_html_(self) -> str:
        label = html.escape(self.label)
        show = (
            "const stops = this.closest('div').querySelectorAll('section');"
            " stops.forEach((s, i) => { s.hidden = i != this.value; });"
            " this.setAttribute('aria-valuetext', stops[this.value].dataset.stop);"
        )
        sections = []
        for i, (text, address, caption) in enumerate(self.frames):
            stop, hidden = html.escape(text), ' hidden=""' if i else ""
            named = f"{label} {stop}" if _NUMBER.fullmatch(text) else stop
            told = f": {html.escape(caption)}" if caption else ""
            sections.append(
                f'<section data-stop="{stop}"{hidden}>\n'
                f'<img alt="{html.escape(self.alt)}; {label}: {stop}"'
                ' style="display:block; width:100%; margin:0"'
                f' src="{address}"/>\n<p style="margin:4px 0"><b>{named}</b>{told}</p></section>'
            )
        joined = "\n".join(sections)
        # data-lm-suppress-shortcuts: JupyterLab takes the arrow keys for itself without it.
        return f"""
<div style="max-width:{self.width}px; font-family:sans-serif; font-size:13px">
<label style="display:flex; gap:8px; align-items:center; margin-bottom:4px"><span>{label}</span>
<input type="range" min="0" max="{len(sections) - 1}" value="0" style="flex:1"
 data-lm-suppress-shortcuts="true" aria-label="{label}"
 aria-valuetext="{html.escape(self.frames[0][0])}" oninput="{show}"/></label>
{joined}
</div>"""


# Where a kernel runs ------------------------------------------------------------------------------


def live(draw: Callable[..., Any], alt: str, **controls: Any) -> object:
    """Controls over what draw(**their values) gives, drawn anew when one of them moves.

    draw: gives a figure or a picture, or one of them and a caption; it is shown at its own size.
    alt: what it shows, in one sentence, for those who do not see it. controls: widgets of
    ipywidgets, by the names of draw's arguments. Returns a widget; it needs a kernel, so give the
    cell a twin without one for pages that have none. Raises ValueError for an empty alt.
    """
    import ipywidgets  # here, because only notebooks have it

    _check_alt(alt)
    view = ipywidgets.HTML()

    def show(_: object = None) -> None:
        drawn = draw(**{name: control.value for name, control in controls.items()})
        picture, caption = drawn if isinstance(drawn, tuple) else (drawn, "")
        told = f'<p style="margin:4px 0">{html.escape(caption)}</p>' if caption else ""
        view.value = _image(picture, alt) + told

    for control in controls.values():
        control.observe(show, "value")
    show()
    return ipywidgets.VBox([*controls.values(), view])


def own_picture(show: Callable[[Image.Image], Any], largest: int = 256) -> object:
    """A button that takes a picture from the reader's disk or phone, and below it show(picture).

    show: gets the picture upright, as its camera noted, RGB, its longer side at most `largest`
    pixels (a larger one is made smaller, and a line says so); what it returns is displayed. A file
    that is no picture is told in one line. Returns a widget; it needs a kernel and a browser, and
    without them does nothing.
    """
    import ipywidgets  # here, because only notebooks have it
    from IPython.display import display

    button = ipywidgets.FileUpload(accept="image/*", description="your picture")
    below = ipywidgets.Output()

    def taken(_: object) -> None:
        below.clear_output()
        with below:
            for file in button.value:
                try:
                    sent = read(_Uploaded(file["name"], file["content"]))
                    picture, told = _bounded(sent, largest)
                    print(f"{file['name']}: {told}")
                    display(show(picture))
                except ValueError as error:
                    print(f"not shown: {error}")

    button.observe(taken, "value")
    return ipywidgets.VBox([button, below])


@dataclass(frozen=True)
class _Uploaded:
    """What a browser sent, to be read as a file."""

    name: str
    content: bytes | memoryview

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str) -> IO[bytes]:
        return io.BytesIO(self.content)


def _bounded(picture: Picture, largest: int) -> tuple[Image.Image, str]:
    """A picture in RGB whose longer side is at most `largest` pixels, and a word on its size."""
    shown = _pil(picture.visible_rgb)
    size = f"{shown.width} × {shown.height} pixels"
    if max(shown.size) <= largest:
        return shown, size
    shown.thumbnail((largest, largest), Image.Resampling.BICUBIC)
    smaller = f"{size}, made {shown.width} × {shown.height} here"
    return shown, f"{smaller}; `qsr upscale` enlarges it whole"


# Kinds of pictures --------------------------------------------------------------------------------


def _pil(image: Tensor | np.ndarray | Image.Image) -> Image.Image:
    """An 8-bit PIL image."""
    if isinstance(image, Tensor):
        pixels = image if image.ndim == 4 else image[None]
        return to_pil(from_array(to_uint8(pixels.detach())[0].permute(1, 2, 0).cpu().numpy()))
    if isinstance(image, np.ndarray):
        return to_pil(from_array(image))
    if isinstance(image, Image.Image):
        return image
    raise TypeError(
        f"a picture to compare is a {type(image).__name__}; pass a tensor, an array or a PIL image."
    )


def _blown_up(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size`, each pixel a square."""
    factor = size[0] // image.width
    if (factor * image.width, factor * image.height) != size:
        raise ValueError(
            f"the pictures are {image.width} x {image.height} and {size[0]} x {size[1]} pixels; "
            "one must be a whole multiple of the other. Cut the larger one."
        )
    return image if factor == 1 else image.resize(size, Image.Resampling.NEAREST)
