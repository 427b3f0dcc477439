"""ONNX files: they compute what qsr computes, on pictures of any size, and hold integers.

Float sums in another order can tip a code over its threshold, so a few values may differ; in a
network of halves and powers of two no sum is rounded, and engines must give the same bits. OpenVINO
is tried where it is installed; ncnn convolves by Winograd, which rounds, and is only compared.
"""

import copy
import functools
import json

import numpy as np
import pytest
import torch

import qsr
from qsr import cli
from qsr.export import engines
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
@pytest.mark.parametrize("form", export.FORMS)
@torch.no_grad()
def test_a_residual_network_gives_the_same_picture_in_onnxruntime(config, form):
    net = network(config)
    made = export.onnx_model(net, form=form)
    onnx.checker.check_model(made, full_check=True)
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
@pytest.mark.parametrize("form", export.FORMS)
@torch.no_grad()
def test_a_swin_network_gives_the_same_picture_in_onnxruntime_at_any_size(config, form):
    net = network(config)
    made = export.onnx_model(net, form=form)
    onnx.checker.check_model(made, full_check=True)
    # Smaller than the padding, less than a window, whole windows, and neither.
    for shape in ((1, 3, 1, 1), (1, 3, 2, 3), (2, 3, 16, 8), (3, 3, 9, 22)):
        lr = torch.rand(shape)
        assert_alike(net(lr), run(made, lr))


@torch.no_grad()
def dyadic(config):
    """A network of halves and powers of two: nothing but its quantisers rounds, and they often
    meet an exact half."""
    net, g = qsr.QuantSR(config).eval(), torch.Generator().manual_seed(0)
    qsr.calibrate(net, torch.rand(1, 3, 16, 16, generator=g))
    net.mean.fill_(0.5)
    for name, value in net.named_parameters():
        if name.endswith("weight_quantizer.step_size"):
            value.copy_(2 ** value.log2().round())
        elif name.endswith("step_size"):
            value.fill_(16)
        elif name.endswith("shortcut.scale"):
            value.fill_(0.5)
        elif name.endswith(("tau", "bias")):
            value.copy_(torch.randint(-16, 17, value.shape, generator=g) / 2)
        elif name.startswith(("head", "tail")):
            value.copy_(torch.randint(-1, 2, value.shape, generator=g) / 2)
    for value in net.tail[-1 if hasattr(net.tail[-1], "weight") else -2].parameters():
        value.mul_(config.pixel_range)  # by which the network divides
    return net


def levels_of_onnxruntime():
    """What opens a file in onnxruntime, by how much it may rewrite the graph."""
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level}"
        )
        options.intra_op_num_threads = 2 if level == "ENABLE_ALL" else 1
        yield f"onnxruntime {level}", functools.partial(open_in_onnxruntime, options)


def open_in_onnxruntime(options, path):
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda lr: session.run(None, {"lr": lr})[0]


