"""The benchmark measures what it says, of contenders that compute what they should.

No test asserts a time: a machine that runs tests has other work.
"""

import functools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import qsr
from qsr import cli
from qsr.bench import curve, engine, peers, redraw, report, start
from qsr.integer import kernels
from qsr.models import zoo
from qsr.system import native

CONFIG = qsr.srresnet(4, blocks=2, features=8)
SIZE = 16


def network(**changes):
    torch.manual_seed(0)
    return qsr.QuantSR(qsr.srresnet(**{"scale": 4, "blocks": 2, "features": 8, **changes})).eval()


# The graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_collapsed_tail_equals_the_layers_away_from_the_border(scale):
    net, lr = network(scale=scale), torch.rand(1, 3, 9, 12)
    inner = (..., slice(scale, -scale), slice(scale, -scale))
    with torch.inference_mode():
        difference = peers.collapse_inside(net)(lr)[inner] - net(lr)[inner]
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("collapsed", [False, True])
def test_the_graph_computes_the_network(collapsed):
    net, lr = network(), torch.rand(1, 3, 9, 12)
    net = peers.collapse_inside(net) if collapsed else net
    with torch.inference_mode():
        assert torch.allclose(peers.run_graph(peers.graph(net), lr)[-1], net(lr), atol=1e-5)


def test_the_float_layout_of_a_quantised_network_has_its_products():
    config = qsr.quantsr_c(4, 4, blocks=4, features=8)
    plain = peers.float_config(config, 2)
    assert plain == qsr.srresnet(4, blocks=2, features=8)


# Peers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("collapsed", [False, True], ids=["ordinary", "collapsed"])
def test_a_peer_computes_the_network(peer, collapsed, tmp_path):
    if peer.missing:
        pytest.skip(f"needs {', '.join(peer.missing)}: pip install -e '.[bench]'")
    if peer.name in ("pytorch-compile", "openvino-int8"):
        pytest.skip("takes half a minute to compile or quantise; qsr bench checks it in each run")
    lr = engine.picture(SIZE).numpy()
    task = peers.Task(CONFIG, collapsed, lr, tmp_path)
    peer.write(task)
    try:
        output = np.array(peer.open(task, 1)(lr))
    except ValueError as error:
        pytest.skip(str(error))
    difference = output - peers.PEERS[0].open(task, 1)(lr)
    assert np.abs(difference).max() <= (engine.LARGEST if peer.exact else 0.1)


def test_a_peer_that_is_missing_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    chosen, remark = engine.choose_peers(["all"])
    assert all(not peer.needs for peer in chosen)
    assert "ncnn" in remark and "pip install -e '.[bench]' in a clone of qsr" in remark
    with pytest.raises(ValueError, match=r"needs ncnn: pip install"):
        engine.choose_peers(["ncnn-int8"])


def test_unknown_peers_are_refused():
    with pytest.raises(ValueError, match="no peer is called 'tvm'"):
        engine.choose_peers(["tvm"])


# Turns --------------------------------------------------------------------------------------------


def zeros(threads):
    return lambda picture: np.zeros((1, 3, 4 * SIZE, 4 * SIZE), np.float32)


def broken(threads):
    raise ValueError("a reason\nand more")


def died(threads):
    import os

    os._exit(3)


def not_a_number(threads):
    return lambda picture: np.full((1, 3, 4 * SIZE, 4 * SIZE), np.nan, np.float32)


def rows_of(*contenders):
    lr = engine.picture(SIZE).numpy()
    return {row.name: row for row in engine.network_rows(contenders, lr, 1000, 1, 1, {})}


def test_a_contender_that_disagrees_fails_or_dies_is_told_and_not_timed():
    ones = np.ones((1, 3, 4 * SIZE, 4 * SIZE), np.float32)
    contender = functools.partial(engine.Contender, column="ordinary", expected=ones)
    rows = rows_of(
        contender("wrong", open=zeros, exact=True),
        contender("wrong-int8", open=zeros),
        contender("nan", open=not_a_number),
        contender("small", open=zeros, expected=ones[..., 1:]),
        contender("broken", open=broken),
        contender("died", open=died),
        contender("right", open=zeros, expected=0 * ones, exact=True),
    )
    assert "differs by 1" in rows["wrong"].note
    assert "0.0 dB" in rows["wrong-int8"].note
    assert "nan dB" in rows["nan"].note
    assert "shape" in rows["small"].note
    assert rows["broken"].note == "a reason"
    assert "code 3" in rows["died"].note
    assert [name for name, row in rows.items() if row.best_ms is not None] == ["right"]


