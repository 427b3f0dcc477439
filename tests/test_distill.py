"""What a student learns from a teacher: attention maps, and the terms that they add to the loss."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import qsr
from qsr.objective import Lesson, Objective, attention_map, transfer_loss

NONE = torch.zeros(())  # the weight of CADyQ's bits
STUDENT = qsr.quantsr_c(2, 4, blocks=2, depths=(2, 1), features=8)


def net(config=STUDENT, seed=0):
    torch.manual_seed(seed)
    net = qsr.QuantSR(config)
    if config.bits is not None:
        qsr.calibrate(net, torch.rand(2, 3, 8, 8))
    return net


def batch():
    lr = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return lr, F.interpolate(lr, scale_factor=2)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**20), scale=st.floats(0.01, 100))
def test_a_map_has_length_1_and_knows_neither_sign_nor_size_nor_the_order_of_channels(seed, scale):
    features = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    maps = attention_map(features)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(attention_map(-scale * features.flip(1)), maps)


def test_the_loss_is_the_formula_of_pams():
    a, b = torch.randn(3, 4, 5, 5), torch.randn(3, 7, 5, 5)
    total = 0.0
    for student, teacher in zip(a, b, strict=True):
        maps = [(x**2).mean(0).flatten() for x in (student, teacher)]
        maps = [m / m.norm() for m in maps]
        total += ((maps[0] - maps[1]) ** 2).sum()
    torch.testing.assert_close(transfer_loss(a, b), total / (3 * 25))
    assert transfer_loss(a, a) == 0


@pytest.mark.parametrize(
    "kinds", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_maps_of_two_types_are_compared_in_the_wider_one(kinds):
    student = torch.randn(2, 4, 5, 5).to(kinds[0]).requires_grad_()
    teacher = torch.randn(2, 4, 5, 5).to(kinds[1])
    loss = transfer_loss(student, teacher)
    loss.backward()
    a, b = (attention_map(x).float() for x in (student, teacher))
    assert loss.dtype == torch.float32 and student.grad.dtype == kinds[0]
    torch.testing.assert_close(loss, F.mse_loss(a, b))


def test_the_objective_adds_the_maps_at_the_end_and_after_each_block():
    student, teacher = net(), net(qsr.srresnet(2, blocks=2, features=8), seed=1)
    lr, hr = batch()
    plain, _, _ = Objective(student, qsr.TrainConfig())(lr, hr, student.plan(2), Lesson(), NONE)
    config = qsr.TrainConfig(transfer=10.0, transfer_blocks=3.0)
    objective = Objective(student, config, teacher)
    loss, l1, _ = objective(lr, hr, student.plan(2), objective.lesson(lr), NONE)
    mine, theirs = [], []
    ends = student.features(lr, watch=mine.append), teacher.features(lr, watch=theirs.append)
    expected = plain + 10 * transfer_loss(*ends)
    expected += 3 * sum(transfer_loss(a, b) for a, b in zip(mine, theirs, strict=True))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(l1, plain.detach())


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_loss_compares_with_the_picture_of_the_teacher(share):
    student, teacher = net(), net(qsr.srresnet(2, blocks=2, features=8), seed=1)
    lr, hr = batch()
    objective = Objective(student, qsr.TrainConfig(distill=share), teacher)
    loss, l1, _ = objective(lr, hr, student.plan(1), objective.lesson(lr), NONE)
    sr = student(lr, student.plan(1))
    expected = (1 - share) * F.l1_loss(sr, hr) + share * F.l1_loss(sr, teacher(lr))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(l1, F.l1_loss(sr, hr).detach())


def test_the_teacher_does_not_learn_and_is_no_part_of_what_does():
    teacher = net(qsr.srresnet(2, blocks=2, features=8), seed=1)
    objective = Objective(net(), qsr.TrainConfig(transfer=1.0), teacher)
    names = {name.split(".")[0] for name in objective.state_dict()}
    assert names == {"net"}
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


def test_the_bits_of_cadyq_cost_more_from_thousand_to_thousand_steps():
    config = qsr.quantsr_c(2, 8, blocks=2, depths=(2,), features=8, quantizer="cadyq")
    student, (lr, hr) = net(config), batch()

    def loss(weight, step):
        training = qsr.TrainConfig(bit_weight=weight)
        weight = torch.tensor(training.bit_weight_at(step))
        return Objective(student, training)(lr, hr, student.plan(2), Lesson(), weight)[0].item()

    at = [loss(0.0, 0), loss(0.1, 999), loss(0.1, 1000)]
    with qsr.CADyQ.looking_at(lr) as scene:
        student(lr)
    cost = 0.1 * scene.cost().item()
    assert at[1] - at[0] == pytest.approx(cost, rel=1e-4)
    assert at[2] - at[0] == pytest.approx(1.01 * cost, rel=1e-4)


def test_a_teacher_that_is_missing_or_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="there is none. Pass one"):
        Objective(net(), qsr.TrainConfig(transfer=1.0))
    other = net(qsr.srresnet(2, blocks=3, features=8))
    with pytest.raises(ValueError, match="the teacher has 3 blocks and the network 2"):
        Objective(net(), qsr.TrainConfig(transfer_blocks=1.0), other)
    with pytest.raises(ValueError, match="the teacher has scale 4 and the network 2"):
        Objective(net(), qsr.TrainConfig(distill=0.5), net(qsr.srresnet(4, blocks=2, features=8)))


def test_a_run_with_a_teacher_brings_the_features_closer(tmp_path):
    teacher = net(qsr.srresnet(2, blocks=2, features=8), seed=1)
    lr, _ = batch()

    def distance(student):
        with torch.no_grad():
            return transfer_loss(student.features(lr), teacher.features(lr)).item()

    data, distances = qsr.Patches("embedded", 2, patch=8, batch=2), []
    for weight in (0.0, 1e5):
        config = qsr.TrainConfig(steps=40, learning_rate=3e-3, joint=False, transfer=weight)
        student = net()
        qsr.fit(student, data, config, tmp_path / str(weight), teacher=teacher)
        distances.append(distance(student))
    assert distances[1] < 0.95 * distances[0]
