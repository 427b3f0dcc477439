"""Model files and training checkpoints: what goes in comes out, and nothing else is taken."""

import errno
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qsr
from qsr.models import file
from qsr.models.file import config_from_json, config_to_json, describe, load_model
from qsr.runs import checkpoints
from qsr.runs.checkpoints import list_checkpoints, load_checkpoint, load_optimizer, save_checkpoint

SMALL = {"features": 4, "blocks": 3}
CONFIGS = {
    "srresnet": qsr.srresnet(2, **SMALL),
    "quantsr_c": qsr.quantsr_c(4, (2, 4), per_channel=True, **SMALL),
    "quantsr_t": qsr.quantsr_t(
        2, attention_bits=(8, 4), quantizer="lsq", layers=2, heads=2, window=4, **SMALL
    ),
}
LR = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def network(name="quantsr_c", order=(2, 0, 1)):
    torch.manual_seed(1)
    net = qsr.QuantSR(CONFIGS[name])
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    net.block_order.copy_(torch.tensor(order))
    return net.eval()


def rewritten(source, target, tensors=None, **metadata):
    """A copy of a model file with other tensors or metadata and a checksum that fits them."""
    tensors = load_file(source) if tensors is None else tensors
    described = {**describe(source), **metadata}
    described = {k: v for k, v in described.items() if v is not None}
    sha256 = metadata.get("sha256", file.digest(described, tensors))
    save_file(tensors, target, {**described, "sha256": sha256})
    return target


def refused(path):
    """The one line with which `path` is refused; it names the file."""
    with pytest.raises(ValueError) as raised:
        load_model(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.qsr"
    qsr.save(path, qsr.pack(network()))
    return path


# Model files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_trained_network_comes_back_as_it_was(tmp_path, name):
    net = network(name)
    qsr.save(tmp_path / "m.qsr", net, note="Set5 38.0 dB")
    again = load_model(tmp_path / "m.qsr")
    assert again.config == net.config and again.order == (2, 0, 1) and not again.training
    assert torch.equal(again(LR), net(LR))
    assert torch.equal(again(LR, again.plan(1)), net(LR, net.plan(1)))
    about = describe(tmp_path / "m.qsr")
    assert (about["format"], about["kind"], about["note"]) == ("qsr", "trained", "Set5 38.0 dB")


@pytest.mark.parametrize("name", ["quantsr_c", "quantsr_t"])
def test_a_packed_network_comes_back_as_it_was_and_smaller(tmp_path, name):
    packed = qsr.pack(network(name))
    qsr.save(tmp_path / "m.qsr", packed)
    again = load_model(tmp_path / "m.qsr")
    assert isinstance(again, qsr.PackedModel)
    assert again.config == packed.config
    for blocks in (None, 1):
        assert torch.equal(again(LR, blocks), packed(LR, blocks))
    assert describe(tmp_path / "m.qsr")["kind"] == "packed"


def test_packing_a_loaded_network_equals_packing_the_original(tmp_path):
    net = network()
    qsr.save(tmp_path / "m.qsr", net)
    assert torch.equal(qsr.pack(load_model(tmp_path / "m.qsr"))(LR), qsr.pack(net)(LR))


def test_a_sliced_network_is_kept_sliced(tmp_path):
    net = network()
    sliced = qsr.slice_depth(net, net.plan(1))
    for i, model in enumerate((sliced, qsr.pack(sliced))):
        qsr.save(tmp_path / f"{i}.qsr", model)
        assert torch.equal(load_model(tmp_path / f"{i}.qsr")(LR), model(LR))


def test_a_network_that_was_never_calibrated_is_kept_and_still_says_so(tmp_path):
    qsr.save(tmp_path / "m.qsr", qsr.QuantSR(CONFIGS["quantsr_c"]))
    with pytest.raises(ValueError, match="qsr.calibrate"):
        load_model(tmp_path / "m.qsr")(LR)


def test_half_precision_is_refused_where_it_would_change_the_network(tmp_path):
    with pytest.raises(ValueError, match="Pack it"):
        qsr.save(tmp_path / "a.qsr", qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=1)), half=True)
    net = qsr.QuantSR(qsr.srresnet(2, blocks=1, features=4))
    for value in (1e5, float("nan")):
        net.head.weight.data[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=r"'head.weight'.*without `half`"):
            qsr.save(tmp_path / "a.qsr", net, half=True)
    assert not list(tmp_path.iterdir())