@pytest.mark.parametrize(
    "config",
    [
        SMALL_C(2, 2),
        SMALL_C(2, 4),
        SMALL_C(2, 8),
        SMALL_C(2, (8, 4)),
        SMALL_C(2, (3, 5), per_channel=True),
        SMALL_C(4, 4),
        SMALL_C(2, 4, layer_bits=(("body_conv", (8, 4)),)),
        SMALL_C(2, 4, quantizer="lsq"),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_network_of_halves_and_powers_of_two_has_the_same_bits_in_every_engine(config, tmp_path):
    net = dyadic(config)
    path = str(tmp_path / "m.onnx")
    onnx.save(export.onnx_model(net), path)
    opened = dict(levels_of_onnxruntime())
    opened |= {e.name: e.open for e in engines.ENGINES if e.name == "openvino" and e.installed}
    runs = {name: opens(path) for name, opens in opened.items()}
    g = torch.Generator().manual_seed(1)
    for height, width in engines.SIZES[:2]:
        lr = torch.randint(0, 5, (3, 3, height, width), generator=g) / 4
        sr = copy.deepcopy(net).double()(lr.double()).float()  # in float32 `sr * 255` is rounded
        for name, run_file in runs.items():
            assert torch.equal(torch.from_numpy(run_file(lr.numpy())), sr), name


@torch.no_grad()
def test_inputs_of_linear_layers_are_not_rounded_to_8_bits_behind_our_back():
    """As onnxruntime does with DequantizeLinear of 4-bit weights before a MatMul."""
    net, lr = network(SMALL_T(2, 4)), torch.rand(1, 3, 16, 16)
    made = export.onnx_model(net)
    assert not [node for node in made.graph.node if node.op_type == "DequantizeLinear"]
    difference = run(made, lr) - net(lr)
    assert difference.square().mean() < 1e-6


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
    saved = 7 * 9 * 32 * 32 / 2  # bytes of 7 convolutions
    assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.03)


def test_linear_weights_are_stored_as_their_codes():
    net = network(SMALL_T(2, 4))
    linear = net.blocks[0].layers[1].attention.qkv
    _, codes = stored_codes(export.onnx_model(net), "blocks.0.layers.1.attention.qkv")
    assert np.array_equal(codes, linear.weight_quantizer.codes(linear.weight).numpy().T)


def test_in_the_form_qdq_every_quantised_input_is_a_pair_of_quantiser_and_inverse():
    nodes = export.onnx_model(network(SMALL_C(2, 4)), form="qdq").graph.node
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
    export.export_onnx(other, tmp_path / "other.onnx", check=False)
    comparison = export.compare(tmp_path / "other.onnx", net)
    assert comparison.differ[0].startswith("onnxruntime and qsr differ too much (")


def halved(path):
    """An engine that is wrong."""
    return lambda lr: run(path, torch.from_numpy(lr)).numpy() / 2


def test_a_file_that_one_engine_computes_wrong_is_not_written(tmp_path, monkeypatch):
    wrong = engines.Engine("halved", (), True, halved)
    monkeypatch.setattr(engines, "ENGINES", (engines.ENGINES[0], wrong))
    net = network(SMALL_C(2, 4))
    with pytest.raises(ValueError, match=r"^halved and qsr differ too much .*--no-check\)\.$"):
        qsr.export_onnx(net, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    comparison = qsr.export_onnx(net, tmp_path / "m.onnx", form="qdq")  # for onnxruntime alone
    assert (tmp_path / "m.onnx").exists() and comparison.differ[0].startswith("halved")


def test_an_engine_that_rounds_by_default_is_told_and_not_judged(tmp_path, monkeypatch):
    rough = engines.Engine("rough by default", (), False, halved)
    monkeypatch.setattr(engines, "ENGINES", (engines.ENGINES[0], rough))
    comparison = qsr.export_onnx(network(SMALL_C(2, 4)), tmp_path / "m.onnx")
    assert not comparison.differ
    assert [line.split(":")[0] for line in comparison.lines()] == [
        "onnxruntime and qsr",
        "rough by default and qsr",
    ]


def test_engines_that_are_missing_or_do_not_read_the_file_are_named(tmp_path, monkeypatch):
    def refuse(path):
        raise RuntimeError("no such layer\nand more")

    monkeypatch.setattr(
        engines,
        "ENGINES",
        (
            engines.ENGINES[0],
            engines.Engine("deaf", (), True, refuse),
            engines.Engine("absent", ("no_such_package",), True, refuse),
        ),
    )
    lines = qsr.export_onnx(network(SMALL_C(2, 4)), tmp_path / "m.onnx").lines()
    assert lines[1:] == [
        "deaf can't run the file: no such layer",
        "not compared, not installed: absent (pip install no_such_package)",
    ]


@pytest.mark.skipif(not engines.ENGINES[1].installed, reason="needs openvino")
@torch.no_grad()
def test_the_yardstick_finds_the_fault_of_openvino(tmp_path):
    model = qsr.load("quantsr-c-x2-w4a4")
    onnx.save(export.onnx_model(model, form="qdq"), tmp_path / "m.onnx")
    (line,) = export.compare(tmp_path / "m.onnx", model).differ
    assert line.startswith("openvino and qsr differ too much")  # else it is mended: say so


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="`form` is 'int8'; quantised layers are written as plain"):
        export.onnx_model(network(SMALL_C(2, 4)), form="int8")


def test_a_file_that_onnxruntime_does_not_open_is_refused_in_one_line(tmp_path):
    (tmp_path / "m.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"can't open the file .*needs 1.23 or newer.$") as info:
        export.compare(tmp_path / "m.onnx", network(SMALL_C(2, 4)))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_what_to_install(package, tmp_path, monkeypatch):
    there = engines.importlib.util.find_spec
    monkeypatch.setattr(
        engines.importlib.util, "find_spec", lambda name: None if name == package else there(name)
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


def test_the_command_writes_a_file_and_prints_how_engines_compare(command, tmp_path):
    code, out, err = command("trained.qsr", "m.onnx", "--blocks", "1")
    size = (tmp_path / "m.onnx").stat().st_size
    assert code == 0 and err == ""
    first, row, *_ = out.splitlines()
    assert first == f"m.onnx  {size:,} bytes, plain"
    assert row.startswith("  onnxruntime and qsr: 1x1 ")
    assert row.count(" dB, ") == len(row.split(";")) == 3
    net, lr = qsr.load("trained.qsr"), torch.rand(1, 3, 4, 5)
    with torch.no_grad():
        assert_alike(net(lr, net.plan(1)), run("m.onnx", lr))


def test_the_command_tells_an_engine_that_a_form_is_not_for(command, monkeypatch):
    wrong = engines.Engine("halved", (), True, halved)
    monkeypatch.setattr(engines, "ENGINES", (engines.ENGINES[0], wrong))
    code, _, err = command("trained.qsr", "m.onnx", "--form", "qdq")
    assert code == 0 and err.startswith("qsr: halved and qsr differ") and err.count("\n") == 1
    code, _, err = command("trained.qsr", "n.onnx")
    assert code == 2 and err.startswith("qsr: halved and qsr differ") and err.count("\n") == 1


def test_the_command_prints_json_and_leaves_the_comparison_out_when_asked(command, monkeypatch):
    report = json.loads(command("trained.qsr", "m.onnx", "--json")[1])
    assert (report["file"], report["form"]) == ("m.onnx", "plain")
    assert report["matches"][0]["engines"] == ["onnxruntime", "qsr"]
    monkeypatch.setattr(export, "compare", None)  # not called
    report = json.loads(command("trained.qsr", "n.onnx", "--json", "--no-check")[1])
    assert report["matches"] == []


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


def test_a_network_of_ones_own_is_refused_in_one_line(tmp_path):
    net = qsr.quantize(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1)), 4)
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    for model in (net, qsr.pack(net)):
        with pytest.raises(TypeError, match="ONNX files are written of a QuantSR") as error:
            qsr.export_onnx(model, tmp_path / "m.onnx")
        assert "\n" not in str(error.value)
