"""The figures of QuantSR's supplement, drawn again from this library's own networks.

    figure1(), figure2()    how step sizes and tau spread while a network trains, from a run's diary
    figure3()               what phi does to the gradients of one backward pass
    figure4()               features of DoReFa and QuantSR at 4 and 2 bits
    figure5() .. figure8()  crops side by side, at 4 bits (5, 6) and 2 bits (7, 8)

The paper's figures show its own networks on pictures of Manga109 and Urban100; ours show networks
that are here on pictures that come with qsr. Figures 3 and 4 need weights that still learn, and the
models of the package are packed; so they train small networks, in a minute or two, all for the same
number of steps from the same full-precision weights, and keep them in a folder.

Each function returns a `Drawn`: the figure, a caption, a text for those who do not see it, and the
numbers that the caption speaks of. page: "light", "dark", or None for a transparent figure that can
be read on both.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .. import baselines as baselines  # so that a configuration can name "dorefa"
from ..backbone import QuantSR, load_weights
from ..config import (
    NetworkConfig,
    TrainConfig,
    quantsr_c,
    quantsr_t,
    srresnet,
    swinir_s,
)
from ..course.viewers import DARK, LIGHT, PALETTE, STYLE, write_figure
from ..course.viz import Crop, Scene, before_after
from ..images.data import PICTURES, Pair, Patches, make_pair
from ..images.metrics import psnr_y
from ..images.picture import read, to_uint8
from ..infer import enlarge
from ..layers import QConv2d, QLinear, calibrate
from ..models import zoo
from ..models.file import describe, load_model, save
from ..quantizer import phi_slope
from ..runs.log import read_log
from ..scores import bicubic
from ..train import make_optimizer, set_learning_rate, train_step
from .records import RESULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Page = Literal["light", "dark"] | None
RUN = RESULTS / "evolution"  # the diary of a short run, in a checkout
SCALE = 4
HELD_OUT = "rocket"  # the one picture of "embedded" that networks trained on it have not seen


@dataclass(frozen=True)
class Drawn:
    """A figure and what is said about it. numbers: those of the caption, by name."""

    figure: Figure
    caption: str
    alt: str
    numbers: Mapping[str, object]


def write(drawn: Drawn, path: str | os.PathLike) -> Path:
    """Write the figure as PNG into a folder that is made if need be. Errors as `write_figure`."""
    return write_png(drawn.figure, path)


def write_png(figure: Figure, path: str | os.PathLike) -> Path:
    """As `write`, for a figure that has no words."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_figure(figure, path)


def new_figure(page: Page, size: tuple[float, float], **subplots):
    """(figure, axes) in the colours of a page."""
    import matplotlib
    from matplotlib.figure import Figure  # here, so that `import qsr` stays fast

    style: dict[Any, Any] = dict(STYLE)
    if page is not None:
        paper, ink, _ = {"light": LIGHT, "dark": DARK}[page]
        for key in STYLE:
            if key.endswith("facecolor"):
                style[key] = paper
            elif key.endswith("color") and key != "grid.color":
                style[key] = ink
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        return figure, figure.subplots(**subplots)


# Figures 1 and 2: step sizes and tau while a network trains ---------------------------------------


def evolution(run: str | os.PathLike | None = None, most: int = 20) -> list[dict]:
    """The lines of a run's diary that tell of its quantizers, at most so many, evenly chosen. run:
    a folder with a log.jsonl (None: that of a short run in docs/results).

    Raises ValueError if there are none, with how to make some.
    """
    folder = Path(RUN if run is None else run)
    lines = [line for line in read_log(folder) if "quantizers" in line]
    if not lines:
        raise ValueError(
            f"{folder} has no log.jsonl that tells of quantizers; train a network, `qsr train "
            "--checkpoint-every 100 --out runs/first ...`, and name its folder (--run)."
        )
    if len(lines) > most:
        lines = [lines[round(i * (len(lines) - 1) / (most - 1))] for i in range(most)]
    return lines


