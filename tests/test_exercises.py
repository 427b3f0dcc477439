"""Every check accepts what is right in any style, and refuses what a student may believe.

The answers are in answers.py, which prints how many of them a check refuses.
PYTEST_DONT_REWRITE: here the message of a student's own assert is what is tested.
"""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import answers
import numpy as np
import pytest
import torch
from answers import RIGHT, WRONG, refusals, table

import qsr
from qsr.course import exercises
from qsr.course.check import asked, fault
from qsr.course.claims import Draw, exercise, same
from qsr.course.formats import tasks
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
        told = fault(answers.wrong(one)[what], one, seed)
        assert told, f"accepted with seed {seed}"
        assert "\n" not in told and told[-1] in ".!?"
        assert "<lambda>" not in told


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_right_answers_of_any_style_are_accepted(one):
    for answer in answers.right(one):
        for seed in SEEDS:
            assert fault(answer, one, seed) is None


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_no_seed_refuses_a_right_answer(one):
    for seed in range(100, 106 if one.name in ("twice_two", "best_step") else 150):
        assert fault(answers.right(one)[seed % 3], one, seed) is None, seed


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_no_two_wrong_answers_are_refused_by_the_same_claim_alone(one):
    refused = {what: frozenset(refusals(f, one)) for what, f in answers.wrong(one).items()}
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


VARIED = [one for one in EXERCISES if one.numbers]
# Numbers that stand in an example or a question, of which an answer does not know.
EXAMPLES = {"decibels", "four", "eight", "sixteen", "deep", "middle", "shallow", "reach most"}


def deciding(one):
    """The numbers that an answer has to know."""
    chosen = one.chosen().items()
    return {k: n for k, n in chosen if k not in EXAMPLES and f"{one.name} {k}" not in EXAMPLES}


def years_of(one):
    """Years in which every number of the exercise comes."""
    new: dict = {}
    for year in range(2027, 2127):
        for pair in one.of(year).chosen().items():
            new.setdefault(pair, year)
    assert set(new) == {(name, n) for name, ns in one.numbers.items() for n in ns[1:]}
    return sorted(set(new.values()))


@pytest.mark.parametrize("one", VARIED, ids=[one.name for one in VARIED])
def test_in_every_year_the_right_answers_are_accepted_and_the_wrong_ones_refused(one):
    for of in map(one.of, years_of(one)):
        assert not set(of.chosen().items()) & set(one.chosen().items())
        for answer in answers.right(of):
            assert fault(answer, of) is None, of.chosen()
        for what, answer in answers.wrong(of).items():
            assert fault(answer, of), (what, of.chosen())


@pytest.mark.parametrize("one", VARIED, ids=[one.name for one in VARIED])
def test_an_answer_of_another_year_is_refused_where_the_number_decides(one):
    years = [one, *map(one.of, years_of(one))]
    for of, other in itertools.permutations(years, 2):
        refused = fault(answers.right(other)[0], of) is not None
        assert refused == (deciding(of) != deciding(other)), (of.chosen(), other.chosen())


@pytest.mark.parametrize("one", VARIED, ids=[one.name for one in VARIED])
def test_the_solution_of_a_notebook_has_the_numbers_of_a_year_too(one):
    path = Path(__file__).parents[1] / "tutorials" / f"{one.notebook}.ipynb"
    notebook = json.loads(path.read_text())
    imports = next(source_of(c) for c in notebook["cells"] if c.get("id") == "imports")
    for of in map(one.of, years_of(one)):
        (task,) = (t for t in tasks(notebook, one.notebook, of.year) if t.exercise == of)
        names: dict = {}
        exec(f"{imports}\n{task.head}\n{task.body}", names)
        assert fault(names[one.answer], of) is None, of.chosen()


def test_every_number_of_a_task_stands_in_it_as_often_as_is_meant():
    """So that no number of another meaning is replaced."""
    found = {}
    for one in VARIED:
        path = Path(__file__).parents[1] / "tutorials" / f"{one.notebook}.ipynb"
        (task,) = (
            t for t in tasks(json.loads(path.read_text()), one.notebook) if t.exercise == one
        )
        for name, (usual, *_) in one.numbers.items():
            single = replace(one, numbers={name: (usual, "NEW")}, year=2027)
            texts = (task.text, task.hint, task.body)
            found[one.name, name] = tuple(single.retold(text).count("NEW") for text in texts)
    assert found == {  # in the text, in the hint, in the solution
        ("grey_levels", "decibels"): (1, 0, 0),
        ("grey_levels", "most"): (1, 0, 1),
        ("deadline", "four"): (1, 0, 0),
        ("deadline", "eight"): (1, 0, 0),
        ("deadline", "sixteen"): (1, 0, 0),
        ("best_step", "power"): (1, 0, 1),
        ("joint_step", "deep"): (1, 0, 0),
        ("joint_step", "middle"): (1, 0, 0),
        ("joint_step", "shallow"): (1, 0, 0),
        ("regions", "rolled"): (2, 0, 1),
        ("reach", "most"): (1, 0, 3),
        ("intensity", "width"): (3, 2, 8),
        ("saving", "full"): (1, 1, 1),
        ("gap_that_counts", "done"): (1, 0, 1),
        ("packed_bytes", "word"): (2, 1, 2),
        ("start_without_outliers", "share"): (1, 0, 1),
    }


def test_the_guide_for_instructors_has_the_table_that_is_measured():
    guide = (Path(__file__).parents[1] / "docs" / "instructors.md").read_text()
    assert "\n".join(table()) in guide, "python -m tests.answers"


def test_the_guide_for_instructors_names_every_number_of_a_year():
    guide = (Path(__file__).parents[1] / "docs" / "instructors.md").read_text()
    section = guide.partition("### Other numbers next year")[2].partition("###")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    told = [(number, answer, *rest) for number, answer, _, *rest in filter(None, rows)][2:]
    assert told == [
        (
            one.number,
            f"`{one.answer}`",
            f"{usual:g}",
            ", ".join(f"{n:g}" for n in others) + "*" * (name not in deciding(one)),
        )
        for one in VARIED
        for name, (usual, *others) in one.numbers.items()
    ]


@pytest.mark.parametrize("one", EXERCISES, ids=NAMES)
def test_every_claim_has_a_sentence_of_its_own(one):
    sentences = [sentence for _, sentence in one.claims(answers.right(one)[0], Draw(0))]
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

    def of_two(x, y):
        return x + y

    def of_few(x):
        return 2 * x if len(x) < 2 and x.sum() > 9 else None

    for answer, words in (
        (of_few, "twice 1 and 2: "),
        (own_assert, "your own assert says: too small, raised by: assert x.sum() > 5"),
        (no_return, "it gives None whatever it gets; is its `return` missing?"),
        (half_written, "one case still ends in `raise NotImplementedError`."),
        (leaves, "it leaves Python, by: raise SystemExit."),
        (adds, "it changes what it is given; leave the inputs as they are, and return."),
        (of_two, "its parameters are not those of the stub: missing a required argument: 'y'."),
        (lambda: 1, "its parameters are not those of the stub: too many positional arguments."),
        (torch.tensor([2.0, 4.0]), "it is of the type Tensor, and no function."),
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
    qsr.check(lambda x: x + x, None, double)  # as in `my_double = lambda x: x + x`
    qsr.check(stub, my_double, double)
    assert capsys.readouterr().out.splitlines() == [
        "my_double: correct",
        "my_double: correct",
        "stub: not attempted yet; the solution passes the test",
    ]
    with pytest.raises(AssertionError, match="the solution your answer fails its own test"):
        qsr.check(stub, lambda x: x, double)
