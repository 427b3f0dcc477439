"""Processes that are killed while they write: a few of the kills of `make soak`."""

import pytest
from kills import COMMANDS, kill


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_call_leaves_nothing_half_written_and_ends_the_same_when_repeated(name, tmp_path):
    kill(name, tmp_path, kills=2, seed=0)