def figure1(run: str | os.PathLike | None = None, page: Page = None) -> Drawn:
    """The step sizes of all weights of a network over training (supplement, Figure 1)."""
    lines = evolution(run)
    spread = {line["step"]: _of_weights(line) for line in lines}
    boxes = {step: _box(values, min(values), max(values)) for step, values in spread.items()}
    deviations = {step: float(np.std(values)) for step, values in spread.items()}
    figure = _boxes(page, boxes, deviations, _joint_from(lines), "step size of weights")
    told = _told("standard deviation", deviations)
    caption = (
        f"Step sizes of the {len(_of_weights(lines[0]))} weight quantizers of a network while it "
        f"trains: median, quartiles, least and largest. {told} The paper's Figure 1 shows the same "
        "for its network and says that the range generally grows with training."
    )
    alt = f"A box for each checkpoint. {told}"
    return Drawn(figure, caption, alt, {"standard_deviation": deviations})


def figure2(run: str | os.PathLike | None = None, page: Page = None) -> Drawn:
    """tau of all inputs of a network over training (supplement, Figure 2)."""
    lines, boxes, deviations, ranges = evolution(run), {}, {}, {}
    for line in lines:
        taus = [q for q in line["quantizers"].values() if "tau_mean" in q]
        if not taus:
            raise ValueError("this run has no tau; only networks with the quantizer rlq have one.")
        means, step = [q["tau_mean"] for q in taus], line["step"]
        low, high = min(q["tau_min"] for q in taus), max(q["tau_max"] for q in taus)
        boxes[step] = _box(means, low, high)
        deviations[step], ranges[step] = float(np.std(means)), high - low
    median = float(np.median([q["step"] for q in taus]))
    figure = _boxes(page, boxes, deviations, _joint_from(lines), "tau of inputs")
    told = _told("range", ranges)
    caption = (
        f"tau of the {len(taus)} activation quantizers while a network trains: boxes are over "
        f"their means, whiskers reach the least and the largest channel. {told} That is "
        f"{100 * (high - low) / median:.1f} % of the median step size of inputs, {median:.2f}: "
        "Adam moves a parameter by at most about its learning rate a step, so a short run leaves "
        "tau near 0. The paper's Figure 2 shows tau over its whole training."
    )
    alt = f"A box for each checkpoint. {told}"
    return Drawn(figure, caption, alt, {"range": ranges, "median_step": median})


def _told(what: str, values: Mapping[int, float]) -> str:
    """First, least and last of what was measured at steps, in one sentence."""
    (first, begin), *_, (last, end) = values.items()
    least = min(values, key=lambda step: values[step])
    return (
        f"The {what} is {begin:.2g} at step {first}, {values[least]:.2g} at its least (step "
        f"{least}) and {end:.2g} at step {last}."
    )


def _joint_from(lines: Sequence[dict]) -> int | None:
    """The last checkpoint before several depths are trained together, if that comes."""
    depths = [sum(key.startswith("loss_") for key in line) for line in lines]
    changes = [a["step"] for a, n, m in zip(lines, depths, depths[1:], strict=False) if m > n]
    return changes[0] if changes else None


def _of_weights(line: dict) -> list[float]:
    quantizers = line["quantizers"].items()
    return [q["step"] for name, q in quantizers if name.endswith("weight_quantizer")]


def _box(values: Sequence[float], low: float, high: float) -> dict[str, float]:
    """What matplotlib draws a box from: whiskers at low and high."""
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    return {"q1": q1, "med": median, "q3": q3, "whislo": low, "whishi": high}


def _boxes(
    page: Page,
    boxes: Mapping[int, dict],
    deviations: Mapping[int, float],
    joint_from: int | None,
    y: str,
) -> Figure:
    figure, (left, right) = new_figure(page, (8, 3), ncols=2, width_ratios=(3, 2))
    ink = left.xaxis.label.get_color()
    line = {"color": ink}
    left.bxp(
        list(boxes.values()),
        positions=list(boxes),
        widths=0.6 * min(np.diff(list(boxes)), default=1),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": PALETTE["blue"], "edgecolor": ink},
        medianprops={"color": PALETTE["yellow"], "linewidth": 2},
        whiskerprops=line,
        capprops=line,
        manage_ticks=False,
    )
    left.set(xlabel="training step", ylabel=y, title="distribution over layers")
    right.plot(*zip(*deviations.items(), strict=True), "o-", color=PALETTE["red"])
    right.set(xlabel="training step", ylabel="standard deviation", title="spread over layers")
    right.set_ylim(bottom=0)
    if joint_from is not None:
        for ax in (left, right):
            ax.axvline(joint_from, color=ink, linestyle=":")
        label = " all depths\n are trained"
        right.text(joint_from, 0, label, va="bottom", fontsize=9, color=ink)
    return figure


