"""A record says what was trained, how, and what it scores."""

import json

import pytest
import torch

import qsr
from qsr.cli import main
from qsr.images.data import held_out
from qsr.paper import records
from qsr.paper.records import in_words, make_record, read_records, record_name, write_record
from qsr.paper.table1 import table1
from qsr.runs.checkpoints import find_best, load_checkpoint
from qsr.runs.log import read_log
from qsr.scores import evaluate

NAME = "quantsr-c-x2-w4a4"
TINY = ["--network-blocks", "2", "--features", "4", "--patch", "8", "--batch", "2", "--steps", "4"]
CALL = {"data": ["embedded"], "patch": 8, "batch": 2, "seed": 0, "init": "runs/full-x2"}
CALL |= {"teacher": "zoo:srresnet-x2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a tiny network, scored on held-out pictures."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, features=4))
    config = qsr.TrainConfig(steps=10, validate_every=4, checkpoint_every=5, joint_from=0.2)
    patches = qsr.Patches("embedded", 2, patch=8, batch=2)
    qsr.fit(net, patches, config, folder, validation=held_out("embedded", 2, side=16))
    return folder


@pytest.fixture(scope="module")
def made(run):
    return make_record(NAME, run, CALL, ["embedded"])


def test_a_record_says_how_the_network_was_made(made):
    assert made["name"] == f"{NAME}-2-blocks-4-features"
    assert made["network"]["blocks"] == 2 and made["training"]["steps"] == made["steps"] == 10
    assert (made["data"], made["seed"], made["init"]) == (["embedded"], 0, "full-x2")
    assert made["teacher"] == "srresnet-x2" and "thread" in made["device"] and made["seconds"] >= 0
    assert made["weights"].endswith("by held-out pictures")
    assert made["qsr"] == qsr.__version__ and made["date"].count("-") == 2


def test_a_record_holds_the_scores_of_the_packed_network_at_each_depth(made, run):
    best = load_checkpoint(find_best(run))[0]
    packed = qsr.pack(best.eval())
    assert [(row["blocks"], row["set"]) for row in made["scores"]] == [
        (2, "embedded"),
        (1, "embedded"),
    ]
    expected = evaluate(packed, "embedded", blocks=1)
    row = made["scores"][1]
    assert row["psnr_y"] == round(expected.psnr_y, 5)
    assert row["pictures"] == list(expected.names) and len(row["psnr_each"]) == 10


def test_a_record_is_put_into_words_for_a_model_card(made):
    words = in_words(made, {"full-x2": {"steps": 1234}})
    assert words.startswith("2 blocks, trained at depths 2, 1. Data: embedded; every tenth picture")
    assert "10 steps of 2 patches 8x8, from full-x2 (itself 1,234 steps); seed 0;" in words
    assert "300,000 steps" in words and "\n" not in words
    taught = {**made, "init": None, "teacher": "full-x2"}
    taught["training"] = {**made["training"], "distill": 0.5}
    assert "from random weights, 50% of the loss against the pictures of full-x2;" in in_words(
        taught
    )
    with pytest.raises(ValueError, match="was not trained"):
        in_words({"name": "bicubic-x2"})


def test_a_record_says_what_the_last_fifth_of_the_steps_gained(made, run):
    log = [x for x in read_log(run) if "validation_2" in x]
    scores = {x["step"]: x["validation_2"] for x in log}
    assert set(scores) == {4, 8, 10}
    gained = max(scores.values()) - max(scores[4], scores[8])
    assert made["validation"]["gained_in_last_fifth"] == pytest.approx(gained, abs=1e-4)
    assert records._validation([], 2, 10) is None


def test_a_run_that_is_not_finished_has_no_record(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        make_record(NAME, tmp_path)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=1, features=4))
    patches = qsr.Patches("embedded", 2, patch=8, batch=2)
    qsr.fit(net, patches, qsr.TrainConfig(steps=3), tmp_path, max_seconds=0)
    with pytest.raises(ValueError, match="has done 1 of 3 steps"):
        make_record(NAME, tmp_path)


