"""`--memory` is a promise: the peak of a child that enlarges a picture. `tests/memory_soak.py` has
the large pictures; here is one.
"""

import sys

import pytest
from memory_soak import measure, peak_of, photograph, small_model

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


@only_linux
def test_the_least_memory_holds_for_a_picture_of_four_megapixels(tmp_path):
    peak = measure(tmp_path, 4, scale=2, limit=0.25)
    assert peak.share < 1.25, peak


@only_linux
def test_a_picture_that_must_be_held_whole_is_refused_before_the_work(tmp_path):
    # 16 megapixels of sr, for which the encoder of WebP needs 0.7 GB.
    model, source, target = small_model(tmp_path, 4), tmp_path / "lr.png", tmp_path / "sr.webp"
    photograph(source, 1)
    with pytest.raises(RuntimeError, match="0.5 GB, .* 0.704 of it for what is held whole"):
        peak_of(source, target, model, 0.5)
    assert not target.exists()