# Small networks for figures 3 and 4 ---------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """Steps of 8 patches of 24 x 24: of full precision, and of each quantised network after it."""

    full: int = 200
    quantised: int = 100


SMALL = {
    "C": (srresnet(SCALE, blocks=4, features=24), quantsr_c),
    "T": (swinir_s(SCALE, blocks=2, layers=2, features=24, heads=2), quantsr_t),
}
UNQUANTISED = {"C": "SRResNet", "T": "SwinIR_S"}
METHODS = {"DoReFa": ("C", "dorefa"), "QuantSR-C": ("C", "rlq"), "QuantSR-T": ("T", "rlq")}


def small_network(
    method: str,
    bits: int | None = None,
    budget: Budget = Budget(),
    folder: str | os.PathLike | None = None,
) -> QuantSR:
    """A small x4 network trained on "embedded", from `folder` if it is there, else trained now and
    kept there.

    method: DoReFa, QuantSR-C or QuantSR-T at `bits`, which start from the full-precision SRResNet
    or SwinIR_S of the same shape; or one of these two, with bits None. Its features are not those
    of the paper's networks: 4 residual blocks of 24 features, or 2 Swin blocks of 2 layers.
    """
    family, quantizer = METHODS.get(method, (None, None))
    if quantizer is None:
        family = next((key for key, name in UNQUANTISED.items() if name == method), None)
    if family is None or (quantizer is None) != (bits is None):
        raise ValueError(
            f"`method` is {method!r} at {bits} bits; there are {', '.join(METHODS)} with bits, and "
            f"{', '.join(UNQUANTISED.values())} without."
        )
    note = f"{budget}, torch {torch.__version__}"
    path = None if folder is None else Path(folder) / f"small-{method.lower()}-{bits or 32}.qsr"
    if path is not None and path.exists() and describe(path).get("note") == note:
        kept = load_model(path)
        assert isinstance(kept, QuantSR)  # as it was written below
        return kept
    config, make = SMALL[family]
    torch.manual_seed(0)
    if quantizer is None:
        net = QuantSR(config)
        _train(net, budget.full, 2e-3)
    else:
        changes = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        changes |= {"bits": bits, "quantizer": quantizer, "learnable_shortcuts": True}
        net = QuantSR(make(**{**changes, "depths": (config.blocks,)}))
        load_weights(net, small_network(UNQUANTISED[family], None, budget, folder))
        _train(net, budget.quantised, 1e-3)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, net.eval(), note=note)
    return net.eval()


def _train(net: QuantSR, steps: int, learning_rate: float) -> None:
    """A plain loop: no checkpoints, no log."""
    patches = Patches("embedded", SCALE, patch=24, batch=8)
    config = TrainConfig(
        steps=steps, learning_rate=learning_rate, schedule="cosine", warmup=steps // 10, joint=False
    )
    net.train()
    if net.config.bits is not None:
        calibrate(net, patches.batch(0)[0])
    optimizer = make_optimizer(net, config)
    for step in range(steps):
        set_learning_rate(optimizer, config.learning_rate_at(step))
        train_step(net, optimizer, *patches.batch(step), config, step=step)


def picture(name: str) -> Pair:
    """One of the photographs that come with qsr, and what is left of it at a quarter of its size.

    Raises ValueError for a name that is not there.
    """
    path = PICTURES / f"{name}.png"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in PICTURES.glob("*.png")))
        raise ValueError(f"no picture is called {name!r}; there are {names}.")
    return make_pair(name, to_uint8(read(path).rgb[0]), SCALE)


# Figure 3: what phi does to gradients -------------------------------------------------------------


