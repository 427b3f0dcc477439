"""Checks praise right answers, refuse wrong ones in one line, and refuse tests that cannot fail.

PYTEST_DONT_REWRITE: here the messages of plain asserts are what is tested.
"""

import pytest
import torch

import qsr


def stub(x):
    raise NotImplementedError


def double(x):
    return x + x


def square(x):
    return x * x


def test_double(f):
    assert f(3) == 6, "twice 3 is 6"


test_double.__test__ = False  # a test of an exercise, not one of pytest


def told(yours, solution=double, test=test_double, mistake=square, error=AssertionError) -> str:
    """The one line of the error that check raises."""
    with pytest.raises(error) as caught:
        qsr.check(yours, solution, test, mistake=mistake)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_a_right_answer_is_called_correct(capsys):
    assert qsr.check(lambda x: 2 * x, double, test_double, mistake=square) is None
    qsr.check(double, None, test_double, mistake=square)
    assert capsys.readouterr().out == "your answer: correct\ndouble: correct\n"


def test_a_wrong_answer_is_refused_with_the_words_of_the_test():
    def my_double(x):
        return x + 1

    assert told(my_double) == (
        "my_double: twice 3 is 6. (Change my_double, run its cell, then this one.)"
    )


def test_an_untouched_stub_is_not_attempted_and_the_solution_is_tested(capsys):
    qsr.check(stub, double, test_double, mistake=square)
    assert capsys.readouterr().out == ("stub: not attempted yet; the solution passes the test\n")
    assert told(stub, solution=lambda x: 3 * x) == (
        "the solution your answer fails its own test: twice 3 is 6."
    )
    assert "is not written yet" in told(stub, solution=stub)


def test_a_notebook_without_solutions_still_runs(capsys):
    qsr.check(stub, None, test_double, mistake=square)
    assert capsys.readouterr().out == "stub: not attempted yet\n"
    with pytest.raises(AssertionError, match="twice 3"):
        qsr.check(lambda x: 7, None, test_double, mistake=square)


def test_a_test_that_accepts_the_mistake_is_no_test():
    def anything(f):
        f(1)

    message = told(double, test=anything, error=ValueError)
    assert "anything accepts the mistake square" in message
    message = told(stub, test=anything, error=ValueError)
    assert "cannot fail" in message


def test_a_mistake_must_be_refused_by_an_assert_and_not_by_an_accident():
    message = told(double, mistake=lambda x: x / 0, error=ValueError)
    assert "ZeroDivisionError: division by zero, raised by: message = told" in message
    assert "`mistake` ends in an error" in told(double, mistake=stub, error=ValueError)
    assert "names no `mistake`" in told(double, mistake=None, error=ValueError)


def test_an_answer_that_raises_is_told_in_one_line_with_its_code():
    def my_double(x):
        return x + "x"

    assert told(my_double).startswith(
        "my_double: TypeError: unsupported operand type(s) for +: 'int' and 'str', "
        'raised by: return x + "x". (Change'
    )


def test_what_torch_has_not_implemented_is_no_untouched_stub():
    def my_double(x):
        return torch.empty(2, device="meta").numpy()

    def not_bare(x):
        raise NotImplementedError("for 'Half'")

    assert "meta" in told(my_double)
    assert "NotImplementedError: for 'Half'" in told(not_bare)


def test_an_assert_without_words_shows_its_code():
    def terse(f):
        assert f(3) == 6

    message = told(lambda x: 7, test=terse)
    assert "this does not hold: assert f(3) == 6." in message


def test_long_messages_become_one_line():
    def closeness(f):
        torch.testing.assert_close(f(torch.ones(3)), torch.full((3,), 2.0))

    message = told(lambda x: 3 * x, test=closeness, mistake=square)
    assert "Mismatched elements: 3 / 3" in message


def test_an_interrupt_is_no_wrong_answer():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qsr.check(interrupted, double, test_double, mistake=square)


def test_a_notebook_shows_one_line_and_no_traceback():
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell.instance()
    shown = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    shell.run_cell(
        "import qsr\n"
        "def test_it(f):\n    assert f(3) == 6, 'twice 3 is 6'\n"
        "qsr.check(lambda x: 7, None, test_it, mistake=lambda x: x)\n"
    )
    assert len(shown) == 1
    assert shown[0].startswith("Not yet: your answer: twice 3 is 6.")
