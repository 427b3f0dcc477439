"""What `qsr bench` prints, writes and draws: Markdown, JSON, and two figures.

A table is Markdown, so that a page can take it as it is. A packed network always collapses its
tail; that is why its one time is compared with two columns of peers. The figure has bars of the
time of each contender, and speed against PSNR for the models of the zoo at each of their depths;
it comes twice, for light and for dark pages.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..course import viewers
from ..models import zoo
from ..paper import report as tables
from ..system.files import replacing
from .engine import Report, Timing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text ---------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The tables of a report, one for each number of threads."""
    parts = [heading(report.machine, report.ceilings)]
    for threads in dict.fromkeys(row.threads for row in report.rows):
        rows = [row for row in report.rows if row.threads == threads]
        write = _network_table if report.what == "network" else _local_table
        plural = "s" if threads > 1 else ""
        title = f"**{report.title}, {threads} thread{plural}**, best (median) of {report.rounds}"
        parts.append(f"{title}; {report.macs / 1e9:.3g} GMAC\n\n{write(rows)}")
        left_out = [f"- {row.name} ({row.column}): {row.note}" for row in rows if row.note]
        if left_out:
            parts.append("\n".join(left_out))
    if report.what == "network" and report.ratios():
        parts.append(_ratio_table(report))
    return "\n\n".join(parts)