@dataclass(frozen=True)
class PhiEffect:
    """Gradients of weights in one backward pass, all layers in one row: before phi, after it, and
    where in its interval each weight lies (u in [0, 1)). Weights beyond the range are left out,
    whose gradient is 0 both times. Gradients are in units of their layer's root mean square."""

    before: Tensor
    after: Tensor
    position: Tensor


def phi_effect(net: QuantSR, lr: Tensor, hr: Tensor) -> PhiEffect:
    """One backward pass through a network of quantised convolutions. lr [1, 3, h, w], hr likewise,
    in [0, 1]."""
    layers = [module for module in net.modules() if isinstance(module, QConv2d)]
    rounded: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[..., None]:
        def hook(quantizer, inputs, output: Tensor) -> None:
            output.retain_grad()
            rounded[number] = output

        return hook

    hooks = [x.weight_quantizer.register_forward_hook(keep(i)) for i, x in enumerate(layers)]
    net.zero_grad()
    F.l1_loss(net(lr), hr).backward()
    for hook in hooks:
        hook.remove()
    parts = []
    for i, layer in enumerate(layers):
        quantizer, weight = layer.weight_quantizer, layer.weight.detach()
        z = weight / quantizer.step(weight).detach()
        inside = (z >= quantizer.spec.qmin) & (z <= quantizer.spec.qmax)
        before, after = rounded[i].grad, layer.weight.grad
        assert before is not None and after is not None  # backward has been
        before, after = before[inside], after[inside]
        size = before.square().mean().sqrt()
        parts.append((before / size, after / size, (z - z.floor())[inside]))
    net.zero_grad()
    return PhiEffect(*(torch.cat(column) for column in zip(*parts, strict=True)))


def figure3(
    folder: str | os.PathLike | None = None, page: Page = None, budget: Budget = Budget()
) -> Drawn:
    """The effect of phi on the gradients of weights (supplement, Figure 3), in a small 4-bit
    QuantSR-C, for one patch of a picture it was not trained on. folder: of small networks."""
    net, pair = small_network("QuantSR-C", 4, budget, folder), picture(HELD_OUT)
    side = 48
    effect = phi_effect(
        net, pair.lr[:, :, :side, :side], pair.hr[:, :, : SCALE * side, : SCALE * side]
    )
    difference = effect.after - effect.before
    relative = (difference.abs().sum() / effect.before.abs().sum()).item()
    figure, (left, right) = new_figure(page, (8, 3), ncols=2)
    end = difference.abs().max().item()
    left.hist(difference.numpy(), np.linspace(-end, end, 81), color=PALETTE["blue"], log=True)
    left.set(
        xlabel="gradient after phi - before\n(1: root mean square of the layer)",
        ylabel="weights",
        title="one backward pass",
    )
    bins = torch.linspace(0, 1, 41)
    which = torch.bucketize(effect.position, bins).clamp(1, 40) - 1
    sums = torch.zeros(2, 40)
    for row, values in enumerate((effect.after.abs(), effect.before.abs())):
        sums[row].index_add_(0, which, values)
    u = torch.linspace(0, 1, 201)
    right.plot(u, phi_slope(u), color=PALETTE["red"], label="phi'(u)")
    right.plot(bins[:-1] + 0.0125, sums[0] / sums[1], ".", color=PALETTE["blue"], label="measured")
    right.axhline(1, color=PALETTE["grey"], linestyle=":")
    right.set(
        xlabel="u, position of the weight in its interval", ylabel="gradient after / before",
        title="by position",
    )  # fmt: skip
    right.legend(frameon=False, labelcolor=right.xaxis.label.get_color())
    caption = (
        f"What phi does to the gradients of the {len(difference):,} weights of a small 4-bit "
        "QuantSR-C that are not clipped, in one backward pass for one patch: it moves them by "
        f"{100 * relative:.1f} % on average, down by 15 % at most where a weight lies on its grid "
        "point, up by 8 % at most between two. As the paper says of its Figure 3: small in each "
        "step, and everywhere."
    )
    alt = (
        "Left, a histogram of changes around 0. Right, the ratio of gradients after and before "
        "phi follows the curve of phi' from 0.85 to 1.08 and back."
    )
    return Drawn(figure, caption, alt, {"weights": len(difference), "relative_change": relative})