def test_only_networks_of_this_library_are_saved(tmp_path):
    with pytest.raises(TypeError, match="Conv2d"):
        qsr.save(tmp_path / "m.qsr", torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"it is qsr.save\(path, model\)"):  # as torch.save has them
        qsr.save(qsr.QuantSR(qsr.srresnet(2, blocks=1, features=4)), tmp_path / "m.qsr")
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_file_with_one_damaged_byte_is_refused_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    good, bad = folder / "good.qsr", folder / "bad.qsr"
    if not good.exists():
        qsr.save(good, qsr.pack(network()), note="n" * 200)
    content = bytearray(good.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    bad.write_bytes(content)
    try:
        again = load_model(bad)
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(bad) in str(error)
    else:  # the byte was in the note, or in a setting that a packed network does not use
        assert torch.equal(again(LR), load_model(good)(LR))


def test_a_damaged_tensor_is_noticed_by_the_checksum(model_file):
    content = bytearray(model_file.read_bytes())
    content[-1] ^= 1
    model_file.write_bytes(content)
    assert "checksum" in refused(model_file)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused(model_file, kept):
    content = model_file.read_bytes()
    kept = int(kept * len(content)) if isinstance(kept, float) else kept
    model_file.write_bytes(content[:kept])
    refused(model_file)


def test_files_that_are_no_model_are_refused(tmp_path):
    pickled, foreign, text = tmp_path / "m.pth", tmp_path / "f.safetensors", tmp_path / "t.qsr"
    torch.save(network().state_dict(), pickled)
    assert "not loaded" in refused(pickled)
    save_file({"weight": torch.zeros(2)}, foreign)
    assert "no qsr model" in refused(foreign)
    text.write_text("hello\n" * 100)
    assert "cannot be read" in refused(text)
    assert "is a folder" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "none.qsr")
    for path in (pickled, text, tmp_path, tmp_path / "none.qsr"):
        with pytest.raises(ValueError):
            describe(path)


def test_a_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save(Trap(), tmp_path / "m.qsr")
    refused(tmp_path / "m.qsr")
    assert not (tmp_path / "sprung").exists()


