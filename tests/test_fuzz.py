"""Changed files of each kind end in a result or in one line: some hundreds here, see tests/fuzz."""

import pytest
from fuzz import fuzz
from fuzz.kinds import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_are_taken_or_refused_in_one_line(kind):
    found = fuzz(kind, seed=1, first=0, cases=200, seconds=20)
    assert found.wrong == []
    assert {"taken", "refused"} == set(found.counts)
