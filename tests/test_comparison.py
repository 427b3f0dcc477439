"""Baselines at the size of Table 1: equal terms, resumable, and sentences made from the numbers."""

import dataclasses
import json

import pytest
import torch

import qsr
from qsr.cli import main
from qsr.paper import baselines, baselines_report
from qsr.paper.baselines import FULL, Start, Terms, all_rows, chosen_rows, read, run
from qsr.paper.records import write_record
from qsr.quantizer import QUANTIZERS

LITTLE = Terms(steps=2, data=("embedded",), patch=8, batch=2, blocks=2, features=4)


def start(seed=0):
    torch.manual_seed(seed)
    return Start("some/full.qsr", qsr.QuantSR(qsr.srresnet(4, blocks=2, features=4)))


def little(folder, *patterns, terms=LITTLE, **options):
    rows, begin = chosen_rows(patterns), options.pop("begin", start())
    places = (folder / "runs", terms, folder / "results", ["embedded"])
    return [path.stem for path in run(rows, begin, begin, *places, **options)]


# The rows -----------------------------------------------------------------------------------------


def test_the_queue_has_every_method_at_both_widths_and_seeds_of_two():
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows) == 15
    for bits in ("2/2", "4/4"):
        assert {r.method for r in rows if r.bits == bits} == set(baselines.METHODS)
    for method in ("RLQ", "LSQ"):
        assert [r.seed for r in rows if (r.method, r.bits) == (method, "2/2")] == [0, 1, 2]
    assert all(row.bits == "2/2" for row in rows[:9]), "where methods differ most comes first"
    with pytest.raises(ValueError, match="no row is called 'qat'; rows are rlq-w2a2-seed0"):
        chosen_rows(["qat"])


def test_cadyq_has_its_own_widths_and_those_that_the_tables_name():
    widths = {r.bits: baselines.TERMS.network(r).bits for r in all_rows() if r.method == "CADyQ"}
    assert widths == {"2/2": (2, 4), "4/4": (4, 6), "8/4-6-8": 8}


def test_rows_differ_in_their_quantizer_and_what_its_paper_asks_for_alone():
    """Networks of 16 blocks, alike but for quantizer and bits; trainings alike but for `own`."""
    networks, trainings = set(), set()
    own = {"transfer", "transfer_blocks", "bit_weight", "quantizer_rate", "relative_steps"}
    for row in all_rows():
        config, training = baselines.TERMS.network(row), baselines.TERMS.training(row)
        networks.add(dataclasses.replace(config, quantizer="rlq", bits=4))
        shared = {k: v for k, v in dataclasses.asdict(training).items() if k not in own}
        trainings.add(json.dumps(shared))
        recipe = QUANTIZERS[config.quantizer].recipe
        assert {name: getattr(training, name) for name in recipe} == recipe
        assert training.relative_steps == (row.method in ("RLQ", "LSQ"))
    assert len(networks) == len(trainings) == 1
    (network,) = networks
    assert (network.blocks, network.depths, network.features) == (16, (16,), 64)
    (shared,) = map(json.loads, trainings)
    assert (shared["distill"], shared["steps"], shared["ema"]) == (0.5, 3000, 0.999)


# The queue ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three rows, hardly trained."""
    folder = tmp_path_factory.mktemp("comparison")
    written = little(folder, "rlq-w2a2-seed[01]", "cadyq-w2a4-*")
    assert written == [FULL, "rlq-w2a2-seed0", "cadyq-w2a4-seed0", "rlq-w2a2-seed1"]
    return folder


def test_a_record_holds_terms_scores_and_the_weights_of_the_start(trained):
    found = read(trained / "results")
    for record in found.values():
        assert record["init"] == {"file": "full.qsr", "weights": start().described["weights"]}
        assert (record["steps"], record["data"], record["patch"]) == (2, ["embedded"], 8)
        assert [row["set"] for row in record["scores"]] == ["embedded"]
    rlq = found["rlq-w2a2-seed1"]
    assert (rlq["method"], rlq["bits"], rlq["seed"]) == ("RLQ", "2/2", 1)
    assert rlq["device"] and rlq["seconds"] >= 0 and rlq["training"]["relative_steps"]
    (scores,) = found["cadyq-w2a4-seed0"]["scores"]
    assert 2 <= scores["mean_bits"] <= 4, "widths are chosen picture by picture"


