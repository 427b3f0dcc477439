"""Exercises that check themselves: `qsr.check(my_slope, solution_slope, exercises.phi_slope)`.

An exercise of a notebook is four cells: the task, a stub that raises NotImplementedError, a
solution under another name, and a check. Its test is one of `qsr.course.exercises`, or, for an
exercise of your own, an ordinary function of asserts that takes the answer as its argument:

    def test_round(f):
        assert f(0.4) == 0, "0.4 lies nearer to 0 than to 1"
        assert f(2.5) == 2, "a tie goes to the even neighbour"

As long as the stub is untouched the check runs the solution, so a notebook runs from top to bottom
and every solution is tested. A test that cannot fail is no test, so a test of asserts comes with a
mistake, a wrong answer that a student may give, and has to refuse it; those of the library are held
to ten and more each, in tests/answers.py.

An answer is asked through `asked`, which keeps what happens inside the answer apart from what the
test says of it: an error, an assert of the student's own, a missing `return`, a changed input.
"""

from __future__ import annotations

import dis
import inspect
import traceback
from collections.abc import Callable, Mapping
from functools import wraps
from types import CodeType

import torch
from torch import Tensor

from .claims import Draw, Exercise

SEED = 0  # of the inputs that a notebook's checks draw


class WrongAnswer(AssertionError):
    """An answer that its test refuses; a notebook shows the one line that matters, no traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for this
        return [f"Not yet: {self}"]


class InAnswer(Exception):
    """What went wrong inside an answer, in words."""


def check(
    yours: Callable,
    solution: Callable | None,
    test: Exercise | Callable[[Callable], None],
    *,
    mistake: Callable | None = None,
) -> None:
    """Check an answer to an exercise by its test, and print one line about it.

    test: one of `qsr.course.exercises`; or a function of asserts, called as test(yours), whose
    messages are shown to the student. Then `mistake` is a plausible wrong answer, which the test
    must refuse by an assert.
    A stub, which does nothing but `raise NotImplementedError`, means not attempted: then the
    solution is tested instead, or nothing if it is None (notebooks for students have no solutions).

    Raises AssertionError (one line, with the test's message) for a wrong answer, an answer that
    raises an error, or a solution that fails its own test; ValueError if the test does not refuse
    the mistake, or names none.

    >>> def double(x):
    ...     return x + x
    >>> def test_double(f):
    ...     assert f(3) == 6, "twice 3 is 6"
    >>> check(double, None, test_double, mistake=lambda x: x * x)
    double: correct
    """
    if not isinstance(test, Exercise):
        _require_refusal(test, mistake)
    name = _name(yours, test.answer if isinstance(test, Exercise) else "your answer")
    if is_stub(yours):
        if solution is None:
            print(f"{name}: not attempted yet")
            return
        wrong = "it is not written yet." if is_stub(solution) else fault(solution, test)
        if wrong:
            raise WrongAnswer(f"the solution {_name(solution)} fails its own test: {wrong}")
        print(f"{name}: not attempted yet; the solution passes the test")
        return
    wrong = fault(yours, test)
    if wrong:
        raise WrongAnswer(f"{name}: {wrong} (Change {name}, run its cell, then this one.)")
    print(f"{name}: correct")


def require(answer: Callable, exercise: Exercise, seed: int = SEED) -> None:
    """Raise AssertionError (one line) unless an answer is right; a stub is not. For graders."""
    wrong = "it is not written yet." if is_stub(answer) else fault(answer, exercise, seed)
    if wrong:
        raise WrongAnswer(f"{_name(answer, exercise.answer)}: {wrong}")


def fault(
    answer: Callable, test: Exercise | Callable[[Callable], None], seed: int = SEED
) -> str | None:
    """What a test says against an answer, in one line, or None for a right answer."""
    try:
        if isinstance(test, Exercise):
            for holds, sentence in test.claims(asked(answer), Draw(seed)):
                if not holds:
                    found = getattr(holds, "found", "")
                    return _sentence(f"{sentence}: {found}" if found else sentence)
        else:
            test(asked(answer))
    except InAnswer as inside:
        return str(inside)
    except AssertionError as error:
        return _sentence(str(error) or f"this does not hold: {_last_line(error)}")
    except Exception as error:  # of a function of asserts that a result was no food for
        return _sentence(_told(error))
    return None


def is_stub(answer: Callable) -> bool:
    """Whether a function does nothing but raise NotImplementedError.

    A function that has more in it, or returns anywhere, was begun, and is no stub.
    """
    code = getattr(answer, "__code__", None)
    if code is None or code.co_names != ("NotImplementedError",):
        return False
    more = ("RETURN", "LOAD_CONST")  # a message is more than a bare NotImplementedError
    return not any(step.opname.startswith(more) for step in dis.get_instructions(code))


def asked(answer: Callable) -> Callable:
    """The answer, as a test asks it: what happens inside it is told as `InAnswer`."""

    @wraps(answer, updated=())
    def ask(*given, **named):
        _require_call(answer, given, named)
        before = _copied((given, named))
        try:
            result = answer(*given, **named)
        except AssertionError as error:
            said = str(error) or "it does not hold"
            raise _inside(f"your own assert says: {said}, raised by: {_last_line(error)}") from None
        except NotImplementedError as error:
            if error.args:  # torch raises this too, with a message
                raise _inside(_told(error)) from None
            raise _inside("one case still ends in `raise NotImplementedError`") from None
        except SystemExit as error:
            raise _inside(f"it leaves Python, by: {_last_line(error)}") from None
        except Exception as error:
            raise _inside(_told(error)) from None
        if result is None and _returns_nothing(answer):
            raise _inside("it gives None whatever it gets; is its `return` missing?")
        if not _equal(before, (given, named)):
            raise _inside("it changes what it is given; leave the inputs as they are, and return")
        return result

    return ask


def _require_call(answer: object, given: tuple, named: dict) -> None:
    """Raise InAnswer for what is no function, or one that cannot be called with these arguments."""
    if not callable(answer):
        raise _inside(f"it is of the type {type(answer).__name__}, and no function")
    try:
        inspect.signature(answer).bind(*given, **named)
    except TypeError as error:
        raise _inside(f"its parameters are not those of the stub: {error}") from None
    except ValueError:
        pass  # functions in C may not say what they take


def _inside(words: str) -> InAnswer:
    return InAnswer(_sentence(words))


def _copied(value):
    """A copy of what a test gives to an answer, with all that could be changed in it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(part) for part in value]
    return value.copy() if hasattr(value, "__array__") or isinstance(value, set) else value