# Ceilings -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not native.load().native, reason="needs the native code")
def test_ceilings_are_rates_of_the_instructions_that_this_processor_has():
    rates = engine.ceilings(0.005)
    assert rates["clock"] > 1e8
    assert all(rate > 0 for rate in rates.values())
    assert torch.ops.qsr_native.peak("no such instruction", 0.001) == 0


def test_a_ceiling_of_codes_counts_bit_planes():
    rates = {"popcnt": 160.0, "maddubs": 20.0}
    assert engine.ceiling(rates, "codes", (4, 4)) == 20.0
    assert engine.ceiling(rates, "codes", (2, 2)) == 40.0
    assert engine.ceiling(rates, "bfloat16") is None


# Reports ------------------------------------------------------------------------------------------


def test_taking_turns_gives_best_and_median_and_prints_nothing_into_a_file(capfd):
    slow, fast = iter([3.0, 5.0, 4.0]), iter([0.2, 0.1, 0.3])
    order = []

    def taking(name, seconds):
        return lambda: (order.append(name), next(seconds))[1]

    times = engine.take_turns([taking("slow", slow), taking("fast", fast)], 3, "runs")
    assert times == [(3000, 4000), (100, 200)]
    assert order == ["slow", "fast"] * 3
    assert capfd.readouterr() == ("", "")


def test_ratios_are_to_the_fastest_peer_of_each_column():
    def row(name, column, ms, threads=1):
        return engine.Timing(name, column, threads, 16, ms, ms, 1.0)

    rows = (
        row("ours", "packed", 10.0), row("ours", "packed", 5.0, 2),
        row("pytorch", "ordinary", 100.0), row("a", "ordinary", 30.0), row("a", "collapsed", 25.0),
        row("b", "collapsed", 20.0), engine.Timing("c", "ordinary", note="broken"),
    )  # fmt: skip
    one, two = engine.Report("network", "", {}, 16, 1, 1000, {}, rows).ratios()
    assert one["ordinary"] == (3.0, "a") and one["collapsed"] == (2.0, "b")
    assert one["pytorch"] == 10.0 and one["scaling"] is None
    assert two["ordinary"] is None and two["scaling"] == 2.0


def test_bench_network_prints_a_table_and_writes_json(capfd, tmp_path):
    path = tmp_path / "bench.json"
    arguments = ["bench", "--preset", "quantsr-c-x4-w4a4", "--blocks", "1", "--size", str(SIZE)]
    assert cli.main([*arguments, "--rounds", "1", "--peers", "pytorch", "--json", str(path)]) == 0
    out = capfd.readouterr().out
    assert "| **quantsr-c-x4-w4a4** |" in out and "over the fastest peer, collapsed tail" in out
    contents = json.loads(path.read_text())
    assert set(contents) >= {"what", "machine", "size", "macs", "ceilings", "rows", "ratios"}
    assert {(row["name"], row["column"]) for row in contents["rows"]} == {
        ("quantsr-c-x4-w4a4", "packed"),
        ("pytorch", "ordinary"),
        ("pytorch", "collapsed"),
    }
    assert all(row["best_ms"] > 0 and row["note"] == "" for row in contents["rows"])


@pytest.mark.parametrize("what", ["kernel", "layer"])
def test_kernels_and_layers_are_timed_in_one_table(what):
    text = report.markdown(engine.bench_local(what, 8, [1], 1))
    assert "w4a4" in text and "w2a2" in text
    if what == "kernel":
        for name in kernels.available("conv2d")[:-1]:
            assert f"conv2d {name} w2a2" in text
        assert "conv2d scalar w4a4" in text and "conv2d table w4a4" not in text


