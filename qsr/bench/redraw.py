"""Figures drawn again from what `qsr bench --json` kept.

How long a network takes depends on its shape, not on what it learned: a model that was trained on
keeps its milliseconds. So its figure needs no second run on a quiet machine, only today's decibels,
and those are on its card.

    redraw("bench.json", "bench.png")    times of that run, PSNR of the cards of now
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..models import zoo
from . import curve, report
from .curve import Curve, Point
from .engine import Report, Timing


def read(path: str | os.PathLike) -> Report | Curve:
    """What `qsr bench --json` wrote of networks. Raises ValueError (one line) for another file."""
    try:
        kept = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from None
    try:
        found = _curve(kept) if "points" in kept else _report(kept)
        timings = found.rows if isinstance(found, Report) else [p.timing for p in found.points]
        if not all(timing.best_ms is None or timing.best_ms > 0 for timing in timings):
            raise ValueError
    except (TypeError, KeyError, AttributeError, ValueError):
        raise ValueError(f"{path} is no file of `qsr bench network --json`.") from None
    return found


def with_cards(kept: Curve) -> Curve:
    """The curve with the PSNR of models that come with qsr as their cards have it now."""
    return replace(kept, points=tuple(_with_card(point, kept.data) for point in kept.points))


def redraw(path: str | os.PathLike, plot: str | os.PathLike) -> tuple[Path, Path]:
    """Draw a kept run again, for light and dark pages, and return the two files.

    Raises ValueError as `read`, and for a run that timed no network.
    """
    kept = read(path)
    if isinstance(kept, Report):
        return report.write_figure(kept, plot)  # which reads the cards itself
    return report.write_twins(functools.partial(curve.figure, with_cards(kept)), plot)


def _report(kept: dict) -> Report:
    kept = {key: value for key, value in kept.items() if key != "ratios"}
    return Report(**{**kept, "rows": tuple(Timing(**row) for row in kept["rows"])})


def _curve(kept: dict) -> Curve:
    points = [{**point, "timing": Timing(**point["timing"])} for point in kept["points"]]
    if not points or not all(point["psnr"] > 0 for point in points):
        raise ValueError
    return Curve(**{**kept, "points": tuple(Point(**point) for point in points)})


def _with_card(point: Point, data: str) -> Point:
    if point.network not in zoo.names():
        return point
    scores: Mapping = zoo.card(point.network)["scores"].get(str(point.timing.blocks), {})
    return replace(point, psnr=scores[data][0]) if data in scores else point
