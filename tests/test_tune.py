"""qsr.tune: what a few steps against the float network give, and that a run can stop anywhere."""

import copy
import shutil

import pytest
import torch
from test_quantize import quietly
from torch import nn

import qsr
from qsr.runs.checkpoints import list_checkpoints
from qsr.runs.log import read_log
from qsr.runs.tune import recipe, tune


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Dropout(0.5),
        nn.Conv2d(8, 3, 3, padding=1),
    ).eval()  # fmt: skip


def batches(step):
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(step))


def labelled(step):
    x = batches(step)
    return x, 0.9 * x


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CONFIG = recipe(24)


def test_a_tiny_network_comes_closer_to_float_in_seconds():
    teacher = small()
    before = state(teacher)
    student = quietly(teacher, 2)
    student.train()
    tuned = tune(student, teacher, batches, steps=150)
    assert tuned.start < tuned.calibrated < tuned.tuned - 0.5
    assert tuned.finished and tuned.steps == 150
    assert f"{tuned.tuned:.2f} tuned (150 steps" in str(tuned)
    assert same(before, state(teacher)) and student.training and not teacher.training


def test_what_comes_back_is_the_best_state_on_held_out_inputs():
    teacher, student = small(), quietly(small(), 3)
    held_out = [batches(1000)]
    tuned = tune(student, teacher, batches, steps=30, held_out=held_out)
    student.eval()
    error = (student(held_out[0]) - teacher(held_out[0])).square().mean()
    assert abs(-10 * error.log10().item() - tuned.tuned) < 1e-3


def test_what_training_spoils_is_given_back_as_it_was_calibrated():
    teacher, student = small(), quietly(small(), 3)
    config = qsr.TrainConfig(**{**vars(CONFIG), "learning_rate": 0.5, "ema": 0.0})
    tuned = tune(student, teacher, batches, config=config)
    assert tuned.tuned == tuned.calibrated
    calibrated = quietly(teacher, 3)
    qsr.calibrate(calibrated, batches(0), method="output")
    assert same(state(student), state(calibrated))


def test_a_run_that_is_stopped_ends_with_the_bytes_of_one_that_is_not(tmp_path):
    teacher = small()
    whole, parts = quietly(teacher, 3), quietly(teacher, 3)
    tune(whole, teacher, batches, folder=tmp_path / "whole", config=CONFIG)
    calls = 0
    while True:
        again = copy.deepcopy(parts)  # as a new process has it: not calibrated
        tuned = tune(
            again, teacher, batches, folder=tmp_path / "parts", config=CONFIG, max_seconds=0
        )
        calls += 1
        if tuned.finished:
            break
    assert calls == 24
    assert same(state(again), state(whole))
    last = [list_checkpoints(tmp_path / name)[-1] for name in ("whole", "parts")]
    for name in ("weights", "average", "exp_avg", "exp_avg_sq"):
        a, b = ((path / f"{name}.safetensors").read_bytes() for path in last)
        assert a == b, name
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    kept = [line for line in lines[1] if line["step"] in {line["step"] for line in lines[0]}]
    assert kept == lines[0]
    done = tune(copy.deepcopy(parts), teacher, batches, folder=tmp_path / "whole", config=CONFIG)
    assert done.steps == 24 and done.start == tuned.start


def test_the_truth_can_have_a_share():
    teacher = small()
    students = [quietly(teacher, 3) for _ in range(2)]
    config = qsr.TrainConfig(**{**vars(CONFIG), "distill": 0.2})
    for student, data in zip(students, (labelled, batches), strict=True):
        if data is labelled:
            tune(student, teacher, data, config=config)
        else:
            with pytest.raises(ValueError, match="have no truth"):
                tune(student, teacher, data, config=config)


def test_a_list_of_pictures_is_refused_with_the_function_that_takes_turns_in_it():
    with pytest.raises(TypeError, match=r"is a list.*takes turns"):
        tune(quietly(small(), 4), small(), [batches(0)])


def test_a_folder_of_another_run_is_refused(tmp_path):
    teacher = small()
    tune(quietly(teacher, 3), teacher, batches, folder=tmp_path, config=CONFIG)
    with pytest.raises(ValueError, match="`match` is 0.1, not 0.5"):
        tune(quietly(teacher, 3), teacher, batches, folder=tmp_path, config=CONFIG, match=0.5)
    with pytest.raises(ValueError, match="`student` is"):
        tune(quietly(teacher, 4), teacher, batches, folder=tmp_path, config=CONFIG)
    shutil.rmtree(tmp_path)


def test_in_bfloat16_and_on_patches_of_pictures_it_learns_as_well():
    teacher = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)).eval()
    student = quietly(teacher, 3)
    config = qsr.TrainConfig(**{**vars(recipe(40)), "precision": "bfloat16"})
    patches = qsr.Patches("embedded", scale=2, patch=12, batch=4)
    tuned = tune(student, teacher, patches, config=config)
    assert tuned.tuned > tuned.calibrated


def test_a_loss_that_is_not_finite_stops_the_run():
    teacher = small()

    def broken(step):
        return batches(step) * (float("nan") if step == 3 else 1.0)

    with pytest.raises(ValueError, match="step 4: the loss is nan"):
        tune(quietly(teacher, 3), teacher, broken, config=CONFIG, held_out=[batches(9)])
