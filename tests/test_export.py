"""ONNX files: they compute what qsr computes, on pictures of any size, and hold integers.

Float sums in another order can tip a code over its threshold, so a few values may differ.
"""

import functools
import json

import numpy as np
import pytest
import torch

import qsr
from qsr import cli
from qsr.export import onnx as export

INSTALL = "pip install -e '.[onnx]' in a clone of qsr"
onnx = pytest.importorskip("onnx", reason=f"needs onnx: {INSTALL}")
onnxruntime = pytest.importorskip("onnxruntime", reason=f"needs onnxruntime: {INSTALL}")

SMALL_C = functools.partial(qsr.quantsr_c, blocks=3, depths=(3, 1), features=8)
SMALL_T = functools.partial(
    qsr.quantsr_t, blocks=2, depths=(2, 1), features=12, heads=2, layers=2, window=4
)


@torch.no_grad()
def network(config):
    """A network in which every part counts: as it is made, attention and shortcuts hardly do."""
    torch.manual_seed(0)
    net = qsr.QuantSR(config).eval()
    for name, value in net.named_parameters():
        if name.endswith("shortcut.scale"):
            value.copy_(torch.rand(()) + 0.5)
        elif name.endswith("position_bias"):
            value.normal_()
        elif value.ndim == 2:  # of linear layers
            value.normal_(std=value.shape[1] ** -0.5)
    if config.bits is not None:
        qsr.calibrate(net, torch.rand(1, 3, 16, 16))
        for name, value in net.named_parameters():
            if name.endswith("tau"):
                value.copy_(torch.randn_like(value) / 4)
    return net


def run(made, lr):
    """sr by onnxruntime, of an ONNX model or a file."""
    source = made if isinstance(made, (str, bytes)) else made.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])


def assert_alike(ours, theirs):
    """Equal up to rounding, but for what a few tipped codes change."""
    assert ours.shape == theirs.shape
    different = (ours - theirs).abs() > 1e-4
    assert different.float().mean() < 0.05


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        qsr.srresnet(2, blocks=2, features=8),
        qsr.srresnet(3, blocks=2, features=8),
        qsr.srresnet(4, blocks=2, features=8),
        SMALL_C(2, 4),
        SMALL_C(3, 2),
        SMALL_C(4, 8),
        SMALL_C(2, (3, 5)),
        SMALL_C(2, 4, per_channel=True),
        SMALL_C(2, 4, quantize_body_conv=False),
        SMALL_C(2, 4, layer_bits=(("body_conv", (8, 4)),)),
        SMALL_C(2, 4, quantizer="lsq"),  # without tau
        SMALL_C(2, 8, quantizer="lsq"),
        SMALL_C(2, 4, quantizer="pams"),
        SMALL_C(2, 8, quantizer="pams"),
        SMALL_C(2, 4, quantizer="dorefa"),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_residual_network_gives_the_same_picture_in_onnxruntime(config):
    net = network(config)
    made = export.onnx_model(net)
    for shape in ((1, 3, 1, 1), (2, 3, 5, 7), (1, 3, 13, 8)):
        lr = torch.rand(shape)
        assert_alike(net(lr), run(made, lr))


