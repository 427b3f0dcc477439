"""Every check accepts what is right in any style, and refuses what a student may believe.

The answers are in answers.py, which prints how many of them a check refuses.
PYTEST_DONT_REWRITE: here the message of a student's own assert is what is tested.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from answers import RIGHT, WRONG, refusals, table

import qsr
from qsr.course import exercises
from qsr.course.check import asked, fault
from qsr.course.claims import Draw, exercise, same
from qsr.course.student import source_of

EXERCISES = list(exercises.every())
NAMES = [one.name for one in EXERCISES]
CASES = [(one, what) for one in EXERCISES for what in WRONG[one.name]]
SEEDS = (0, 1, 2)  # a notebook's, and two that an instructor may have


def test_every_exercise_has_ten_wrong_answers_and_three_right_ones():
    assert list(RIGHT) == list(WRONG) == NAMES
    assert min(map(len, WRONG.values())) >= 10
    assert min(map(len, RIGHT.values())) >= 3


@pytest.mark.parametrize(("one", "what"), CASES, ids=[f"{e.name}: {w}" for e, w in CASES])
def test_a_wrong_answer_is_refused_in_one_line(one, what):
    for seed in SEEDS:
        told = fault(WRONG[one.name][what], one, seed)
        assert told, f"accepted with seed {seed}"
        assert "\n" not in told and told[-1] in ".!?"
        assert "<lambda>" not in told


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_right_answers_of_any_style_are_accepted(one):
    for answer in RIGHT[one.name]:
        for seed in SEEDS:
            assert fault(answer, one, seed) is None


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_no_seed_refuses_a_right_answer(one):
    for seed in range(100, 106 if one.name in ("twice_two", "best_step") else 150):
        assert fault(RIGHT[one.name][seed % 3], one, seed) is None, seed


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_no_two_wrong_answers_are_refused_by_the_same_claim_alone(one):
    refused = {what: frozenset(refusals(f, one)) for what, f in WRONG[one.name].items()}
    alone = Counter(claims for claims in refused.values() if len(claims) == 1)
    twice = {claims for claims, times in alone.items() if times > 1}
    assert not [what for what, claims in refused.items() if claims in twice]


def test_the_answers_that_were_once_accepted_are_in_the_lists():
    for name, what in {
        "phi_slope": "k is ignored",
        "greedy": "forward, from nothing",
        "body": "no gradient to the shortcut",
        "scores": "step_k forgotten",
        "dorefa": "no tanh",
        "packed_bytes": "at most two words",
        "gap_that_counts": "another threshold, 0.05",
        "twice_two": "the model for 4, once",
    }.items():
        assert what in WRONG[name]


def test_a_year_has_numbers_of_its_own_and_refuses_those_of_another():
    def start(share):
        return lambda x, qmax: x.abs().flatten().quantile(share / 100) / qmax

    def dense(width):
        return lambda rows, bits: (
            rows * width**2 / ((rows + width) * width * bits / 8 + rows * width * 4)
        )

    varied = {exercises.start_without_outliers: start, exercises.intensity: dense}
    assert {one.name for one in varied} == {one.name for one in EXERCISES if one.numbers}
    for one, answer in varied.items():
        ((name, usual),) = one.chosen().items()
        assert usual == one.numbers[name][0] and fault(answer(usual), one) is None
        years = [one.of(year) for year in range(2027, 2047)]
        assert len({of.chosen()[name] for of in years}) == len(one.numbers[name])
        for of in years:
            right = of.chosen()[name]
            assert fault(answer(right), of) is None, (name, right)
            assert all(fault(answer(n), of) for n in one.numbers[name] if n != right)


def test_every_number_of_a_task_stands_in_it():
    for one in EXERCISES:
        path = Path(__file__).parents[1] / "tutorials" / f"{one.notebook}.ipynb"
        cells = json.loads(path.read_text())["cells"]
        stub = next(i for i, c in enumerate(cells) if f"def {one.answer}(" in source_of(c))
        for usual in one.chosen().values():
            assert re.search(rf"\b{usual}\b", source_of(cells[stub - 1])), one.name


def test_the_guide_for_instructors_has_the_table_that_is_measured():
    guide = (Path(__file__).parents[1] / "docs" / "instructors.md").read_text()
    assert "\n".join(table()) in guide, "python -m tests.answers"


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_every_claim_has_a_sentence_of_its_own(one):
    sentences = [sentence for _, sentence in one.claims(RIGHT[one.name][0], Draw(0))]
    assert all(sentences)
    assert len(set(sentences)) == len(sentences) >= 5


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_a_result_that_is_no_number_is_refused_and_breaks_nothing(one):
    for result in ("1", [], [None], object(), [[1], [2, 3]], np.array(["a"]), {"a": 1}):
        told = fault(lambda *given, result=result: result, one)
        assert told and "Error" not in told


def test_numbers_are_compared_whatever_holds_them():
    for right in ([1.0, 2.0], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)):
        assert same(right, [1, 2])
    for right in (3, 3.0, np.float32(3), torch.tensor(3.0), torch.tensor(3.0, requires_grad=True)):
        assert same(right, 3)
    assert same([], []) and same([torch.tensor(1), np.int8(2)], [1, 2])
    for wrong in ([1], [1, 3], [[1, 2]], "12", None, [1, None], {1, 2}, [1, float("nan")], 1j):
        assert not same(wrong, [1, 2])


@exercise("99", "my_double")
def double(f, draw):
    """For the tests below."""
    x = torch.tensor([1.0, 2.0])
    yield same(f(x), [2, 4]), "twice 1 and 2"
    yield same(f(x), [2, 4]), "twice 1 and 2 again"


def test_what_happens_in_an_answer_is_told_as_its_own():
    def own_assert(x):
        assert x.sum() > 5, "too small"
        return 2 * x

    def no_return(x):
        x = 2 * x

    def half_written(x):
        y = 2 * x
        if len(y) == 2:
            raise NotImplementedError
        return y

    def leaves(x):
        raise SystemExit

    def adds(x):
        return x.mul_(2)

    for answer, words in (
        (own_assert, "your own assert says: too small, raised by: assert x.sum() > 5"),
        (no_return, "it gives None whatever it gets; is its `return` missing?"),
        (half_written, "one case still ends in `raise NotImplementedError`."),
        (leaves, "it leaves Python, by: raise SystemExit."),
        (adds, "it changes what it is given; leave the inputs as they are, and return."),
        (lambda x: x, "twice 1 and 2: at [0] it is 1, not 2."),
        (lambda x: [1], "twice 1 and 2: its shape is (1,), not (2,)."),
    ):
        assert words in fault(answer, double)


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2]],
        [{"a": 1, "b": 2}],
        [torch.ones(2)],
        [np.ones(2)],
        [{1, 2}],
        [(torch.ones(2), [1])],
    ],
    ids=str,
)
def test_a_changed_input_is_noticed_whatever_it_is(given):
    def change(x):
        if isinstance(x, tuple):
            x[1].append(2)
        elif isinstance(x, (set, dict)):
            x.add(3) if isinstance(x, set) else x.update(b=3)
        else:
            x[0] = 7
        return 1

    assert asked(lambda x: 1)(*given) == 1
    with pytest.raises(Exception, match="changes what it is given"):
        asked(change)(*given)


def test_an_exercise_of_the_library_is_checked_by_its_claims(capsys):
    def my_double(x):
        return [2 * v for v in x.tolist()]

    def stub(x):
        """A text."""
        raise NotImplementedError  # 1 line

    qsr.check(my_double, None, double)
    qsr.check(lambda x: x + x, None, double)
    qsr.check(stub, my_double, double)
    assert capsys.readouterr().out.splitlines() == [
        "my_double: correct",
        "your answer: correct",
        "stub: not attempted yet; the solution passes the test",
    ]
    with pytest.raises(AssertionError, match="the solution your answer fails its own test"):
        qsr.check(stub, lambda x: x, double)