def test_the_weights_of_a_row_are_kept_beside_its_run(trained):
    net = qsr.load(trained / "runs" / "cadyq-w2a4-seed0" / "model.qsr")
    assert net.config == LITTLE.network(chosen_rows(["cadyq-w2a4-*"])[0])


def test_a_row_with_a_record_is_not_trained_again(trained, monkeypatch):
    monkeypatch.setattr(baselines, "fit", None)  # would raise
    assert little(trained, "rlq-w2a2-seed[01]") == []


def test_a_stopped_row_goes_on_and_ends_as_one_that_was_not(tmp_path):
    longer = dataclasses.replace(LITTLE, steps=3)
    assert little(tmp_path / "whole", "lsq-w2a2-seed0", terms=longer)[1:] == ["lsq-w2a2-seed0"]
    assert little(tmp_path / "parts", "lsq-w2a2-seed0", terms=longer, max_seconds=0) == [FULL]
    for _ in range(2):
        after = little(tmp_path / "parts", "lsq-w2a2-seed0", terms=longer, max_seconds=0)
    assert after == ["lsq-w2a2-seed0"]
    one, other = (
        qsr.load(tmp_path / way / "runs" / "lsq-w2a2-seed0" / "model.qsr").state_dict()
        for way in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_of_other_terms_are_not_mixed_in(trained):
    with pytest.raises(ValueError, match="`steps` is 2 in the record of .* and 3 in this call"):
        little(trained, "lsq-*", terms=dataclasses.replace(LITTLE, steps=3))
    with pytest.raises(ValueError, match="`init` is .*equal terms"):
        little(trained, "lsq-*", begin=start(seed=1))


def test_a_record_of_something_else_is_refused(tmp_path):
    write_record({"name": "quantsr-c-x4-w2a2", "scores": []}, tmp_path)
    with pytest.raises(ValueError, match="'quantsr-c-x4-w2a2' is no row of this comparison"):
        read(tmp_path)


# What is said -------------------------------------------------------------------------------------


def made(name, psnr):
    """A record as `run` writes it, with this PSNR-Y on two sets."""
    scores = [{"blocks": 16, "set": s, "psnr_y": psnr, "ssim_y": 0.9} for s in ("Set5", "B100")]
    weights = {"file": "full.qsr", "weights": "0123456789abcdef"}
    return {
        "name": name, "steps": 3000, "data": ["T91"], "patch": 24, "batch": 8, "init": weights,
        "teacher": weights, "device": "a CPU, 1 thread", "seconds": 900, "scores": scores,
    }  # fmt: skip


def records(**psnr):
    """{name: record} from rlq_w2a2_seed0=31.0 and the like; full precision has 32."""
    names = {key.replace("_", "-"): value for key, value in psnr.items()}
    return {name: made(name, value) for name, value in ({FULL: 32.0} | names).items()}


SEEDS = {"rlq_w2a2_seed0": 31.0, "rlq_w2a2_seed1": 31.02, "rlq_w2a2_seed2": 31.01}


def said(**psnr):
    return baselines_report.sentences(baselines_report.results(records(**psnr)))


def test_a_difference_beyond_the_spread_of_seeds_is_an_order_and_one_within_it_is_none():
    assert said(**SEEDS, pams_w2a2_seed0=30.5) == [
        "PAMS 2/2 is 0.500 dB below RLQ: the paper's order holds, seeds spread over 0.020 dB "
        "(one seed of this row)."
    ]
    (sentence,) = said(**SEEDS, lsq_w2a2_seed0=31.01, lsq_w2a2_seed1=31.03)
    assert "LSQ 2/2 is 0.010 dB above RLQ: no order: seeds alone spread over 0.020 dB." in sentence
    (sentence,) = said(**SEEDS, dorefa_w2a2_seed0=31.5)
    assert "0.500 dB above RLQ: the paper's order does not hold" in sentence
    (sentence,) = said(rlq_w2a2_seed0=31.0, pams_w2a2_seed0=30.5)
    assert "not known yet, so no verdict" in sentence


def test_differences_are_paired_by_seed():
    """LSQ ran on the worst seed of RLQ alone: beside that one it is above."""
    (sentence,) = said(rlq_w2a2_seed0=30.0, rlq_w2a2_seed1=31.0, lsq_w2a2_seed0=30.1)
    assert "LSQ 2/2 is 0.100 dB above RLQ" in sentence


def test_the_table_has_spreads_gaps_and_what_is_printed_and_names_missing_rows():
    found = records(**SEEDS, pams_w2a2_seed0=30.5)
    found["cadyq-w2a4-seed0"] = made("cadyq-w2a4-seed0", 30.8)
    for row in found["cadyq-w2a4-seed0"]["scores"]:
        row["mean_bits"] = 2.5
    body = baselines_report.text(found)
    table = [line for line in body.splitlines() if line.startswith("|")]
    full, pams, cadyq, rlq = (line.split("|")[1:-1] for line in table[2:])
    cells = {line[0].strip(): [cell.strip() for cell in line] for line in (full, pams, cadyq, rlq)}
    assert cells["RLQ"][1:4] == ["2/2", "31.01 (0.02)", "31.01 (0.02)"]
    assert cells["RLQ"][4:] == ["-", "0.99", "31.30", "3", "45"]
    assert cells["PAMS"][4:6] == ["-0.500", "1.50"] and cells["PAMS"][6] == "29.51"
    assert cells["CADyQ"][1] == "2/2, inputs 2.5" and cells["full precision"][1] == "32/32"
    assert "13.8 million lr pixels" in body and "Not run yet: lsq-w2a2-seed0" in body
    assert "with inputs of 2.5 bits on average" in body
    assert "rlq-w2a2-seed0" not in body.partition("Not run yet")[2]


def test_without_records_every_row_is_said_to_be_missing():
    body = baselines_report.text({})
    assert all(row.name in " ".join(body.split()) for row in all_rows()) and "|" not in body


def test_the_figure_has_a_dot_for_each_seed_and_says_what_was_not_run():
    figure = baselines_report.draw(records(**SEEDS, pams_w2a2_seed0=30.5))
    four, two = figure.axes
    assert [t.get_text() for t in four.texts] == [" not run"] * 5
    dots = {len(line.get_xdata()) for line in two.lines if line.get_marker() == "o"}
    assert dots == {3} and len(two.texts) == 3
    with pytest.raises(ValueError, match="no record of full precision and a row"):
        baselines_report.draw({})


# The command --------------------------------------------------------------------------------------


def test_the_command_trains_what_is_missing_and_prints_table_and_figure(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(baselines, "TERMS", LITTLE)
    qsr.save(tmp_path / "full.qsr", start().net)
    call = ["reproduce", "baselines", "--results", str(tmp_path / "results")]
    train = ["--train", "--init", str(tmp_path / "full.qsr"), "--out", str(tmp_path / "runs")]
    train += ["--rows", "dorefa-w2a2-*", "--sets", "embedded"]
    threads = torch.get_num_threads()
    try:
        assert main([*call, *train, "--figure", str(tmp_path / "figures")]) == 0
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "| DoReFa" in out and "dorefa-w2a2-seed0" not in out.partition("Not run yet")[2]
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "baselines.png",
        "baselines_dark.png",
    }
    assert main([*call, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in report["rows"]] == ["full precision", "DoReFa"]
    assert len(report["missing"]) == 14
    assert main([*call, "--train"]) == 2
    assert "--train needs --init" in capsys.readouterr().err