@pytest.mark.parametrize(
    "config",
    [
        qsr.swinir_s(2, blocks=2, features=12, heads=2, layers=2),
        qsr.swinir_s(4, blocks=1, features=12, heads=3, layers=3, window=4, mlp_ratio=1),
        SMALL_T(2, 4),
        SMALL_T(3, 2),
        SMALL_T(4, 8),
        SMALL_T(2, 4, per_channel=True),
        SMALL_T(2, 4, quantize_body_conv=True),
        SMALL_T(2, 4, quantizer="lsq"),
        SMALL_T(2, 4, attention_bits=4),
        SMALL_T(2, 2, attention_bits=(8, 3)),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_swin_network_gives_the_same_picture_in_onnxruntime_at_any_size(config):
    net = network(config)
    made = export.onnx_model(net)
    # Smaller than the padding, less than a window, whole windows, and neither.
    for shape in ((1, 3, 1, 1), (1, 3, 2, 3), (2, 3, 16, 8), (3, 3, 9, 22)):
        lr = torch.rand(shape)
        assert_alike(net(lr), run(made, lr))


@torch.no_grad()
def test_the_mask_of_shifted_windows_counts_in_the_comparison(monkeypatch):
    net, lr = (
        network(qsr.swinir_s(2, blocks=1, features=12, heads=2, layers=2)),
        torch.rand(1, 3, 9, 22),
    )
    attention = export.OnnxSteps._attention
    monkeypatch.setattr(
        export.OnnxSteps,
        "_attention",
        lambda self, x, layer, masked: attention(self, x, layer, False),
    )
    with pytest.raises(AssertionError):
        assert_alike(net(lr), run(export.onnx_model(net), lr))


@pytest.mark.parametrize("config", [SMALL_C(2, 4), SMALL_T(2, 4, attention_bits=4)])
@torch.no_grad()
def test_a_packed_network_and_its_depths_come_out_alike(config):
    net, lr = network(config), torch.rand(2, 3, 9, 10)
    packed = qsr.pack(net)
    sizes = []
    for blocks in config.depths:
        made = export.onnx_model(packed, blocks)
        assert_alike(packed(lr, blocks), run(made, lr))
        assert_alike(packed(lr, blocks), run(export.onnx_model(net, blocks), lr))
        sizes.append(made.ByteSize())
    assert sizes[0] > sizes[1]  # blocks that do not run are not in the file


@torch.no_grad()
def test_a_sliced_network_can_be_exported():
    net, lr = network(SMALL_C(2, 4)), torch.rand(1, 3, 6, 5)
    sliced = qsr.slice_depth(net, net.plan(1))
    assert_alike(net(lr, net.plan(1)), run(export.onnx_model(sliced), lr))


@torch.no_grad()
def test_a_network_of_doubles_becomes_a_file_of_floats():
    net, lr = network(SMALL_C(2, 4)), torch.rand(1, 3, 6, 5)
    assert_alike(net(lr), run(export.onnx_model(net.double()), lr))


# What is in a file --------------------------------------------------------------------------------


def stored_codes(made, name):
    (constant,) = (c for c in made.graph.initializer if c.name.startswith(name + "_"))
    return constant.data_type, onnx.numpy_helper.to_array(constant).astype(np.int8)


@pytest.mark.parametrize(
    "bits, kind", [(2, "INT4"), (3, "INT4"), (4, "INT4"), (5, "INT8"), (8, "INT8")]
)
def test_weights_are_stored_as_their_codes(bits, kind):
    net = network(SMALL_C(2, bits, features=3))  # 81 weights: an odd number
    stored, codes = stored_codes(export.onnx_model(net), "blocks.1.conv2")
    layer = net.blocks[1].conv2
    assert stored == getattr(onnx.TensorProto, kind)
    assert np.array_equal(codes, layer.weight_quantizer.codes(layer.weight).numpy())


def test_weights_of_4_bits_take_4_bits_in_the_file():
    sizes = [
        export.onnx_model(network(SMALL_C(2, bits, features=32))).ByteSize() for bits in (4, 8)
    ]
    saved = 7 * 9 * 32 * 32 / 2  # bytes of 7 convolutions; beside them a Clip and its two ends each
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.03)


def test_linear_weights_are_stored_as_their_codes():
    net = network(SMALL_T(2, 4))
    linear = net.blocks[0].layers[1].attention.qkv
    _, codes = stored_codes(export.onnx_model(net), "blocks.0.layers.1.attention.qkv")
    assert np.array_equal(codes, linear.weight_quantizer.codes(linear.weight).numpy().T)


def test_every_quantised_input_is_a_pair_of_quantiser_and_inverse():
    nodes = export.onnx_model(network(SMALL_C(2, 4))).graph.node
    made_by = {node.output[0]: node for node in nodes}
    quantisers = [node for node in nodes if node.op_type == "QuantizeLinear"]
    assert len(quantisers) == 3 * 2 + 1
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in made_by:
            assert list(node.input[1:]) == list(
                made_by[node.input[0]].input[1:]
            )  # one step, one zero
            quantisers.remove(made_by[node.input[0]])
    assert not quantisers


def test_a_file_says_which_of_its_sizes_are_open():
    made = export.onnx_model(network(SMALL_C(2, 4)))
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (made.graph.input[0], made.graph.output[0])
    ]
    assert shapes == [["N", 3, "H", "W"], ["N", 3, "2*H", "2*W"]]
    assert (made.graph.input[0].name, made.graph.output[0].name) == ("lr", "sr")
    assert made.producer_name == "qsr" and made.producer_version == qsr.__version__