def config_with(**changes):
    return json.dumps({**config_to_json(CONFIGS["quantsr_c"]), **changes})


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format_version": "99"}, "'99'"),
        ({"format_version": None}, "None"),
        ({"kind": "trained"}, "'blocks.0.conv1._extra_state' is not"),  # it is packed
        ({"kind": "zipped"}, "'zipped'"),
        ({"kind": None}, "kind"),
        ({"config": None}, "config"),
        ({"config": "{"}, "Expecting"),
        ({"config": "[1]"}, "does not fit"),
        ({"config": config_with(family="vit")}, "'vit'"),
        ({"config": config_with(dropout=0.1)}, "'dropout'"),
        ({"config": config_with(features=8)}, "has the shape"),
        ({"config": config_with(features=4096)}, "weights, and holds"),
        ({"config": config_with(features=True)}, "`features` is True"),
        ({"config": config_with(blocks="3")}, "`blocks` is '3'"),
        ({"config": config_with(blocks=3.0)}, "`blocks` is 3.0"),
        ({"config": config_with(blocks=1024, depths=[1024])}, "it describes 2048 layers"),
        ({"config": config_with(depths=3)}, "`depths` is 3"),
        ({"config": config_with(depths=[[3]])}, "`depths` is [3]"),
        ({"config": config_with(dropped=[7])}, "`dropped` is (7,)"),
        ({"config": config_with(bits=9)}, "`bits` is 9"),
        ({"config": config_with(bits=[2, 4, 4])}, "`bits` is [2, 4, 4]"),
        ({"config": config_with(layer_bits=[["head"]])}, "`layer_bits` is ('head',)"),
        ({"config": config_with(layer_bits=[["*a*b*", 4]] * 2000)}, "at most 1024"),
        ({"config": config_with(quantizer=["rlq"])}, "`quantizer` is ['rlq']"),
        ({"config": config_with(sharpness=float("nan"))}, "`sharpness` is nan"),
        ({"config": config_with(per_channel=1)}, "`per_channel` is 1"),
        ({"config": "[" * 100_000}, "does not fit"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(model_file, tmp_path, metadata, words):
    assert words in refused(rewritten(model_file, tmp_path / "bad.qsr", **metadata))


def test_tensors_that_are_missing_or_do_not_fit_the_format_are_refused(model_file, tmp_path):
    tensors = load_file(model_file)
    name = "blocks.1.conv2.weight"
    less = {k: v for k, v in tensors.items() if k != name}
    assert name in refused(rewritten(model_file, tmp_path / "less.qsr", less))
    # 4 channels use 4 of the 64 bits of a word.
    stray = {**tensors, name: tensors[name] | (1 << 4)}
    assert "beyond" in refused(rewritten(model_file, tmp_path / "stray.qsr", stray))


SPOILT = {  # tensors of a packed network that no training leaves, and what is said of them
    "an order with a block twice": ("block_order", lambda t: t * 0, "order of blocks"),
    "an order beyond the blocks": ("block_order", lambda t: t + 2**40, "order of blocks"),
    "a step of 0": ("blocks.0.conv1.step_size", lambda t: t * 0, "a step size is 0"),
    "a step below 0": ("blocks.0.conv2.scale", lambda t: -t, "a step size is -"),
    "a step that is none": ("blocks.0.conv1.step_size", lambda t: t * torch.nan, "not finite"),
    "a bias without end": ("head.bias", lambda t: t + torch.inf, "not finite"),
    "weights of another type": ("blocks.0.conv1.weight", lambda t: t.int(), "torch.int32"),
    "one number for many": ("head.bias", lambda t: t[:1], "has the shape [1]"),
    "no sign": ("blocks.0.conv1._extra_state", lambda t: t[:0], "has the shape [0]"),
    "a channel too many": ("blocks.0.conv1.tau", lambda t: torch.cat([t, t[:1]]), "the shape [5]"),
}


@pytest.mark.parametrize(("name", "change", "words"), SPOILT.values(), ids=SPOILT)
def test_values_that_no_training_leaves_are_refused(model_file, tmp_path, name, change, words):
    tensors = load_file(model_file)
    assert words in refused(
        rewritten(model_file, tmp_path / "bad.qsr", {**tensors, name: change(tensors[name])})
    )


def test_a_window_that_would_need_a_terabyte_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="`window` is 4096"):
        qsr.swinir_s(2, window=4096)


def test_whole_numbers_of_numpy_are_whole_numbers():
    config = qsr.quantsr_c(np.int64(2), np.int64(4), blocks=np.int32(3), features=np.uint8(4))
    assert config == qsr.quantsr_c(2, 4, blocks=3, features=4)
    assert json.dumps(config_to_json(config))


def test_equal_models_are_equal_files(tmp_path):
    model = qsr.pack(network())
    for i in range(8):  # safetensors orders metadata anew at each call
        qsr.save(tmp_path / f"{i}.qsr", model, note='a "note"\n\twith \u00e4 \x01')
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert describe(tmp_path / "0.qsr")["note"] == 'a "note"\n\twith \u00e4 \x01'


# Atomic writing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(model_file, monkeypatch, error):
    before = model_file.read_bytes()

    def write_half(path, content):
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise error

    monkeypatch.setattr(pathlib.Path, "write_bytes", write_half)
    with pytest.raises((ValueError, KeyboardInterrupt)) as raised:
        qsr.save(model_file, network())
    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]
    if isinstance(error, OSError):
        assert "No space left" in str(raised.value) and str(model_file) in str(raised.value)