# Figure 4: features -------------------------------------------------------------------------------


def figure4(
    folder: str | os.PathLike | None = None,
    page: Page = None,
    budget: Budget = Budget(),
    name: str = HELD_OUT,
    progress: bool = False,
) -> Drawn:
    """Features of DoReFa, QuantSR-C and QuantSR-T at 4 and 2 bits (supplement, Figure 4), and of
    the full-precision network that the first two start from. folder: of small networks (None:
    trained again). name: one of the pictures that come with qsr; progress: on stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = scratch if folder is None else folder
        jobs = [(UNQUANTISED["C"], None), *((m, bits) for bits in (4, 2) for m in METHODS)]
        nets = {
            (method, bits): small_network(method, bits, budget, kept)
            for method, bits in tqdm(jobs, "small networks", unit="network", disable=not progress)
        }
    pair = picture(name)
    maps, numbers = _features(nets, pair)
    figure = _map_grid(page, pair.lr, maps, {job: numbers[_named(job)]["psnr_y"] for job in nets})
    told = (
        f"{k}: {v['correlation']:.3f}, {100 * v['zero_weights']:.0f} %"
        for k, v in numbers.items()
        if "zero_weights" in v
    )
    caption = (
        "Mean magnitude of the features that enter the tail, each map from its own 1st to 99th "
        f"percentile, for the picture {name!r}, which none was trained on. Small networks, "
        f"{budget.full} steps in full precision and {budget.quantised} more for each quantised "
        "one. Correlation with the map of the full-precision SRResNet (QuantSR-T starts from "
        f"another network), and share of weights that are 0: {'; '.join(told)}. One seed and a "
        "small budget: the decibels rank no method, and a network most of whose weights are 0 has "
        "a body that does little harm, and little else. The paper's Figure 4 shows its own "
        "networks on a page of Manga109."
    )
    alt = "Maps of features: full precision, then DoReFa, QuantSR-C and QuantSR-T at 4 and 2 bits."
    return Drawn(figure, caption, alt, numbers)


Job = tuple[str, int | None]  # method, bits


def _features(
    nets: Mapping[Job, QuantSR], pair: Pair
) -> tuple[dict[Job, Tensor], dict[str, dict[str, float]]]:
    """The map of each network, and by its name what the caption says of it."""
    maps, numbers = {}, {}
    with torch.inference_mode():
        for job, net in nets.items():
            maps[job] = feature_map(net, pair.lr)
            sr = enlarge(pair.lr, net)
            numbers[_named(job)] = {"psnr_y": psnr_y(sr, pair.hr, crop=SCALE).item()}
            if job[1] is not None:
                numbers[_named(job)]["zero_weights"] = zero_weights(net)
        for job, seen in maps.items():
            both = torch.stack([seen.flatten(), maps[UNQUANTISED["C"], None].flatten()])
            numbers[_named(job)]["correlation"] = torch.corrcoef(both)[0, 1].item()
    return maps, numbers


def _map_grid(
    page: Page, lr: Tensor, maps: Mapping[Job, Tensor], decibels: Mapping[Job, float]
) -> Figure:
    """Full precision above the picture, on the left; a row for each number of bits."""
    height, width = lr.shape[-2:]
    figure, axes = new_figure(page, (8, 0.5 + 4.1 * height / width), nrows=2, ncols=4)
    axes[1, 0].imshow(lr[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[1, 0].set_title("the picture", fontsize=9)
    shown: dict[tuple[int, int], Job] = {(0, 0): (UNQUANTISED["C"], None)}
    for i, bits in enumerate((4, 2)):
        shown |= {(i, j + 1): (method, bits) for j, method in enumerate(METHODS)}
    for place, job in shown.items():
        low, high = np.percentile(maps[job].numpy(), (1, 99))
        style = {"cmap": "cividis", "interpolation": "nearest", "vmin": low, "vmax": high}
        axes[place].imshow(maps[job].numpy(), **style)
        axes[place].set_title(f"{_named(job)}\n{decibels[job]:.2f} dB", fontsize=9)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure


def _named(job: Job) -> str:
    method, bits = job
    return f"{method}, full precision" if bits is None else f"{method}, {bits} bits"


def feature_map(net: QuantSR, lr: Tensor) -> Tensor:
    """Mean over channels of |features| that enter the tail, [h, w], for lr [1, 3, h, w]."""
    return net.features(lr)[0].abs().mean(0)[: lr.shape[2], : lr.shape[3]]


def zero_weights(net: QuantSR) -> float:
    """Share of the weights of quantised layers whose code is 0."""
    layers = [layer for layer in net.modules() if isinstance(layer, (QConv2d, QLinear))]
    zeros = sum((x.weight_quantizer.codes(x.weight) == 0).sum().item() for x in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


# Figures 5 to 8: crops side by side ---------------------------------------------------------------

# Figure -> (bits, picture, crop: top, left, height, width).
SCENES: dict[int, tuple[int, str, Crop]] = {
    5: (4, "astronaut", (66, 168, 84, 92)),
    6: (4, "chelsea", (56, 130, 84, 92)),
    7: (2, "astronaut", (66, 168, 84, 92)),
    8: (2, "chelsea", (56, 130, 84, 92)),
}
PAPER_METHODS = ("DoReFa", "PAMS", "CADyQ", "QuantSR-C", "QuantSR-T", "SRResNet", "SwinIR_S")


def comparison(
    number: int, models: Sequence[str] | None = None, page: Page = None, zoom: int = 3
) -> Drawn:
    """Figure 5, 6 (4 bits), 7 or 8 (2 bits): the same crop by each method, x4, the original last.

    models: names of the zoo or .qsr files (None: the zoo); those of scale 4 and of these bits or
    full precision are shown, each at its deepest. Decibels are those of the whole picture.
    Raises ValueError for another number, or if no model has these bits.
    """
    if number not in SCENES:
        raise ValueError(f"figure {number} shows no crops; choose one of {list(SCENES)}.")
    bits, name, crop = SCENES[number]
    pair, panels, there = picture(name), {}, []
    panels["bicubic"] = bicubic(pair.lr, SCALE)
    quantised = 0
    for model_name in zoo.names() if models is None else models:
        model = zoo.load(model_name)
        config = model.config
        if config.scale != SCALE or config.bits not in (None, bits, (bits, bits)):
            continue
        method = _method(config)
        quantised += config.bits is not None
        there.append(method)
        plural = "s" if config.blocks > 1 else ""
        panels[f"{method}, {config.blocks} block{plural}"] = enlarge(pair.lr, model)
    if not quantised:
        raise ValueError(
            f"figure {number} compares {bits}-bit networks at x4, and none is here; train and pack "
            f"one (qsr train --preset quantsr-c-x4-w{bits}a{bits}), and name its file (--model)."
        )
    row = Scene(SCALE, pair.hr, panels, crop)
    figure = before_after([row], zoom, dark=page == "dark")
    if page is None:
        figure.patch.set_alpha(0)
        for text in figure.texts:
            text.set_color(STYLE["text.color"])
    scores = {label: psnr_y(sr, pair.hr, crop=SCALE).item() for label, sr in panels.items()}
    missing = ", ".join(method for method in PAPER_METHODS if method not in there)
    caption = (
        f"x4 at {bits} bits, the picture {name!r}, the same crop and zoom for each; decibels "
        "are PSNR-Y of the whole picture. "
        + (f"No model here of {missing}, which the paper's figure shows too. " if missing else "")
        + f"The paper's Figure {number} shows crops of test pictures that can't be passed on."
    )
    listed = ", ".join(f"{label} {score:.2f} dB" for label, score in scores.items())
    return Drawn(figure, caption, f"A crop of {name} enlarged four times: {listed}.", scores)


def _method(config: NetworkConfig) -> str:
    """What the paper calls a network."""
    family = "T" if config.family == "swin" else "C"
    if config.bits is None:
        return UNQUANTISED[family]
    names = {"dorefa": "DoReFa", "pams": "PAMS", "cadyq": "CADyQ", "lsq": "LSQ"}
    return names.get(config.quantizer, f"QuantSR-{family}")
