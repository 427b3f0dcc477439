"""A packed network of any class in a .qsr file: tensors, bits and a plan, and nothing that runs."""

import functools
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from test_plan import NETWORKS, packed

import qsr
from qsr.bench import steps
from qsr.integer import plan_reference
from qsr.integer.executor import Executor
from qsr.integer.plan_json import from_json, to_json
from qsr.models import zoo
from qsr.models.file import describe, digest, load_regions


def quantised(name, bits=4, **options):
    return qsr.quantize(NETWORKS[name][0](), bits, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_packed_network_comes_back_from_its_file(name, tmp_path):
    net, x = packed(name), torch.randn(NETWORKS[name][1])
    qsr.save(tmp_path / "m.qsr", net, note="mine")
    again = qsr.load(tmp_path / "m.qsr", into=quantised(name))
    assert isinstance(again, NETWORKS[name][0]) and to_json(again.plan) == to_json(net.plan)
    a, b = again(x), net(x)
    assert all(map(torch.equal, *((a, b) if isinstance(a, tuple) else ([a], [b]))))
    about = describe(tmp_path / "m.qsr")
    assert (about["kind"], about["format_version"], about["note"]) == ("network", "2", "mine")


def test_the_plan_of_a_file_is_enough_to_run_its_regions(tmp_path):
    net, x = packed("u-net"), torch.randn(1, 3, 8, 8)
    qsr.save(tmp_path / "m.qsr", net)
    (plan,) = from_json(json.loads(describe(tmp_path / "m.qsr")["plan"]))
    assert plan == net.plan.plans[0]
    (y,) = plan_reference.run(plan, net, [x[0].permute(1, 2, 0)])
    assert torch.equal(y.permute(2, 0, 1)[None], net(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_of_a_file_run_its_regions_without_the_network(name, tmp_path):
    net = packed(name, (3, 4))
    qsr.save(tmp_path / "m.qsr", net)
    plans, layers = load_regions(tmp_path / "m.qsr")
    assert len(plans) == len(net.plan.plans)
    for plan in plans:
        inputs = [torch.randn(24, 1 if plan.rows else 24, v.channels) for v in plan.values]
        inputs = inputs[: len(plan.inputs)]
        if all(a.of([(24, 24)] * 9) == b.of([(24, 24)] * 9) for _, a, b in plan.equal):
            expected = Executor(plan, net)(inputs)
            assert all(map(torch.equal, Executor(plan, layers)(inputs), expected))


def test_bench_times_each_step_of_a_file(tmp_path):
    path = tmp_path / "net.qsr"
    qsr.save(path, packed("dncnn"))
    argv = ["bench", "--model", str(path), "--steps", "--size", "16", "--rounds", "2"]
    shown = subprocess.run(
        [sys.executable, "-m", "qsr", *argv], capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [
        "step", "float", "body.0", "body.2", "body.4", "body.6", "all",
    ]  # fmt: skip
    assert "roofline ms" in shown


def test_the_steps_of_a_quantsr_follow_from_its_file_and_those_of_others_are_refused():
    for name, convolutions in (("quantsr-c-x4-w2a2", 65), ("quantsr-t-x4-w4a4", 4)):
        (plan,), network = load_regions(zoo.find(name))
        assert len(plan.layers) == convolutions
        timed = steps.time_steps([plan], network, 8, rounds=1)
        assert [t.step for t in timed] == [step.layer for step in plan.steps]
    with pytest.raises(ValueError, match="holds a QuantSR that runs without a plan of steps"):
        load_regions(zoo.find("srresnet-x2"))
    with pytest.raises(ValueError, match="height and width are whole windows"):
        steps.time_steps([plan], network, 9, rounds=1)


def test_a_file_needs_its_network_and_says_how():
    with pytest.raises(TypeError, match="what qsr.pack makes of another network"):
        qsr.save("never.qsr", quantised("dncnn"))


@pytest.mark.parametrize(
    ("into", "words"),
    [
        (lambda: quantised("dncnn", (4, 3)), "the layer 'body.0' is .* in the file and"),
        (lambda: quantised("dncnn", (3, 4)), "the layer 'body.0' is .* in the file and"),
        (lambda: quantised("dncnn", skip=["body.0"]), "'body.0' is .* and None in `into`"),
        (lambda: quantised("rows"), "the layer 'body.0'"),
        (lambda: quantised("dncnn", quantizer=qsr.LSQ), "'body.0.tau' is not of this network"),
        (NETWORKS["dncnn"][0], "no quantised layer; pass it through qsr.quantize"),
    ],
)
def test_another_network_is_refused_in_one_line(tmp_path, into, words):
    path = tmp_path / "m.qsr"
    qsr.save(path, packed("dncnn"))
    with pytest.raises(ValueError, match=words):
        qsr.load(path, into=into())


def test_a_file_of_a_quantsr_needs_no_network():
    with pytest.raises(ValueError, match="holds a QuantSR, which needs no `into`"):
        qsr.load("quantsr-c-x4-w4a4", into=quantised("dncnn"))


def test_a_plan_that_does_not_fit_is_refused_though_its_checksum_is_right(tmp_path):
    path = tmp_path / "m.qsr"
    qsr.save(path, packed("dncnn"))
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    plan = json.loads(metadata["plan"])
    plan["order"][1]["steps"][1]["source"] = 4000
    metadata["plan"] = json.dumps(plan)
    metadata["sha256"] = digest(metadata, tensors)
    save_file(tensors, path, metadata)
    for options in ({}, {"into": quantised("dncnn")}):
        with pytest.raises(ValueError, match="step 1 reads value 4000, which is not written yet"):
            qsr.load(path, **options)


def test_a_file_of_before_has_no_graph_and_loads_as_before(tmp_path):
    path = tmp_path / "m.qsr"
    net, x = packed("dncnn"), torch.randn(1, 3, 7, 9)
    qsr.save(path, net)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["graph"]
    metadata["sha256"] = digest(metadata, tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"holds a packed DnCNN.*load\(path, into="):
        qsr.load(path)
    assert torch.equal(qsr.load(path, into=quantised("dncnn"))(x), net(x))


# What stands in a file ----------------------------------------------------------------------------

PLANS = functools.cache(lambda name: json.dumps(to_json(packed(name).plan)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def change_somewhere(described, data, values):
    """Exchange one value of JSON, at any depth, for one that is drawn from `values`."""
    at = described
    while isinstance(at, (dict, list)) and at:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], (dict, list)) or data.draw(st.integers(0, 5)) == 0:
            at[key] = data.draw(values)
            break
        at = at[key]


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_whatever_a_file_says_is_a_plan_or_a_line(data):
    described = json.loads(PLANS(data.draw(st.sampled_from(("odds", "resized", "enlarged")))))
    change_somewhere(described, data, JSON)
    try:
        plans = from_json(described)
    except ValueError as error:
        assert str(error).startswith("the plan ") and "\n" not in str(error)
    else:
        assert all(plan.steps for plan in plans)