def heading(machine: Mapping[str, str], ceilings: Mapping[str, float] | None = None) -> str:
    """The machine, what is installed, and the rates of its instructions if they were measured."""
    versions = {k: v for k, v in machine.items() if k not in ("cpu", "cores", "features")}
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores; {machine['features']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if ceilings:
        rates = {name: rate for name, rate in ceilings.items() if name != "clock"}
        ghz = ceilings["clock"] / 1e9
        lines.append(
            f"one core at {ghz:.2f} GHz, GMAC/s (MAC/cycle): "
            + ", ".join(f"{n} {r / 1e9:.0f} ({r / 1e9 / ghz:.0f})" for n, r in rates.items())
        )
    return "  \n".join(line for line in lines if line)


def _network_table(rows: Sequence[Timing]) -> str:
    """A line for each contender; the peers' two graphs are two columns."""
    timed = {(row.name, row.column, row.blocks): row for row in rows if row.best_ms is not None}
    eager = next((r for k, r in timed.items() if k[:2] == ("pytorch", "ordinary")), None)
    lines = []
    for (name, column, blocks), row in timed.items():
        if column == "collapsed" and (name, "ordinary", blocks) in timed:
            continue
        own = column in ("packed", "depth")
        other = row if own else timed.get((name, "collapsed", blocks))
        ordinary = None if column == "collapsed" else row
        memory = [_mega(r.memory) for r in ([row] if own else [ordinary, other]) if r is not None]
        lines.append(
            [
                f"**{name}**" if column == "packed" else name,
                str(blocks or "-"),
                _ms(ordinary),
                _ms(other),
                f"{eager.ms / row.ms:.2f}x" if eager and ordinary else "-",
                f"{row.gmacs:.0f}",
                _percent(row.share),
                " / ".join(memory),
                _agreement(row),
            ]
        )
    heads = ["network", "blocks", "ordinary graph ms", "collapsed tail ms", "over eager"]
    heads += ["GMAC/s", "of ceiling", "peak MB", "agrees"]
    return tables.markdown(heads, lines, aligned=True)


def _local_table(rows: Sequence[Timing]) -> str:
    slowest = max(row.ms for row in rows)
    lines = [
        [row.name, _ms(row), f"{row.gmacs:.0f}", f"{slowest / row.ms:.2f}x"] + [_percent(row.share)]
        for row in rows
    ]
    return tables.markdown(
        ["", "ms", "GMAC/s", "over the slowest", "of ceiling"], lines, aligned=True
    )


def _ratio_table(report: Report) -> str:
    lines = []
    for found in report.ratios():
        cells = [found["name"], str(found["threads"])]
        for column in ("ordinary", "collapsed"):
            pair = found[column]
            cells.append(f"{pair[0]:.2f}x ({pair[1]})" if pair else "-")
        for name in ("pytorch", "scaling"):
            cells.append(f"{found[name]:.2f}x" if found[name] else "-")
        lines.append(cells)
    heads = ["packed network", "threads", "over the fastest peer, ordinary graph"]
    heads += ["over the fastest peer, collapsed tail", "over PyTorch eager", "over fewest threads"]
    return tables.markdown(heads, lines, aligned=True)


def _ms(row: Timing | None) -> str:
    return "-" if row is None else f"{row.best_ms:.1f} ({row.median_ms:.1f})"


def _mega(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _agreement(row: Timing) -> str:
    if row.psnr is None:
        return "reference"  # only the crop was compared
    return f"{row.largest:.0e}" if row.psnr > 90 else f"{row.psnr:.0f} dB"


# JSON ---------------------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    """The report and its ratios; numbers that were not measured are null."""
    return json.dumps({**asdict(report), "ratios": report.ratios()}, indent=1) + "\n"


def write_json(report: Report, path: str | os.PathLike) -> None:
    """Write `as_json`, whole or not at all. Raises ValueError for a place that can't be written."""
    with replacing(path) as temporary:
        temporary.write_text(as_json(report))


# Figures ------------------------------------------------------------------------------------------

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
OWN, ORDINARY, COLLAPSED, SECOND = "#D55E00", "#0072B2", "#56B4E9", "#009E73"


def write_figure(report: Report, path: str | os.PathLike) -> tuple[Path, Path]:
    """Draw a report of networks. Raises ValueError as `write_twins`, and as `figure`."""
    return write_twins(functools.partial(figure, report), path)


def write_twins(draw: Callable[..., Figure], path: str | os.PathLike) -> tuple[Path, Path]:
    """`draw(dark=False)` as a PNG for light pages, and NAME_dark.png beside it for dark ones.

    Raises ValueError for another suffix.
    """
    path = Path(path)
    light, dark = draw(dark=False), draw(dark=True)
    twin = path.with_stem(f"{path.stem}_dark")
    return viewers.write_figure(light, path), viewers.write_figure(dark, twin)


def figure(report: Report, dark: bool = False) -> Figure:
    """Bars of the time of each contender and, where the zoo was timed, speed against PSNR."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.best_ms is not None]
    if report.what != "network" or not rows:
        raise ValueError("there are no times of networks to draw; run `qsr bench network`.")
    threads = min(row.threads for row in rows)
    rows = [row for row in rows if row.threads == threads]
    points = _points([row for row in rows if row.column == "depth"])
    paper, ink, _ = viewers.DARK if dark else viewers.LIGHT
    drawn = Figure(figsize=(11 if points else 6.5, 4.8), dpi=120, facecolor=paper)
    axes = drawn.subplots(
        1, 2 if points else 1, squeeze=False, width_ratios=[3, 2][: 1 + bool(points)]
    )
    _bars(axes[0, 0], rows, ink)
    plural = "s" if threads > 1 else ""
    axes[0, 0].set_title(
        f"{report.title}, {threads} thread{plural}", fontsize=10, loc="left", color=ink
    )
    if points:
        _speed_and_psnr(axes[0, 1], points, ink, paper)
    for ax in axes.flat:
        dress(ax, paper, ink)
    drawn.tight_layout()
    return drawn


def dress(ax, paper: str, ink: str) -> None:
    """Axes in the colours of a page."""
    ax.set_facecolor(paper)
    ax.tick_params(which="both", colors=ink, labelsize=9)
    ax.xaxis.label.set_color(ink)
    ax.yaxis.label.set_color(ink)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)


def logarithmic(ax, values: Sequence[float], room: float = 1.25) -> None:
    """Make x an axis of equal ratios, from the least of `values` to the largest and some room."""
    ax.set_xscale("log")
    ax.set_xticks([m * 10**e for e in range(-1, 5) for m in (1, 2, 3, 5)])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xlim(min(values) / room, max(values) * room)  # the ticks reach further


def _bars(ax, rows: Sequence[Timing], ink: str) -> None:
    """Two bars for each peer, ordinary and collapsed graph; one for a packed network."""
    times: dict[str, dict[str, float]] = {}
    for row in sorted(rows, key=lambda row: -row.ms):
        if row.column != "depth":
            times.setdefault(row.name, {})[row.column] = row.ms
    colours = {"packed": OWN, "ordinary": ORDINARY, "collapsed": COLLAPSED}
    labels = {"packed": "packed, integers", "ordinary": "ordinary graph"}
    labels["collapsed"] = "handed the collapsed tail"
    labelled = set()
    for y, columns in enumerate(times.values()):
        offsets = {"ordinary": 0.2, "collapsed": -0.2, "packed": 0}
        for column, ms in columns.items():
            alone = len(columns) == 1
            label = None if column in labelled else labels[column]
            labelled.add(column)
            at, height = (y, 0.55) if alone else (y + offsets[column], 0.38)
            ax.barh(at, ms, height, color=colours[column], label=label)
            ax.text(ms, at, f" {ms:.0f}", va="center", fontsize=8, color=ink)
    ax.set_yticks(range(len(times)), list(times))
    ax.set_xlabel("ms, best of the rounds (less is better)")
    ax.legend(frameon=False, labelcolor=ink, fontsize=9, loc="upper right")


Point = tuple[float, float, int]  # pictures a second, PSNR-Y on Set5, blocks


def _points(rows: Sequence[Timing]) -> dict[str, list[Point]]:
    """{model: its depths}; PSNR from the model cards, where they know Set5."""
    points: dict[str, list[Point]] = {}
    for row in sorted(rows, key=lambda row: row.ms):
        scores = zoo.card(row.name)["scores"].get(str(row.blocks), {})
        if row.blocks is not None and "Set5" in scores:
            point = (1e3 / row.ms, scores["Set5"][0], row.blocks)
            points.setdefault(row.name, []).append(point)
    return points


def _speed_and_psnr(ax, points: dict[str, list[Point]], ink: str, paper: str) -> None:
    from matplotlib.patheffects import withStroke

    styles = zip((OWN, ORDINARY, SECOND, COLLAPSED), "os^D", strict=True)
    for (name, depths), (colour, marker) in zip(points.items(), styles, strict=False):
        speed, psnr, blocks = zip(*depths, strict=True)
        ax.plot(speed, psnr, color=colour, marker=marker, label=name)
        for x, y, count in zip(speed, psnr, blocks, strict=True):
            ax.annotate(
                f"{count} block{'s' if count > 1 else ''}", (x, y), (6, 4),
                textcoords="offset points", fontsize=8, color=ink,
                path_effects=[withStroke(linewidth=3, foreground=paper)],
            )  # fmt: skip
    ax.margins(y=0.15)
    logarithmic(ax, [speed for depths in points.values() for speed, _, _ in depths], room=1.6)
    ax.set_xlabel("pictures a second (more is better)")
    ax.set_ylabel("PSNR-Y on Set5, dB (model card)")
    ax.set_title("Models of the zoo at their depths", fontsize=10, loc="left", color=ink)
    ax.legend(
        frameon=False, labelcolor=ink, fontsize=9, ncols=2, loc="upper center",
        bbox_to_anchor=(0.45, -0.14),
    )  # fmt: skip
