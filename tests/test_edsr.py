"""Weights of EDSR-baseline in the layouts that circulate become the same network."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import qsr
from qsr import cli
from qsr.backbone import RGB_MEAN

BLOCKS, FEATURES = 3, 6


def network(scale):
    torch.manual_seed(scale)
    return qsr.QuantSR(qsr.srresnet(scale, BLOCKS, features=FEATURES)).eval()


def edsr_pytorch(net):
    """The names of EDSR-PyTorch, with the mean shifts that its files hold too."""
    names = {"head": "head.0", "body_conv": f"body.{BLOCKS}"}
    for i in range(BLOCKS):
        names |= {f"blocks.{i}.conv1": f"body.{i}.body.0", f"blocks.{i}.conv2": f"body.{i}.body.2"}
    stages = [i for i, layer in enumerate(net.tail) if isinstance(layer, nn.Conv2d)]
    names |= {f"tail.{i}": f"tail.0.{i}" for i in stages[:-1]} | {f"tail.{stages[-1]}": "tail.1"}
    mean = {"sub_mean.weight": torch.eye(3).view(3, 3, 1, 1), "sub_mean.bias": torch.zeros(3)}
    return renamed(net, names) | mean


def basicsr(net):
    names = {"head": "conv_first", "body_conv": "conv_after_body"}
    names |= {f"blocks.{i}.conv{k}": f"body.{i}.conv{k}" for i in range(BLOCKS) for k in (1, 2)}
    stages = [i for i, layer in enumerate(net.tail) if isinstance(layer, nn.Conv2d)]
    names |= {f"tail.{i}": f"upsample.{i}" for i in stages[:-1]}
    return renamed(net, names | {f"tail.{stages[-1]}": "conv_last"})


def renamed(net, names):
    state = net.state_dict()
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"].clone()
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("layout", [edsr_pytorch, basicsr])
@pytest.mark.parametrize("file", ["pth", "wrapped.pth", "safetensors"])
@torch.no_grad()
def test_each_layout_is_the_same_network(tmp_path, scale, layout, file):
    net, path = network(scale), tmp_path / file
    tensors = layout(net)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"params_ema": tensors} if file == "wrapped.pth" else tensors, path)
    read = qsr.load_edsr(path, scale)
    lr = torch.rand(1, 3, 7, 5)
    assert read.config == net.config
    assert torch.equal(read(lr), net(lr))


@torch.no_grad()
def test_an_encoder_without_a_tail_takes_pictures_in_our_range(tmp_path):
    # LIIF's own forward: its input is (x - 1/2) * 2, its features are ours over 127.5.
    torch.manual_seed(0)
    head, *convs = (nn.Conv2d(c, FEATURES, 3, padding=1) for c in (3, *[FEATURES] * 3))
    names = ("encoder.head.0", "encoder.body.0.body.0", "encoder.body.0.body.2", "encoder.body.1")
    state = {
        f"{name}.{kind}": getattr(conv, kind).detach()
        for name, conv in zip(names, (head, *convs), strict=True)
        for kind in ("weight", "bias")
    }
    torch.save(
        {"model": {"name": "liif", "sd": state | {"imnet.weight": torch.ones(2)}}},
        tmp_path / "m.pth",
    )
    with pytest.warns(UserWarning, match="no tail for x2"):
        net = qsr.load_edsr(tmp_path / "m.pth", 2)
    lr = torch.rand(1, 3, 14, 13)
    x = head((lr - 0.5) / 0.5)
    theirs = convs[2](x + convs[1](convs[0](x).relu())) + x
    inside = slice(4, -4)  # of four convolutions, which pad with another grey than ours
    torch.testing.assert_close(
        net.features(lr)[..., inside, inside],
        127.5 * theirs[..., inside, inside],
        rtol=1e-4,
        atol=1e-3,
    )
    assert net.mean.flatten().tolist() == pytest.approx(RGB_MEAN)


def test_a_tail_of_another_scale_is_said_to_be_missing(tmp_path):
    torch.save(basicsr(network(4)), tmp_path / "x4.pth")
    with pytest.warns(UserWarning, match="has no tail for x2, so the network's is random"):
        net = qsr.load_edsr(tmp_path / "x4.pth", 2)
    assert torch.equal(net.head.weight, network(4).head.weight)  # and of our range already


def test_what_is_no_edsr_is_refused_in_one_line(tmp_path):
    bad = tmp_path / "bad.pth"
    torch.save({"a": nn.Linear(1, 1)}, bad)
    with pytest.raises(ValueError, match="runs no code that comes with weights"):
        qsr.load_edsr(bad, 2)
    with pytest.raises(ValueError, match="is no file"):
        qsr.load_edsr(tmp_path / "none.pth", 2)
    torch.save({"x": torch.ones(1)}, bad)
    with pytest.raises(ValueError, match="has no EDSR-baseline"):
        qsr.load_edsr(bad, 2)
    wide = basicsr(network(2))
    wide["body.1.conv1.weight"] = torch.zeros(FEATURES, FEATURES, 5, 5)
    torch.save(wide, bad)
    with pytest.raises(ValueError, match="'blocks.1.conv1.weight' of shape") as raised:
        qsr.load_edsr(bad, 2)
    assert "\n" not in str(raised.value)


def test_the_command_line_fits_the_tail_that_is_missing(tmp_path, capsys):
    net = qsr.QuantSR(qsr.srresnet(2, BLOCKS, features=16)).eval()
    tensors = {n: v for n, v in edsr_pytorch(net).items() if not n.startswith("tail.")}
    save_file(tensors, tmp_path / "body.safetensors")
    arguments = [tmp_path / "body.safetensors", tmp_path / "out.qsr", "--scale", 2]
    command = ["convert", *map(str, arguments), "--crops", "12", "--patch", "20"]
    assert cli.main(command) == 0
    assert "tail fitted on 12 crops" in capsys.readouterr().out
    made = qsr.load(tmp_path / "out.qsr")
    assert qsr.evaluate(made, "embedded").psnr_y > 20  # a random tail: below 10
    assert cli.main(command) == 2
    assert "exists" in capsys.readouterr().err


@torch.no_grad()
def test_the_command_line_keeps_a_tail_that_is_there(tmp_path, capsys):
    net = network(4)
    torch.save(basicsr(net), tmp_path / "edsr.pth")
    assert cli.main(["convert", f"{tmp_path}/edsr.pth", f"{tmp_path}/out.qsr", "--json"]) == 0
    assert '"tail": "read"' in capsys.readouterr().out
    lr = torch.rand(1, 3, 6, 7)
    assert torch.equal(qsr.load(tmp_path / "out.qsr")(lr), net(lr))
