"""The deepest network that enlarges a picture in the seconds that there are.

How long a depth takes on this machine is measured, not known: a sample, 128 x 128 pixels from the
middle of the first picture, is enlarged and encoded, and what that took for each pixel is taken for
every picture. The first run of a depth plans it, so the second counts. A small sample pays more for
its borders and its beginning than a picture does: most pictures are done a little sooner than said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..images.picture import Picture

SAMPLE = 128  # pixels a side


@dataclass(frozen=True)
class Pace:
    """run(picture, depth, suffix) enlarges a picture into nothing, in the format of a suffix."""

    run: Callable[[Picture, int, str], object]
    depths: Sequence[int]
    measured: dict[tuple[int, str], float] = field(default_factory=dict)  # seconds a pixel

    def deepest(self, picture: Picture, suffix: str, seconds: float) -> tuple[int, float]:
        """(depth, how many seconds it will take), of the most blocks that are done in time.

        Raises ValueError if none is.
        """
        height, width = picture.size
        expected = 0.0
        for depth in sorted(self.depths, reverse=True):
            expected = self._measure(picture, depth, suffix) * height * width
            if expected <= seconds:
                return depth, expected
        raise ValueError(
            f"`--seconds` is {seconds:g}, and {min(self.depths)} blocks, the fewest, take about "
            f"{expected:.2g} s for {width} x {height} pixels. Allow more, or a smaller picture."
        )

    def _measure(self, picture: Picture, depth: int, suffix: str) -> float:
        if (depth, suffix) not in self.measured:
            sample = middle(picture)
            self.run(sample, depth, suffix)
            start = time.perf_counter()
            self.run(sample, depth, suffix)
            took = time.perf_counter() - start
            self.measured[depth, suffix] = took / (sample.size[0] * sample.size[1])
        return self.measured[depth, suffix]


def middle(picture: Picture, side: int = SAMPLE) -> Picture:
    """At most `side` x `side` pixels from the middle of a picture."""
    top, left = (max(0, (n - side) // 2) for n in picture.size)
    return replace(picture, array=picture.array[top : top + side, left : left + side])
