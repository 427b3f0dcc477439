"""The bank of questions can be imported: each has a title, a text, and one key that can be read."""

import re
from pathlib import Path

import pytest

from qsr.course import exercises

TEXT = (Path(__file__).parents[1] / "docs" / "questions.gift").read_text()
QUESTIONS = re.findall(r"^::(.+?)::(.*?)(?<!\\)\{(.*?)(?<!\\)\}", TEXT, re.S | re.M)
TITLES = [title for title, _, _ in QUESTIONS]


def test_there_are_forty_two_on_all_notebooks():
    assert len(QUESTIONS) == TEXT.count("\n::") == len(set(TITLES)) == 42
    categories = re.findall(r"^\$CATEGORY: qsr/(\d\d[ab]?) ", TEXT, re.M)
    assert categories == sorted({one.number for one in exercises.every()})
    assert {title.partition("-")[0] for title in TITLES} == set(categories)


@pytest.mark.parametrize(("title", "text", "key"), QUESTIONS, ids=TITLES)
def test_a_question_has_one_key(title, text, key):
    bare = re.compile(r"(?<!\\)[~=#{}:]")  # what the format wants escaped inside a text
    assert text.strip() and not bare.search(text)
    key = key.strip()
    if key.startswith("#"):
        value, within = key[1:].split(":")
        assert float(within) >= 0 and float(value) == float(value)
    elif key.startswith(("TRUE", "FALSE")):
        assert re.fullmatch(r"(TRUE|FALSE)(#[^~=#{}:]+)?", key)
    else:
        choices = [part for part in re.split(r"(?=(?<!\\)[~=])", key) if part.strip()]
        assert len(choices) == 4
        assert [choice[0] for choice in choices].count("=") == 1
        answers = [re.split(r"(?<!\\)#", choice[1:])[0].strip() for choice in choices]
        assert len(set(answers)) == 4 and all(answers)
        assert not any(bare.search(answer) for answer in answers)
