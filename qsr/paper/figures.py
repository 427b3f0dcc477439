"""The figures of QuantSR's supplement, drawn again from this library's own networks.

    figure1(), figure2()    how step sizes and tau spread while a network trains, from a run's diary
    figure3()               what phi does to the gradients of one backward pass
    figure4()               features of DoReFa and QuantSR at 4 and 2 bits
    comparison(5 .. 8)      crops side by side, at 4 bits (5, 6) and 2 bits (7, 8)

The paper's figures show its own networks on pictures of Manga109 and Urban100; ours show networks
that are here on pictures that come with qsr: the models of the package, and for DoReFa, PAMS and
CADyQ the runs that `qsr reproduce baselines --train` left in a folder (`networks_here`). What is
not there is named in the caption, and in Figure 4 keeps its place, labelled "no model". Crops are
chosen by a rule, where the methods differ most (`busiest_window`), not by eye.

Figure 3 needs weights that still learn, and the models of the package are packed; so it trains a
small network, within a minute, and keeps it in a folder. `small_networks` gives Figure 4 such ones,
all trained for the same number of steps from the same full-precision weights.

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

from ..backbone import QuantSR, load_weights
from ..baselines.cadyq import Patchwise
from ..calibration import calibrate
from ..config import NetworkConfig, quantsr_c, quantsr_t, srresnet, swinir_s
from ..course.viewers import DARK, LIGHT, PALETTE, STYLE, write_figure
from ..course.viz import Crop
from ..images.data import PICTURES, Pair, Patches, make_pair
from ..images.metrics import psnr_y
from ..images.reading import read
from ..images.tensors import rgb_to_y, to_uint8
from ..infer import Model, enlarge
from ..layers import QConv2d, QLinear, split_bits
from ..models import zoo
from ..models.file import describe, load_model, save
from ..quantizer import QUANTIZERS, phi_slope
from ..runs.log import read_log
from ..schedule import TrainConfig
from ..scores import bicubic
from ..train import make_optimizer, set_learning_rate, train_step
from .baselines import all_rows
from .records import RESULTS
from .terms import BASELINE_RUNS as RUNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


# Networks that are here ---------------------------------------------------------------------------

FULL = "full precision"
PANELS = ("bicubic", "DoReFa", "PAMS", "CADyQ", "QuantSR-C", "QuantSR-T", FULL)  # the paper's order


@dataclass(frozen=True)
class Shown:
    """A network in a panel. source: where it is from, in words."""

    model: Model
    source: str

    def enlarge(self, lr: Tensor) -> Tensor:
        """lr [1, 3, h, w] -> sr; pictures that choose their widths patch by patch."""
        config = self.model.config
        if config.bits is not None and not QUANTIZERS[config.quantizer].one_grid:
            return Patchwise(self.model)(lr).clamp(0, 1)
        return enlarge(lr, self.model)

    def features(self, lr: Tensor) -> Tensor:
        """What enters the tail."""
        network: Any = getattr(self.model, "network", self.model)  # of a packed one, its layers
        return network.features(lr)


def networks_here(
    bits: int, models: Sequence[str] | None = None, runs: str | os.PathLike | None = None
) -> dict[str, Shown]:
    """{panel: network} at x4 with these bits, as the paper calls them, and full precision.

    models: names of the zoo or .qsr files, each at its deepest; None: seed 0 of the runs of `qsr
    reproduce baselines` in the folder `runs` (None: runs/baselines), then the zoo. The first of a
    kind is taken, so QuantSR-C is the run that had as many steps as the others, if it is there.
    LSQ's run is left out, as the paper shows none.
    """
    named: list[tuple[str, str]] = [(name, Path(name).stem) for name in models or ()]
    if models is None:
        for row in all_rows():
            path = Path(RUNS if runs is None else runs) / row.name / "model.qsr"
            shown = row.seed == 0 and row.bits == f"{bits}/{bits}" and row.method != "LSQ"
            if shown and path.exists():
                named.append((str(path), f"run {row.name}"))
        named += [(name, f"{name} of the package") for name in zoo.names()]
    found: dict[str, Shown] = {}
    for name, source in named:
        model = zoo.load(name)
        config = model.config
        weights = config.bits if config.bits is None else split_bits(config.bits)[0]
        chooses = config.bits is not None and not QUANTIZERS[config.quantizer].one_grid
        fits = config.bits in (None, bits, (bits, bits)) or (chooses and weights == bits)
        if config.scale == SCALE and fits:
            plural = "s" if config.blocks > 1 else ""
            found.setdefault(
                _method(config), Shown(model, f"{source}, {config.blocks} block{plural}")
            )
    return found


def _method(config: NetworkConfig) -> str:
    """The panel of a network."""
    if config.bits is None:
        return FULL
    names = {"dorefa": "DoReFa", "pams": "PAMS", "cadyq": "CADyQ", "lsq": "LSQ"}
    letter = "T" if config.family == "swin" else "C"
    return names.get(config.quantizer, f"QuantSR-{letter}")


def _sources(shown: Mapping[str, Shown]) -> str:
    """Where the networks are from, and which of the paper's are not here."""
    there = "; ".join(f"{method}: {one.source}" for method, one in shown.items())
    absent = [method for method in PANELS[1:] if method not in shown]
    return f"{there}." + (f" No model here of {', '.join(absent)}." if absent else "")