def test_bicubic_has_a_record_without_a_run():
    made = make_record("bicubic-x4", sets=["embedded"])
    assert made["scores"][0]["psnr_y"] == round(evaluate("bicubic", "embedded", 4).psnr_y, 5)
    assert "network" not in made


def test_records_come_back_as_they_were_written_one_line_for_each_set(made, tmp_path):
    path = write_record(made, tmp_path)
    assert path == tmp_path / f"{made['name']}.json"
    assert read_records(tmp_path) == {made["name"]: json.loads(json.dumps(made))}
    lines = path.read_text().splitlines()
    assert sum('"set": "embedded"' in line for line in lines) == 2
    assert read_records(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', '{"name": "x", "scores": [1]}'])
def test_a_file_that_is_no_record_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError) as raised:
        read_records(tmp_path)
    assert "x.json is no record" in str(raised.value) and "\n" not in str(raised.value)


def test_the_name_of_a_record_says_in_what_the_network_differs():
    assert record_name(NAME, qsr.quantsr_c(2, 4)) == NAME
    assert record_name(NAME, qsr.quantsr_c(2, 4, blocks=16)) == f"{NAME}-16-blocks"
    changed = qsr.quantsr_c(2, 4, features=32, quantizer="dorefa")
    assert record_name(NAME, changed) == f"{NAME}-32-features-dorefa"


# The command --------------------------------------------------------------------------------------


def reproduce(*arguments):
    return main(["reproduce", "table1", *map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QSR_DATA", raising=False)
    return tmp_path


def test_a_row_is_trained_recorded_and_shown(here, capsys):
    call = ["--train", "--rows", NAME, "--out", "runs", "--results", "results", *TINY]
    assert reproduce(*call, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    name = f"{NAME}-2-blocks-4-features"
    assert [row["steps"] for row in data["rows"] if row["name"] == name] == [4, 4]
    record = read_records("results")[name]
    assert record["steps"] == 4 and record["data"] == ["embedded"] and record["patch"] == 8
    (state,) = (here / "runs" / name).glob("step-*/state.json")
    written = state.stat().st_mtime_ns
    assert reproduce(*call) == 0
    assert state.stat().st_mtime_ns == written, "nothing was left to train"


def test_a_row_that_stops_in_time_goes_on_and_ends_as_one_that_did_not(here, capsys):
    call = ["--train", "--rows", NAME, "--results", "results", *TINY]
    assert reproduce(*call, "--out", "parts", "--max-seconds", 0) == 0
    assert "goes on from" in capsys.readouterr().err and read_records("results") == {}
    assert reproduce(*call, "--out", "parts") == 0
    (parts,) = read_records("results").values()
    assert reproduce(*call, "--out", "whole") == 0
    (whole,) = read_records("results").values()
    assert parts["scores"] == whole["scores"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--train", "--rows", NAME], "--out"),
        (["--train", "--out", "runs"], "--rows"),
        (["--rows", "edsr"], "no row of Table 1 is called 'edsr'"),
        (["--train", "--rows", NAME, "--out", "runs", "--quantizer", "cadyq"], "CADyQ"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(here, capsys, arguments, says):
    assert reproduce(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(here.iterdir())


# What is committed --------------------------------------------------------------------------------


@pytest.mark.skipif(not records.RESULTS.exists(), reason="docs/results: only in a checkout")
def test_the_committed_records_are_read_and_fill_the_bicubic_rows():
    known = read_records()
    assert {"bicubic-x2", "bicubic-x4"} <= known.keys()
    for line in table1(["bicubic*"], here=False):
        for s, tolerance in (("Set5", 0.015), ("Set14", 0.095), ("B100", 0.005)):
            assert abs(line.difference(s)[0]) <= tolerance
