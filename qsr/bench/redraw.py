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
        if "points" in kept:
            points = tuple(
                Point(**{**point, "timing": Timing(**point["timing"])}) for point in kept["points"]
            )
            return Curve(**{**kept, "points": points})
        kept = {key: value for key, value in kept.items() if key != "ratios"}
        return Report(**{**kept, "rows": tuple(Timing(**row) for row in kept["rows"])})
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is no file of `qsr bench network --json`.") from None


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


def _with_card(point: Point, data: str) -> Point:
    if point.network not in zoo.names():
        return point
    scores: Mapping = zoo.card(point.network)["scores"].get(str(point.timing.blocks), {})
    return replace(point, psnr=scores[data][0]) if data in scores else point
