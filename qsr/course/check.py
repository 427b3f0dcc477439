"""Exercises that check themselves: `qsr.check(my_round, solution_round, test_round, mistake=...)`.

An exercise of a notebook is four cells: the task, a stub that raises NotImplementedError, a
solution under another name, and a check. The test is an ordinary function of asserts that takes the
answer as its argument; it tells what is wrong in the words of the exercise:

    def test_round(f):
        assert f(0.4) == 0, "0.4 lies nearer to 0 than to 1"
        assert f(2.5) == 2, "a tie goes to the even neighbour"

As long as the stub is untouched the check runs the solution, so a notebook runs from top to bottom
and every solution is tested. A test that cannot fail is no test, so each check names a mistake, a
wrong answer that a student may give, and the test has to refuse it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable


class WrongAnswer(AssertionError):
    """An answer that its test refuses; a notebook shows the one line that matters, no traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this
        return [f"Not yet: {self}"]


def check(
    yours: Callable,
    solution: Callable | None,
    test: Callable[[Callable], None],
    *,
    mistake: Callable,
) -> None:
    """Check an answer to an exercise by its test, and print one line about it.

    test: a function of asserts, called as test(yours); its messages are shown to the student.
    A bare `raise NotImplementedError` in yours means not attempted: then the solution is tested
    instead, or nothing if it is None (notebooks for students have no solutions).
    mistake: a plausible wrong answer, which the test must refuse by an assert.

    Raises AssertionError (one line, with the test's message) for a wrong answer, an answer that
    raises an error, or a solution that fails its own test; ValueError if the test does not refuse
    the mistake.

    >>> def double(x):
    ...     return x + x
    >>> def test_double(f):
    ...     assert f(3) == 6, "twice 3 is 6"
    >>> check(double, None, test_double, mistake=lambda x: x * x)
    double: correct
    """
    name = _name(yours)
    _require_refusal(test, mistake)
    try:
        wrong = _fault(yours, test)
    except _NotAttempted:
        if solution is None:
            print(f"{name}: not attempted yet")
            return
        try:
            wrong = _fault(solution, test)
        except _NotAttempted:
            wrong = "it is not written yet"
        if wrong:
            raise WrongAnswer(
                f"the solution {_name(solution)} fails its own test: {wrong}"
            ) from None
        print(f"{name}: not attempted yet; the solution passes the test")
        return
    if wrong:
        raise WrongAnswer(
            f"{name}: {wrong} (Change {name}, run its cell, then this one.)"
        ) from None
    print(f"{name}: correct")


class _NotAttempted(Exception):
    """The answer is a stub."""


def _fault(answer: Callable, test: Callable[[Callable], None]) -> str | None:
    """What test says against the answer, in one sentence, or None. Raises _NotAttempted."""
    try:
        test(answer)
    except AssertionError as error:
        return _sentence(str(error) or f"this does not hold: {_last_line(error)}")
    except NotImplementedError as error:
        if not error.args:  # torch raises this too, with a message
            raise _NotAttempted from None
        return _sentence(_told(error))
    except Exception as error:
        return _sentence(_told(error))
    return None


def _require_refusal(test: Callable[[Callable], None], mistake: Callable) -> None:
    try:
        test(mistake)
    except AssertionError:
        return
    except Exception as error:
        raise ValueError(
            f"`mistake` ends in an error instead of a wrong answer: {_told(error)}; the test has "
            "to refuse it by an assert. Name another mistake."
        ) from None
    raise ValueError(
        f"the test {_name(test)} accepts the mistake {_name(mistake)}; a test that cannot fail is "
        "no test. Add an assert that refuses it."
    )


def _told(error: Exception) -> str:
    """An exception in words: its kind, its message, and the line of code that raised it."""
    message = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{message}, raised by: {_last_line(error)}"


def _last_line(error: Exception) -> str:
    """The source of the line that raised."""
    return traceback.extract_tb(error.__traceback__)[-1].line or "a line without source"


def _sentence(words: str) -> str:
    """The words on one line, ending in a full stop."""
    line = " ".join(words.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _name(f: Callable) -> str:
    return getattr(f, "__name__", None) or repr(f)