def test_layers_are_timed_beside_those_of_pytorch_and_one_inside_a_network(capfd, tmp_path):
    path = tmp_path / "layers.json"
    assert cli.main(["bench", "layers", "--size", "8", "--rounds", "1", "--json", str(path)]) == 0
    out = capfd.readouterr().out
    assert "| 3x3, 52 | " in out and "Inside a network the first takes" in out
    (contents,) = json.loads(path.read_text())
    assert all(line["faster"] > 0 for line in contents["lines"])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--size", "0"], "`--size` is 0"),
        (["--threads", "1", "0"], "`--threads` is 0"),
        (["--peers", "tvm"], "no peer is called 'tvm'"),
        (["--preset", "srresnet-x4"], "nothing to pack"),
        (["--preset", "quantsr-c-x4-w4a4", "quantsr-c-x2-w4a4", "--peers", "none"], "layouts"),
        (["--model", "nothing"], "no model is called"),
        (["--json", "/dev/null/all.json"], "another output folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, says, capsys):
    assert cli.main(["bench", *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err.splitlines()[-1]


def test_the_figure_shows_peers_and_the_depths_of_the_zoo(tmp_path):
    name = zoo.names()[0]
    rows = (
        engine.Timing("ours", "packed", 1, 16, 10.0, 11.0),
        engine.Timing("pytorch", "ordinary", 1, 16, 100.0, 110.0),
        engine.Timing("ncnn-int8", "collapsed", 1, 16, 30.0, 31.0),
        *(engine.Timing(name, "depth", 1, depth, depth, depth) for depth in (16, 8, 4)),
    )
    found = engine.Report("network", "", {}, 16, 1, 1000, {}, rows)
    light, dark = report.write_figure(found, tmp_path / "speed.png")
    assert light.stat().st_size > 5000 and dark.name == "speed_dark.png"
    with pytest.raises(ValueError, match="no times"):
        report.figure(engine.Report("kernel", "", {}, 16, 1, 1000, {}, ()))


def test_a_random_network_and_a_zoo_model_of_one_name_keep_files_of_their_own(tmp_path):
    lr = engine.picture(SIZE)
    config = qsr.quantsr_c(4, 4, blocks=1, features=8)
    one, two = (engine.random_network(replace(config, features=f), SIZE) for f in (8, 4))
    ours = engine.packed_contender("same", one, 1, lr, tmp_path)
    engine.packed_contender("same", two, 1, lr, tmp_path, "depth")
    assert rows_of(ours)["same"].best_ms is not None


def test_the_wait_for_help_is_measured_and_torch_is_seen():
    seconds, processor, torch = start.wait(["-c", "pass"], rounds=1)
    assert 0 <= processor < 60 and 0 < seconds < 60 and not torch  # processors count in ticks
    assert start.wait(["-c", "import qsr; qsr.QuantSpec"], rounds=1)[2]
    assert not start.wait(start.WAITS["qsr upscale --help"], rounds=1)[2]


def test_a_kept_run_is_drawn_again_with_the_cards_of_now(tmp_path, capsys):
    name = next(name for name in zoo.names() if "-x4-w" in name)
    depth = max(zoo.card(name)["depths"])
    ours = engine.Timing(name, "packed", 1, depth, 10.0, 11.0)
    peer = engine.Timing("theirs", "fp32", 1, None, 30.0, 31.0)
    points = (curve.Point(name, f"{depth} blocks", 1.0, ours), curve.Point("theirs", "", 2.0, peer))
    run = curve.Curve("Set5", 4, 16, 1, {}, points)
    (tmp_path / "curve.json").write_text(json.dumps(asdict(run)))
    assert redraw.read(tmp_path / "curve.json") == run
    now = redraw.with_cards(run)
    assert [p.psnr for p in now.points] == [zoo.card(name)["scores"][str(depth)]["Set5"][0], 2.0]
    assert [p.timing for p in now.points] == [ours, peer]

    rows = (ours, engine.Timing(name, "depth", 1, depth, 10.0, 11.0))
    found = engine.Report("network", "a title", {}, 16, 1, 1000, {}, rows)
    report.write_json(found, tmp_path / "bench.json")
    assert redraw.read(tmp_path / "bench.json") == found
    call = ["bench", "--redraw", str(tmp_path / "bench.json")]
    assert cli.main([*call, "--plot", str(tmp_path / "bench.png")]) == 0
    assert (tmp_path / "bench_dark.png").stat().st_size > 5000
    capsys.readouterr()

    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "empty.json").write_text(json.dumps(asdict(replace(run, points=()))))
    wrong = replace(found, rows=(replace(ours, best_ms="fast"),))
    (tmp_path / "wrong.json").write_text(json.dumps(asdict(wrong)))
    assert cli.main(call) == 2 and "--plot FILE.png" in capsys.readouterr().err
    assert cli.main([*call, "--plot", str(tmp_path / "x.png"), "--model", name]) == 2
    assert "no --model" in capsys.readouterr().err
    no_run = dict.fromkeys(("other", "empty", "wrong"), "is no file of")
    for file, says in {**no_run, "no": "as JSON", "none": "as JSON"}.items():
        call[-1] = str(tmp_path / f"{file}.json")
        assert cli.main([*call, "--plot", str(tmp_path / "x.png")]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not (tmp_path / "x.png").exists()
