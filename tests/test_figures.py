"""The figures show what was measured, and their captions say it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import qsr
from qsr.cli import main
from qsr.models import zoo
from qsr.paper import figures, records
from qsr.paper.figures import (
    Budget,
    busiest_window,
    comparison,
    figure1,
    figure2,
    figure3,
    figure4,
    networks_here,
    phi_effect,
    small_networks,
)
from qsr.quantizer import phi_slope

LITTLE = Budget(full=2, quantised=1)


def diary(folder, steps=(10, 20, 30), tau=True):
    """A log of a run of two layers whose steps spread; all depths are trained from step 30 on."""
    lines = []
    for step in steps:
        weights = {f"blocks.{i}.conv1.weight_quantizer": {"step": i * step} for i in (1, 2)}
        taus = {"tau_min": -step, "tau_mean": 0.0, "tau_max": step} if tau else {}
        inputs = {f"blocks.{i}.conv1.input_quantizer": {"step": 100.0, **taus} for i in (1, 2)}
        losses = {"loss_2": 1.0, "loss": 1.0} | ({"loss_1": 1.0} if step >= 30 else {})
        lines += [{"step": step, **losses, "quantizers": weights | inputs}, {"step": step + 1}]
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with small networks, hardly trained."""
    folder = tmp_path_factory.mktemp("small")
    small_networks(folder, LITTLE)
    return folder


def untrained(bits=4, **changes):
    """A calibrated x4 network of one block."""
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(4, bits, blocks=1, features=4, **changes))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return net.eval()


@pytest.fixture
def model(tmp_path):
    """A packed x4 network of 4 bits."""
    qsr.save(tmp_path / "mine.qsr", qsr.pack(untrained()))
    return str(tmp_path / "mine.qsr")


@pytest.fixture
def runs(tmp_path):
    """What a comparison of baselines leaves: four methods at 2/2."""
    folder = tmp_path / "runs"
    for row, bits, quantizer in (
        ("dorefa-w2a2-seed0", 2, "dorefa"),
        ("cadyq-w2a4-seed0", (2, 4), "cadyq"),
        ("lsq-w2a2-seed0", 2, "lsq"),
        ("rlq-w2a2-seed0", 2, "rlq"),
        ("rlq-w2a2-seed1", 2, "rlq"),
    ):
        (folder / row).mkdir(parents=True)
        qsr.save(folder / row / "model.qsr", untrained(bits, quantizer=quantizer))
    return folder


# Figures 1 and 2 ----------------------------------------------------------------------------------


def test_figure_1_shows_the_spread_of_the_weights_steps(tmp_path):
    drawn = figure1(diary(tmp_path))
    assert drawn.numbers["standard_deviation"] == {10: 5.0, 20: 10.0, 30: 15.0}
    assert "2 weight quantizers" in drawn.caption and "15 at step 30" in drawn.caption
    (line,) = [x for x in drawn.figure.axes[1].lines if len(x.get_xdata()) == 3]
    assert line.get_ydata() == pytest.approx([5, 10, 15])


def test_figure_2_shows_the_range_of_tau(tmp_path):
    drawn = figure2(diary(tmp_path))
    assert drawn.numbers["range"] == {10: 20, 20: 40, 30: 60}
    assert "60.0 % of the median step size of inputs, 100.00" in drawn.caption


def test_the_step_from_which_all_depths_are_trained_is_marked(tmp_path):
    drawn = figure1(diary(tmp_path))
    dotted = [x for x in drawn.figure.axes[0].lines if x.get_linestyle() == ":"]
    assert [list(x.get_xdata()) for x in dotted] == [[20, 20]]
    assert figures._joint_from([{"step": 1, "loss_2": 1}]) is None


def test_of_a_long_run_twenty_checkpoints_are_shown_the_ends_among_them(tmp_path):
    chosen = figures.evolution(diary(tmp_path, range(10, 1010, 10)))
    steps = [line["step"] for line in chosen]
    assert len(steps) == 20 == len(set(steps)) and (steps[0], steps[-1]) == (10, 1000)


def test_without_a_diary_the_way_to_make_one_is_told(tmp_path):
    with pytest.raises(ValueError, match="qsr train .*--checkpoint-every"):
        figure1(tmp_path)
    with pytest.raises(ValueError, match="no tau"):
        figure2(diary(tmp_path, tau=False))


@pytest.mark.skipif(not records.RESULTS.exists(), reason="docs/results: only in a checkout")
def test_the_diary_that_is_committed_says_how_it_was_made_and_is_drawn():
    first = json.loads((figures.RUN / "log.jsonl").read_text().splitlines()[0])
    assert "qsr train" in first["about"] and "1500" in first["about"]
    spread = figure1().numbers["standard_deviation"]
    assert min(spread) == 150 and max(spread) == 1500
    grown = figure2().numbers["range"]
    assert grown[1500] > 2 * grown[150], "the range of tau grows, as in the paper's figure"
    assert spread[1500] > 2 * spread[600], "so does that of steps, once it has shrunk"
    assert spread[1500] < spread[150], "but it had been larger before"


