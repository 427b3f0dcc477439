"""`--memory` is a promise: the peak of a child that enlarges a picture. `tests/memory_soak.py` has
the large pictures; here is one.
"""

import sys

import numpy as np
import pytest
import torch
from memory_soak import measure, peak_of, photograph, small_model

import qsr
from qsr.images.picture import Picture, from_array
from qsr.infer import upscaled_rows

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


def test_a_model_gives_back_what_it_keeps_for_the_next_call(tmp_path):
    model = qsr.load(small_model(tmp_path, 2))
    lr = torch.rand(1, 3, 16, 16)
    before = model(lr)
    if model.program is None:
        pytest.skip("without native code nothing is kept")
    assert model.program._idle._waiting
    model.release()
    assert not model.program._idle._waiting
    assert torch.equal(model(lr), before)


def test_gaps_that_memory_does_not_hold_are_refused_before_they_are_filled(tmp_path, monkeypatch):
    model = qsr.load(small_model(tmp_path, 2))
    picture = from_array(np.zeros((64, 64, 4), np.uint8))
    monkeypatch.setattr(Picture, "_around", pytest.fail)
    with pytest.raises(ValueError, match="for what is held whole"):
        next(upscaled_rows(picture, model, memory=picture.gap_bytes / 1e9))
