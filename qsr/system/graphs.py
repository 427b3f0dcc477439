"""A function that a GPU does again and again, recorded once and replayed: CUDA graphs.

A step of training starts thousands of kernels, each by a call from Python that takes longer than
the small ones run. A graph is the list of what was started, with all addresses; replaying it is
one call. So a function can be recorded if it does the same to the same tensors each time: what
changes comes in through tensors that are written before, what comes out is left in one, and
nothing is read on the way. (tests/test_graphs.py looks for that without a GPU.)

The first calls run as they are, since they load and compile kernels and choose algorithms, which
must not happen while a graph is recorded. They, the recording and all that it allocates belong to
one stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import first_line

FIRST = 3  # calls that are not recorded
AHEAD = 4  # calls that the GPU has not done yet, at most: so clocks of the host stay true


def recorded(
    function: Callable[[], Tensor], device: torch.device, tell: Callable[[str], object]
) -> Callable[[], Tensor]:
    """`function` itself, or on a GPU what records it as a graph; both are called alike.

    Each call returns the same tensor with new values. What cannot be recorded runs as it is, and
    `tell` gets one line that says why.
    """
    return Recorded(function, device, tell) if device.type == "cuda" else function


class Recorded:
    """See `recorded`."""

    def __init__(
        self, function: Callable[[], Tensor], device: torch.device, tell: Callable[[str], object]
    ) -> None:
        self.function, self.device, self.tell = function, device, tell
        self.stream = torch.cuda.Stream(device)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor | None = None
        self.waiting: deque[torch.cuda.Event] = deque()

    def __call__(self) -> Tensor:
        if self.calls == FIRST:
            self._record()
        self.calls += 1
        if len(self.waiting) == AHEAD:
            self.waiting.popleft().synchronize()
        if self.graph is None or self.result is None:
            result = self._run()
        else:
            self.graph.replay()
            result = self.result
        self.waiting.append(torch.cuda.current_stream(self.device).record_event())
        return result

    def _run(self) -> Tensor:
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = self.function()
        here.wait_stream(self.stream)
        return result

    def _record(self) -> None:
        """Record a call, which does nothing yet."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                result = self.function()
        except Exception as error:  # of any kind: kernels and libraries raise their own
            torch.cuda.synchronize(self.device)  # what is broken for good is no matter of graphs
            # Ending a recording that failed fails too; the first error says why.
            why = first_line(error.__context__ or error)
            self.tell(f"this step runs without a CUDA graph, as it cannot be recorded: {why}")
        else:
            self.graph, self.result = graph, result