# Figure 3 -----------------------------------------------------------------------------------------


def test_phi_scales_each_gradient_by_its_slope_at_the_weight(small):
    net = figures.small_network("QuantSR-C", 4, LITTLE, small)
    effect = phi_effect(net, torch.rand(1, 3, 12, 12), torch.rand(1, 3, 48, 48))
    there = effect.before.abs() > 1e-3
    ratio = effect.after[there] / effect.before[there]
    assert len(ratio) > 1000
    assert torch.allclose(ratio, phi_slope(effect.position[there]), atol=1e-4)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


def test_without_phi_the_gradients_stay_as_they_are(small):
    config = figures.small_network("QuantSR-C", 4, LITTLE, small).config
    net = qsr.QuantSR(qsr.quantsr_c(4, 4, blocks=1, features=8, sharpness=0.0))
    qsr.calibrate(net, torch.rand(1, 3, 12, 12))
    effect = phi_effect(net, torch.rand(1, 3, 12, 12), torch.rand(1, 3, 48, 48))
    assert torch.equal(effect.before, effect.after) and config.sharpness == 1.0


def test_figure_3_says_by_how_much_gradients_move(small):
    drawn = figure3(small, budget=LITTLE)
    moved = drawn.numbers["relative_change"]
    assert 0.02 < moved < 0.15 and f"{100 * moved:.1f} %" in drawn.caption


# Figure 4 -----------------------------------------------------------------------------------------


def test_all_small_networks_of_a_family_start_from_one_and_are_kept(small, monkeypatch):
    names = {path.name for path in small.glob("*.qsr")}
    assert names == {
        *(f"small-{m}-{b}.qsr" for m in ("dorefa", "quantsr-c", "quantsr-t") for b in (2, 4)),
        "small-srresnet-32.qsr",
        "small-swinir_s-32.qsr",
    }
    monkeypatch.setattr(figures, "_train", None)  # would raise
    drawn = figure4(small_networks(small, LITTLE))
    assert drawn.numbers["full precision"]["correlation"] == pytest.approx(1)
    two, four = (drawn.numbers[f"DoReFa, {bits} bits"]["zero_weights"] for bits in (2, 4))
    assert four < 0.2 < 0.4 < two, "a grid up to the largest weight leaves many others at 0"
    assert len(drawn.numbers) == 7 and len(drawn.figure.axes) == 8
    with pytest.raises(TypeError):
        figures.small_network("DoReFa", 4, Budget(2, 2), small)  # another budget: train again


def test_a_small_network_that_there_is_none_of_is_refused():
    for method, bits in (("PAMS", 4), ("DoReFa", None), ("SRResNet", 4)):
        with pytest.raises(ValueError, match="`method` is"):
            figures.small_network(method, bits)


def test_the_picture_of_figure_4_is_not_trained_on():
    trained = qsr.Patches("embedded", 4, patch=24, batch=1).hr
    shape = figures.picture(figures.HELD_OUT).hr.shape[1:]
    seen = [hr for hr in trained if hr.shape == shape]
    held = (figures.picture(figures.HELD_OUT).hr[0] * 255).round().byte()
    assert not any(torch.equal(hr, held) for hr in seen)
    with pytest.raises(ValueError, match="no picture is called 'lenna'"):
        figures.picture("lenna")


# Figures 5 to 8 -----------------------------------------------------------------------------------


def test_a_comparison_shows_who_is_here_in_the_paper_s_order_and_names_who_is_missing(model):
    drawn = comparison(5, [model, "quantsr-c-x2-w4a4"])  # the second has another scale
    assert set(drawn.numbers) == {"bicubic", "QuantSR-C"}
    assert "No model here of DoReFa, PAMS, CADyQ, QuantSR-T, full precision." in drawn.caption
    assert "QuantSR-C: mine, 1 block." in drawn.caption
    assert len(drawn.figure.axes) == 3
    words = [text.get_text() for text in drawn.figure.texts[::2]]
    assert words == ["bicubic", "QuantSR-C", "original"]
    pair = figures.picture("astronaut")
    assert drawn.numbers["bicubic"] == qsr.psnr_y(figures.bicubic(pair.lr, 4), pair.hr, 4).item()


def test_all_panels_show_the_same_crop_pixel_for_pixel(model):
    drawn = comparison(5, [model])
    height, width = figures.WINDOW
    shown = [ax.images[0].get_array() for ax in drawn.figure.axes if ax.images]
    assert {image.shape for image in shown} == {(height, width, 3)}
    sizes = {
        tuple(round(v, 6) for v in ax.get_window_extent().size) for ax in drawn.figure.axes
    }  # fmt: skip
    assert sizes == {(3.0 * width, 3.0 * height)}, "three pixels of the figure for each"
    hr = figures.picture("astronaut").hr
    row, column = map(int, drawn.caption.partition("(row ")[2].partition(")")[0].split(", column "))
    part = (hr[0, :, row : row + height, column : column + width] * 255).round().byte()
    assert np.array_equal(shown[-1], part.permute(1, 2, 0).numpy())