# What is refused ----------------------------------------------------------------------------------


def test_networks_without_fixed_codes_are_refused():
    with pytest.raises(ValueError, match="call qsr.calibrate"):
        export.onnx_model(qsr.QuantSR(SMALL_C(2, 4)))
    cadyq = qsr.QuantSR(SMALL_C(2, 8, quantizer="cadyq"))
    with pytest.raises(ValueError, match="CADyQ chooses bits anew for every picture"):
        export.onnx_model(cadyq)
    with pytest.raises(ValueError, match="Keep 1 to 3"):
        export.onnx_model(network(SMALL_C(2, 4)), blocks=4)


def test_a_file_that_computes_something_else_is_refused(tmp_path):
    net, other = network(SMALL_C(2, 4)), qsr.QuantSR(qsr.srresnet(2, blocks=1, features=4))
    export.export_onnx(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"differ too much \(.* x .*: PSNR of the difference"):
        export.compare(tmp_path / "other.onnx", net)


def test_a_file_that_does_not_agree_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ALIKE", 1e9)
    with pytest.raises(ValueError, match="differ too much"):
        qsr.export_onnx(network(SMALL_C(2, 4)), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_onnxruntime_does_not_open_is_refused_in_one_line(tmp_path):
    (tmp_path / "m.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"can't open the file .*needs 1.20 or newer.$") as info:
        export.compare(tmp_path / "m.onnx", network(SMALL_C(2, 4)))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_what_to_install(package, tmp_path, monkeypatch):
    there = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == package else there(name)
    )
    with pytest.raises(
        ValueError, match=rf"{package} is not installed; {INSTALL}".replace("[", r"\[")
    ):
        qsr.export_onnx(network(SMALL_C(2, 4)), tmp_path / "m.onnx")


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, tmp_path, monkeypatch):
    """Run `qsr export --onnx ...` in an empty folder with trained.qsr -> (exit code, out, err)."""
    monkeypatch.chdir(tmp_path)
    qsr.save("trained.qsr", network(SMALL_C(2, 4)))

    def run(*args):
        code = cli.main(["export", "--onnx", *args])
        return code, *capsys.readouterr()

    return run


def test_the_command_writes_a_file_and_prints_how_it_compares(command, tmp_path):
    code, out, err = command("trained.qsr", "m.onnx", "--blocks", "1")
    size = (tmp_path / "m.onnx").stat().st_size
    assert code == 0 and err == ""
    first, *rows = out.splitlines()
    assert first == f"m.onnx  {size:,} bytes"
    assert [row.split(":")[0].strip() for row in rows] == ["1 x 1", "7 x 19", "45 x 67"]
    assert all("PSNR of the difference" in row and "largest" in row for row in rows)
    net, lr = qsr.load("trained.qsr"), torch.rand(1, 3, 4, 5)
    with torch.no_grad():
        assert_alike(net(lr, net.plan(1)), run("m.onnx", lr))


def test_the_command_prints_json_and_leaves_the_comparison_out_when_asked(command, monkeypatch):
    report = json.loads(command("trained.qsr", "m.onnx", "--json")[1])
    assert report["file"] == "m.onnx" and report["onnxruntime"][0]["height"] == 1
    monkeypatch.setattr(export, "compare", None)  # not called
    report = json.loads(command("trained.qsr", "n.onnx", "--json", "--no-check")[1])
    assert report["onnxruntime"] == []


def test_the_command_refuses_bad_input_in_one_line(command, tmp_path):
    (tmp_path / "there.onnx").write_text("")
    for args, words in (
        (("trained.qsr", "m.qsr"), "the suffix '.qsr'; ONNX files end in .onnx"),
        (("trained.qsr", "there.onnx"), "exists and is not overwritten unless asked"),
        (("none.qsr", "m.onnx"), "does not exist"),
        (("no-model", "m.onnx"), "no model is called 'no-model'"),
        (("trained.qsr", "m.onnx", "--blocks", "9"), "`--blocks` is 9"),
        (("trained.qsr", "folder/m.onnx"), "cannot write folder/m.onnx"),
    ):
        code, out, err = command(*args)
        assert code == 2 and out == "" and err.count("\n") == 1 and words in err
    assert command("trained.qsr", "there.onnx", "--overwrite")[0] == 0
