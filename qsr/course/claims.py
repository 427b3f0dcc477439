"""What a test of an exercise says: claims about an answer, each with its sentence.

A test is a generator. It asks the answer `f`, and yields a verdict and the sentence that a student
reads where the verdict is no:

    @exercise("01_redistribution_quantization", "my_double")
    def double(f, draw):
        x = draw.real(-9, 9)
        yield same(f(x), 2 * x), f"twice {x:.3g}"

Inputs are drawn, so no answer can know them beforehand, and whoever has another seed has other
inputs: a student's check and an instructor's differ in nothing else. Results are compared as
numbers: a list, a tuple, an array, float64 or a tensor without dimensions is right where its
numbers are.

A number that stands in a task may be another one in another year: `exercise(..., share=(99, 95))`
gives the test an argument `share`, the usual value first, and `of(2027)` is the exercise of a year.
`retold` says a text of it, a task or a solution, with the numbers of that year.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """Yes or no, and for a no what was found in place of what is right."""

    holds: bool
    found: str = ""

    def __bool__(self) -> bool:
        return self.holds


Claims = Iterator[tuple["bool | Verdict", str]]


@dataclass(frozen=True)
class Exercise:
    """A test, the notebook that it belongs to, and the name that an answer has there."""

    notebook: str
    answer: str
    test: Callable[..., Claims]
    # Of its task: the usual value and those of other years.
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict, hash=False)
    year: int | None = None  # whose numbers they are; None: the usual ones

    def claims(self, f: Callable, draw: Draw) -> Claims:
        """The claims about an answer."""
        return self.test(f, draw, **self.chosen())

    def of(self, year: int | None) -> Exercise:
        """The exercise of a year: where its task has numbers, they are others than the usual ones.

        >>> one = Exercise("07", "mine", lambda f, draw, share: iter(()), {"share": (99, 95, 98)})
        >>> one.chosen(), one.of(2027).chosen() == one.of(2027).chosen()
        ({'share': 99}, True)
        """
        return replace(self, year=year)

    def chosen(self) -> dict[str, float]:
        """The numbers of its task."""
        draw = random.Random(f"{self.name} {self.year}")
        return {
            name: values[0] if self.year is None else draw.choice(values[1:])
            for name, values in self.numbers.items()
        }

    def retold(self, text: str) -> str:
        """A text with the usual numbers of the task, told with those of its year.

        A number is told by its value; a part of a word or of another number is none.

        >>> one = Exercise("07", "mine", lambda f, draw, share: iter(()), {"share": (99, 95)})
        >>> one.of(2027).retold("99 % of 990, and 0.99.")
        '95 % of 990, and 0.99.'
        """
        others = self.chosen()
        new = {str(values[0]): str(others[name]) for name, values in self.numbers.items()}
        if not new:
            return text
        usual = "|".join(map(re.escape, new))
        return re.sub(rf"(?<![\w.])({usual})(?!\w|\.\d)", lambda found: new[found[0]], text)

    @property
    def name(self) -> str:
        """The name of the exercise: that of its test."""
        return self.test.__name__

    @property
    def number(self) -> str:
        """The number of its notebook, such as 04a."""
        return self.notebook.partition("_")[0]


def exercise(
    notebook: str, answer: str, **numbers: Sequence[float]
) -> Callable[[Callable[..., Claims]], Exercise]:
    """Make an exercise of a test, which is called with the answer, a `Draw` and the numbers."""
    return lambda test: Exercise(notebook, answer, test, numbers)


@dataclass(frozen=True)
class Draw:
    """Random inputs from a seed.

    >>> Draw(3).whole(1, 6) == Draw(3).whole(1, 6)
    True
    """

    seed: int
    _random: random.Random = field(init=False, repr=False, compare=False)
    _torch: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_random", random.Random(self.seed))
        object.__setattr__(self, "_torch", torch.Generator().manual_seed(self.seed))

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return self._random.randint(low, high)

    def real(self, low: float, high: float) -> float:
        """A number between low and high."""
        return self._random.uniform(low, high)

    def one(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return self._random.choice(choices)

    def some(self, count: int, choices: Sequence[T]) -> list[T]:
        """Different ones of the choices, in any order."""
        return self._random.sample(choices, count)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """float32 between low and high."""
        return low + (high - low) * torch.rand(shape, generator=self._torch)

    def normal(self, *shape: int) -> Tensor:
        """float32, standard normal."""
        return torch.randn(shape, generator=self._torch)

    def until(self, holds: Callable[[T], bool], make: Callable[[], T]) -> T:
        """The first one made that holds, of at most 10,000."""
        return next(made for made in (make() for _ in range(10_000)) if holds(made))


def numbers(value: object) -> Tensor | None:
    """The numbers of a result, float64: of a tensor, an array, a number, or a list of these.

    None if it is something else, or ragged.

    >>> numbers([1, np.float32(2), torch.tensor(3)])
    tensor([1., 2., 3.], dtype=torch.float64)
    >>> numbers("1"), numbers(None), numbers([[1], [2, 3]])
    (None, None, None)
    """
    if isinstance(value, Tensor):
        return None if value.is_complex() else value.detach().cpu().double()
    if isinstance(value, (np.ndarray, np.generic)):
        real = value.dtype.kind in "biuf"
        return torch.from_numpy(np.array(value, np.float64)) if real else None
    if isinstance(value, Real):
        return torch.tensor(float(value), dtype=torch.float64)
    if isinstance(value, (list, tuple, range)):
        parts = [part for part in map(numbers, value) if part is not None]
        if len(parts) == len(value) and len({part.shape for part in parts}) <= 1:
            return torch.stack(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return None


def same(got: object, right: object, rtol: float = 1e-4, atol: float = 1e-6) -> Verdict:
    """Whether the numbers of two results agree: in shape, and each within atol + rtol |right|.

    >>> same([1, 2.0], torch.tensor([1.0, 2.0]))
    Verdict(holds=True, found='')
    >>> same([1, 3], [1, 2]).found, same(1, [1, 2]).found, same("1", 1).found
    ('at [1] it is 3, not 2', 'its shape is (), not (2,)', "'1' is no number")
    """
    found, wanted = numbers(got), numbers(right)
    assert wanted is not None, "what is right consists of numbers"
    if found is None:
        several = "hold numbers alone" if isinstance(got, (list, tuple)) else "is no number"
        return Verdict(False, f"{_short(got)} {'does not ' if several[0] == 'h' else ''}{several}")
    if found.shape != wanted.shape:
        return Verdict(False, f"its shape is {tuple(found.shape)}, not {tuple(wanted.shape)}")
    near = torch.isclose(found, wanted, rtol=rtol, atol=atol)
    if near.all():
        return Verdict(True)
    place = tuple((~near).nonzero()[0].tolist())
    at = f"at {list(place)} " if place else ""
    return Verdict(False, f"{at}it is {found[place].item():.6g}, not {wanted[place].item():.6g}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