def test_a_crop_is_written_without_resampling(tmp_path, model):
    """Each pixel of the crop is a square of 3 x 3 equal pixels of the file."""
    drawn = comparison(5, [model], "light")
    written = np.asarray(Image.open(figures.write(drawn, tmp_path / "a.png")).convert("RGB"))
    first = drawn.figure.axes[0].images[0].get_array().repeat(3, 0).repeat(3, 1)
    height, width = first.shape[:2]
    assert np.array_equal(written[24 : 24 + height, 14 : 14 + width], first)


def test_the_crop_is_the_window_with_the_largest_variance():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, 3, 12, 15, generator=generator) for _ in range(3)]
    top, left, height, width = busiest_window(pictures, (4, 5))
    assert (height, width) == (4, 5)
    luma = torch.stack([qsr.images.tensors.rgb_to_y(x)[0, 0] for x in pictures])
    variance = luma.double().var(0, correction=0)
    sums = {
        (y, x): variance[y : y + 4, x : x + 5].sum().item() for y in range(9) for x in range(11)
    }
    assert max(sums, key=sums.get) == (top, left)


def test_runs_of_baselines_come_before_the_zoo_and_only_seed_0(runs):
    shown = networks_here(2, runs=runs)
    assert shown["DoReFa"].source == "run dorefa-w2a2-seed0, 1 block"
    assert shown["CADyQ"].source == "run cadyq-w2a4-seed0, 1 block"
    assert shown["QuantSR-C"].source == "run rlq-w2a2-seed0, 1 block"
    assert shown["full precision"].source.startswith("srresnet-x4 of the package")
    assert "LSQ" not in shown  # the paper's figures have none
    assert "DoReFa" not in networks_here(4, runs=runs)
    assert {"DoReFa", "CADyQ"} <= set(comparison(7, runs=runs).numbers)


def test_a_comparison_without_a_model_says_how_to_make_one(model):
    with pytest.raises(ValueError, match="2-bit networks at x4.*quantsr-c-x4-w2a2"):
        comparison(7, [model])
    with pytest.raises(ValueError, match="figure 4 shows no crops"):
        comparison(4)


def test_the_models_that_come_with_qsr_beat_bicubic_in_every_comparison(tmp_path):
    drawn_at_all = 0
    for number, (bits, _) in figures.SCENES.items():
        if any(name.endswith(f"-x4-w{bits}a{bits}") for name in zoo.names()):
            scores = comparison(number, runs=tmp_path).numbers
            assert min(scores, key=scores.get) == "bicubic"
            drawn_at_all += 1
    assert drawn_at_all


def test_figure_4_shows_what_is_here_and_keeps_the_place_of_what_is_not(tmp_path):
    drawn = figure4({bits: networks_here(bits, runs=tmp_path) for bits in (4, 2)})
    assert len(drawn.figure.axes) == 8
    free = [ax.get_title() for ax in drawn.figure.axes if ax.texts]
    assert {"DoReFa, 4 bits\n", "DoReFa, 2 bits\n"} <= set(free)
    assert drawn.numbers["QuantSR-C, 4 bits"]["correlation"] > 0.5
    assert "quantsr-c-x4-w4a4 of the package, 32 blocks" in drawn.caption
    with pytest.raises(ValueError, match="no network in full precision"):
        figure4({4: {}})


# Files and the command ----------------------------------------------------------------------------


def corner(path):
    return Image.open(path).convert("RGBA").getpixel((0, 0))


def test_figures_are_written_for_light_and_dark_pages_and_transparent(tmp_path, model):
    run = diary(tmp_path / "run")
    expected = {"light": (255, 255, 255, 255), "dark": (13, 17, 23, 255)}
    for page in ("light", "dark", None):
        for i, drawn in enumerate((figure1(run, page), comparison(5, [model], page))):
            path = figures.write(drawn, tmp_path / "out" / f"{page}{i}.png")
            pixel = corner(path)
            assert pixel == expected[page] if page else pixel[3] == 0
    with pytest.raises(ValueError, match="written as .png"):
        figures.write(drawn, tmp_path / "a.jpg")


def test_the_command_writes_a_figure_and_prints_its_caption(tmp_path, capsys):
    run = diary(tmp_path / "run")
    out = ["--out", str(tmp_path / "out")]
    assert main(["reproduce", "figure2", "--run", str(run), *out, "--dark"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[-8:] for line in printed[:2]] == ["ure2.png", "dark.png"]
    assert np.asarray(Image.open(printed[1])).std() > 0 and "tau of the 2" in printed[2]
    assert main(["reproduce", "figure1", "--run", str(run), *out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"files", "caption", "alt", "numbers"}
    assert main(["reproduce", "figure1", "--run", str(run), *out, "--transparent"]) == 0
    assert corner(capsys.readouterr().out.splitlines()[0])[3] == 0
    assert main(["reproduce", "figure1", "--run", str(tmp_path), *out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