def test_saving_replaces_a_file_unless_told_otherwise(model_file):
    before = model_file.read_bytes()
    with pytest.raises(ValueError, match="is not overwritten"):
        qsr.save(model_file, network(), overwrite=False)
    assert model_file.read_bytes() == before
    qsr.save(model_file, network())
    assert describe(model_file)["kind"] == "trained"


def test_places_that_cannot_be_written_are_told_in_one_line(model_file, tmp_path):
    for path in (tmp_path, tmp_path / "no" / "folder.qsr", model_file / "m.qsr"):
        with pytest.raises(ValueError) as raised:
            qsr.save(path, network())
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


# Configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*CONFIGS.values(), qsr.swinir_s(4), qsr.quantsr_c(dropped=[3])])
def test_a_configuration_survives_json(config):
    again = config_from_json(json.loads(json.dumps(config_to_json(config))))
    assert again == config and type(again) is type(config)


# Training checkpoints -----------------------------------------------------------------------------


def trained_a_little(steps=2):
    net = network().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(LR).mean().backward()
        optimizer.step()
    return net, optimizer


def test_a_checkpoint_restores_network_and_optimiser(tmp_path):
    net, optimizer = trained_a_little()
    path = save_checkpoint(tmp_path, net, optimizer, 2, qsr.TrainConfig(steps=5))
    again, state = load_checkpoint(path)
    assert state["step"] == 2 and qsr.TrainConfig(**state["training"]) == qsr.TrainConfig(steps=5)
    assert torch.equal(again(LR), net(LR))
    other = torch.optim.Adam(again.parameters(), lr=1e-3)
    load_optimizer(path, again, other)
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, value in optimizer.state[p].items():
            assert torch.equal(value, other.state[q][key])


def test_the_memory_of_the_optimiser_comes_back_on_the_device_of_the_network(tmp_path):
    net, optimizer = trained_a_little(1)
    path = save_checkpoint(tmp_path, net, optimizer, 1, qsr.TrainConfig())
    moved = load_checkpoint(path)[0].to("meta")  # a device that is everywhere
    other = torch.optim.Adam(moved.parameters())
    load_optimizer(path, moved, other)
    memory = [value for state in other.state.values() for value in state.values()]
    assert memory and all(value.device.type == "meta" for value in memory)


def test_the_newest_checkpoints_are_kept_in_order(tmp_path):
    net, optimizer = trained_a_little(1)
    for step in (5, 10, 100, 1000):
        save_checkpoint(tmp_path, net, optimizer, step, qsr.TrainConfig(), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000100", "step-00001000"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_that_fails_half_way_is_not_there(tmp_path, monkeypatch):
    net, optimizer = trained_a_little(1)
    first = save_checkpoint(tmp_path, net, optimizer, 1, qsr.TrainConfig())

    def full_disk(tensors, path):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(ValueError, match="No space left"):
        save_checkpoint(tmp_path, net, optimizer, 2, qsr.TrainConfig())
    assert list(tmp_path.iterdir()) == [first]


def test_what_a_killed_process_leaves_behind_is_no_checkpoint(tmp_path):
    net, optimizer = trained_a_little(1)
    first = save_checkpoint(tmp_path, net, optimizer, 1, qsr.TrainConfig())
    shutil.copytree(first, tmp_path / ".qsr-00000000-7-x7f")  # killed before the rename
    (tmp_path / "step-00000003").mkdir()  # killed while removing it
    assert list_checkpoints(tmp_path) == [first]


@pytest.mark.parametrize("name", ["weights", "exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "of another network"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, name, damage):
    net, optimizer = trained_a_little(1)
    path = save_checkpoint(tmp_path, net, optimizer, 1, qsr.TrainConfig())
    file = path / f"{name}.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        save_file({"blocks.0.conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError) as raised:
        again, _ = load_checkpoint(path)
        load_optimizer(path, again, torch.optim.Adam(again.parameters()))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"network": 3}'])
def test_a_checkpoint_with_damaged_state_is_refused_in_one_line(tmp_path, text):
    net, optimizer = trained_a_little(1)
    path = save_checkpoint(tmp_path, net, optimizer, 1, qsr.TrainConfig())
    (path / "state.json").write_text(text)
    with pytest.raises(ValueError) as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