def _equal(before, after) -> bool:
    if isinstance(before, Tensor):
        return before.shape == after.shape and torch.equal(before, after.detach())
    if isinstance(before, dict):
        same_order = list(before) == list(after)
        return same_order and all(_equal(before[key], after[key]) for key in before)
    if isinstance(before, list):
        parts = zip(before, after, strict=False)
        return len(before) == len(after) and all(_equal(b, a) for b, a in parts)
    if hasattr(before, "__array__"):
        return before.shape == after.shape and bool((before == after).all())
    return before is after or before == after


def _returns_nothing(answer: Callable) -> bool:
    """Whether every way through a function ends in None."""
    code = getattr(answer, "__code__", None)
    return isinstance(code, CodeType) and not any(_returned(code))


def _returned(code: CodeType) -> list[bool]:
    """For each place where code returns: whether anything but the constant None."""
    steps = list(dis.get_instructions(code))
    found = []
    for last, step in zip(steps, steps[1:], strict=False):
        if step.opname == "RETURN_CONST":
            found.append(step.argval is not None)
        elif step.opname == "RETURN_VALUE":  # which the other branch of x if .. else None jumps to
            none = last.opname == "LOAD_CONST" and last.argval is None
            found.append(step.is_jump_target or not none)
    return found


def _require_refusal(test: Callable, mistake: Callable | None) -> None:
    if mistake is None:
        raise ValueError(
            f"the check of {_name(test)} names no `mistake` that it refuses; name one."
        )
    try:
        test(asked(mistake))
    except AssertionError:
        return
    except Exception as error:
        words = str(error) if isinstance(error, InAnswer) else _told(error)
        raise ValueError(
            f"`mistake` ends in an error instead of a wrong answer: {words.rstrip('.')}; the test "
            "has to refuse it by an assert. Name another mistake."
        ) from None
    raise ValueError(
        f"the test {_name(test)} accepts the mistake {_name(mistake)}; a test that cannot fail is "
        "no test. Add an assert that refuses it."
    )


def _told(error: BaseException) -> str:
    """An exception in words: its kind, its message, and the line of code that raised it."""
    message = f": {error}" if str(error) else ""
    return f"{type(error).__name__}{message}, raised by: {_last_line(error)}"


def _last_line(error: BaseException) -> str:
    """The source of the line that raised."""
    return traceback.extract_tb(error.__traceback__)[-1].line or "a line without source"


def _sentence(words: str) -> str:
    """The words on one line, ending in a full stop."""
    line = " ".join(words.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _name(f: Callable, otherwise: str = "your answer") -> str:
    """What to call a function: by its name, if it has one of its own."""
    name = getattr(f, "__name__", "<lambda>")
    return otherwise if name == "<lambda>" else name