# Figure 4: features -------------------------------------------------------------------------------

COLUMNS = ("DoReFa", "QuantSR-C", "QuantSR-T")


def figure4(
    networks: Mapping[int, Mapping[str, Shown]] | None = None,
    page: Page = None,
    name: str = HELD_OUT,
) -> Drawn:
    """Features of DoReFa, QuantSR-C and QuantSR-T at 4 and 2 bits (supplement, Figure 4), and of
    full precision. networks: {bits: as `networks_here`} (None: that); name: one of the pictures
    that come with qsr. Raises ValueError without full precision."""
    networks = {bits: networks_here(bits) for bits in (4, 2)} if networks is None else networks
    first = next(iter(networks.values()), {})
    if FULL not in first:
        raise ValueError("there is no network in full precision to compare with; name one.")
    jobs: dict[Job, Shown] = {(FULL, None): first[FULL]}
    for bits, there in networks.items():
        jobs |= {(method, bits): there[method] for method in COLUMNS if method in there}
    pair = picture(name)
    maps, numbers = _features(jobs, pair)
    figure = _map_grid(page, pair.lr, maps, {job: numbers[_named(job)]["psnr_y"] for job in jobs})
    told = "; ".join(
        f"{_named(job)} ({shown.source}) {numbers[_named(job)]['correlation']:.3f}"
        for job, shown in jobs.items()
        if job[1] is not None
    )
    caption = (
        "Mean magnitude of the features that enter the tail, each map from its own 1st to 99th "
        f"percentile, for the picture {name!r}, which none was trained on; decibels are of that "
        f"picture. Correlation with the map of full precision ({jobs[FULL, None].source}): {told}. "
        "A network that was trained for longer, or from other weights, has other maps whatever its "
        "quantizer. The paper's Figure 4 shows its own networks on a page of Manga109."
    )
    alt = "Maps of features: full precision, then DoReFa, QuantSR-C and QuantSR-T at 4 and 2 bits."
    return Drawn(figure, caption, alt, numbers)


def small_networks(
    folder: str | os.PathLike | None = None, budget: Budget = Budget(), progress: bool = False
) -> dict[int, dict[str, Shown]]:
    """Networks for `figure4`, small and trained here. folder: where they are kept (None: nowhere);
    progress: on stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = scratch if folder is None else folder
        jobs: list[Job] = [(UNQUANTISED["C"], None)]
        jobs += [(method, bits) for bits in (4, 2) for method in METHODS]
        bar = tqdm(jobs, "small networks", unit="network", disable=not progress)
        nets = {(name, bits): small_network(name, bits, budget, kept) for name, bits in bar}
    steps = f"a small network, {budget.full} + {budget.quantised} steps"
    full = Shown(nets[UNQUANTISED["C"], None], f"a small SRResNet, {budget.full} steps")
    return {
        bits: {FULL: full, **{method: Shown(nets[method, bits], steps) for method in METHODS}}
        for bits in (4, 2)
    }


Job = tuple[str, int | None]  # method, bits


def _features(
    jobs: Mapping[Job, Shown], pair: Pair
) -> tuple[dict[Job, Tensor], dict[str, dict[str, float]]]:
    """The map of each network, and by its name what the caption says of it."""
    maps, numbers = {}, {}
    with torch.inference_mode():
        for job, shown in jobs.items():
            maps[job] = feature_map(shown, pair.lr)
            sr = shown.enlarge(pair.lr)
            both = torch.stack([maps[job].flatten(), maps[FULL, None].flatten()])
            numbers[_named(job)] = {
                "psnr_y": psnr_y(sr, pair.hr, crop=SCALE).item(),
                "correlation": torch.corrcoef(both)[0, 1].item(),
            }
            if job[1] is not None and isinstance(shown.model, QuantSR):
                numbers[_named(job)]["zero_weights"] = zero_weights(shown.model)
    return maps, numbers


def _map_grid(
    page: Page, lr: Tensor, maps: Mapping[Job, Tensor], decibels: Mapping[Job, float]
) -> Figure:
    """Full precision above the picture, on the left; a row for each number of bits."""
    height, width = lr.shape[-2:]
    figure, axes = new_figure(page, (8, 0.5 + 4.1 * height / width), nrows=2, ncols=4)
    axes[1, 0].imshow(lr[0].permute(1, 2, 0).numpy(), interpolation="nearest")
    axes[1, 0].set_title("the picture", fontsize=9)
    places: dict[tuple[int, int], Job] = {(0, 0): (FULL, None)}
    for i, bits in enumerate((4, 2)):
        places |= {(i, j + 1): (method, bits) for j, method in enumerate(COLUMNS)}
    for place, job in places.items():
        if job not in maps:
            axes[place].set_title(f"{_named(job)}\n", fontsize=9)
            empty(axes[place], (height, width), axes[place].title.get_color())
            continue
        low, high = np.percentile(maps[job].numpy(), (1, 99))
        style = {"cmap": "cividis", "interpolation": "nearest", "vmin": low, "vmax": high}
        axes[place].imshow(maps[job].numpy(), **style)
        axes[place].set_title(f"{_named(job)}\n{decibels[job]:.2f} dB", fontsize=9)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure


def empty(ax: Axes, shape: tuple[int, int], ink: str) -> None:
    """A panel that is kept free for a network that is not here: a frame, and "no model"."""
    from matplotlib.patches import Rectangle  # here, so that `import qsr` stays fast

    height, width = shape
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    frame = Rectangle((0.5, 0.5), width - 1, height - 1, fill=False, ec=ink, ls=":")
    ax.add_patch(frame)
    ax.text(width / 2, height / 2, "no model", ha="center", va="center", color=ink, fontsize=9)


def _named(job: Job) -> str:
    method, bits = job
    return FULL if bits is None else f"{method}, {bits} bits"


def feature_map(net: QuantSR | Shown, lr: Tensor) -> Tensor:
    """Mean over channels of |features| that enter the tail, [h, w], for lr [1, 3, h, w]."""
    return net.features(lr)[0].abs().mean(0)[: lr.shape[2], : lr.shape[3]]


def zero_weights(net: QuantSR) -> float:
    """Share of the weights of quantised layers whose code is 0."""
    layers = [layer for layer in net.modules() if isinstance(layer, (QConv2d, QLinear))]
    zeros = sum((x.weight_quantizer.codes(x.weight) == 0).sum().item() for x in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


# Figures 5 to 8: crops side by side ---------------------------------------------------------------

# Figure -> (bits, picture).
SCENES: dict[int, tuple[int, str]] = {
    5: (4, "astronaut"),
    6: (4, "chelsea"),
    7: (2, "astronaut"),
    8: (2, "chelsea"),
}
WINDOW = (84, 92)  # height and width of a crop


def busiest_window(pictures: Sequence[Tensor], size: tuple[int, int]) -> Crop:
    """Where pictures differ most: (top, left, height, width) of the window in which the variance
    between them, of luma, has the largest mean; the first such in reading order.

    pictures: two or more of one scene, float RGB [1, 3, H, W] in [0, 1]. size: of the window.

    >>> one, other = torch.zeros(2, 1, 3, 8, 8)
    >>> other[..., 5:7, 2:4] = 1.0
    >>> busiest_window([one, other], (2, 2))
    (5, 2, 2, 2)
    """
    luma = rgb_to_y(torch.cat([*pictures]).double())  # [K, 1, H, W]
    variance = luma.var(0, correction=0, keepdim=True)
    means = F.avg_pool2d(variance, size, stride=1)[0, 0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return top, left, *size


def comparison(
    number: int,
    models: Sequence[str] | None = None,
    page: Page = None,
    zoom: int = 3,
    runs: str | os.PathLike | None = None,
) -> Drawn:
    """Figure 5, 6 (4 bits), 7 or 8 (2 bits): the same crop by each method, x4, the original last.

    models, runs: as `networks_here`. Decibels are those of the whole picture. Raises ValueError for
    another number, or if no model has these bits.
    """
    if number not in SCENES:
        raise ValueError(f"figure {number} shows no crops; choose one of {list(SCENES)}.")
    bits, name = SCENES[number]
    pair, shown = picture(name), networks_here(bits, models, runs)
    if not set(shown) - {FULL}:
        raise ValueError(
            f"figure {number} compares {bits}-bit networks at x4, and none is here; train and pack "
            f"one (qsr train --preset quantsr-c-x4-w{bits}a{bits}), and name its file (--model)."
        )
    with torch.inference_mode():
        enlarged = {"bicubic": bicubic(pair.lr, SCALE)}
        enlarged |= {method: one.enlarge(pair.lr) for method, one in shown.items()}
    by_networks = [sr for method, sr in enlarged.items() if method != "bicubic"]
    crop = busiest_window(by_networks if len(by_networks) > 1 else [*enlarged.values()], WINDOW)
    methods = (*PANELS, *(method for method in enlarged if method not in PANELS))
    panels = {method: enlarged[method] for method in methods if method in enlarged}
    panels["original"] = pair.hr
    scores = {m: psnr_y(sr, pair.hr, crop=SCALE).item() for m, sr in enlarged.items()}
    figure = _crops(page, panels, scores, crop, zoom)
    top, left, height, width = crop
    caption = (
        f"x4 at {bits} bits, the picture {name!r}, the same crop and zoom for each; decibels are "
        f"PSNR-Y of the whole picture. The crop is the window of {height} x {width} pixels in "
        f"which the outputs of the networks differ most (row {top}, column {left}). "
        f"{_sources(shown)} The paper's Figure {number} shows crops of test pictures that can't be "
        "passed on."
    )
    listed = ", ".join(f"{method} {score:.2f} dB" for method, score in scores.items())
    return Drawn(figure, caption, f"A crop of {name} enlarged four times: {listed}.", scores)


def _crops(
    page: Page,
    panels: Mapping[str, Tensor],
    scores: Mapping[str, float],
    crop: Crop,
    zoom: int,
) -> Figure:
    """Panels in one row, or in two if they are more than four; zoom x zoom pixels a pixel.

    Everything is placed in whole pixels, or crops would be resampled.
    """
    top, left, height, width = crop
    gap, head = 14, 24
    rows = 1 if len(panels) <= 4 else 2
    columns = -(-len(panels) // rows)
    wide = columns * (zoom * width + gap) + gap
    high = rows * (head + zoom * height) + gap
    figure, _ = new_figure(page, (1, 1))
    figure.clear()
    figure.set_size_inches(wide / figure.dpi, high / figure.dpi)
    figure.set_layout_engine("none")
    ink = STYLE["text.color"] if page is None else {"light": LIGHT, "dark": DARK}[page].ink
    for i, (method, picture) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        x, y = gap + column * (zoom * width + gap), row * (head + zoom * height) + head
        box = x / wide, 1 - (y + zoom * height) / high, zoom * width / wide, zoom * height / high
        ax = figure.add_axes(box)
        seen = to_uint8(picture[0, :, top : top + height, left : left + width])
        ax.imshow(seen.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        ax.set_axis_off()
        label = {"va": "bottom", "fontsize": 10, "color": ink}
        figure.text(x / wide, 1 - (y - 5) / high, method, **label)
        score = f"{scores[method]:.2f} dB" if method in scores else ""
        figure.text((x + zoom * width) / wide, 1 - (y - 5) / high, score, ha="right", **label)
    return figure
