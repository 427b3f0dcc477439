"""What 2 bits cost is computed from records, whichever there are."""

import json

import pytest

from qsr.cli import main
from qsr.paper import gap, records
from qsr.paper.records import write_record


def record(name, date, steps, psnr, blocks=(16,), of=16):
    scores = [
        {"blocks": n, "set": s, "psnr_y": psnr - i, "ssim_y": 0.9}
        for i, n in enumerate(blocks)
        for s in gap.SETS
    ]
    return {
        "name": name,
        "date": date,
        "steps": steps,
        "network": {"blocks": of},
        "scores": scores,
    }


@pytest.fixture
def folder(tmp_path):
    """The state before a new 2/2 is trained: the earlier one, and a better full precision."""
    old = record(gap.NETWORK, gap.EARLIER, 1600, 31.0, (32, 16), 32)
    full = record(gap.FULL, gap.EARLIER, 9000, 31.5)
    for made in (old, full):
        write_record({**made, "name": f"{made['name']}-{gap.EARLIER}"}, tmp_path / "gap")
    write_record(old, tmp_path)
    write_record(record(gap.FULL, "2026-11-28", 19000, 32.0), tmp_path)
    return tmp_path


def at_16(folder):
    return [(d.network, d.gaps["Set5"]) for d in gap.drops(folder) if d.blocks == "16 of 32"]


def test_the_paper_s_gap_is_what_its_own_rows_say(tmp_path):
    assert at_16(tmp_path) == [("the paper's", pytest.approx(0.86))]
    assert gap.steps(tmp_path) == []
    assert "we have no record yet" in gap.text(tmp_path)


def test_an_earlier_network_stands_below_the_full_precision_of_its_day_and_of_today(folder):
    assert at_16(folder) == [
        ("the paper's", pytest.approx(0.86)),
        ("ours of 2026-11-25, below its own full precision", pytest.approx(1.5)),
        ("the same, below that of 2026-11-28", pytest.approx(2.0)),
    ]
    assert gap.steps(folder) == [], "nothing is narrowed by a network that is the same"
    assert "2.00 dB below full precision, the paper's 0.86 dB: wider by 1.14 dB" in gap.text(folder)


def test_the_number_follows_when_the_record_of_the_model_is_replaced(folder):
    write_record(record(gap.NETWORK, "2026-11-28", 9000, 32.5, (32, 16), 32), folder)
    network, now = at_16(folder)[-1]
    assert network == "ours of 2026-11-28" and now == pytest.approx(0.5)
    (step,) = gap.steps(folder)
    assert (step.before, step.after) == (pytest.approx(2.0), pytest.approx(0.5))
    assert "0.50 dB below full precision, the paper's 0.86 dB: narrower by 0.36 dB" in (
        gap.text(folder)
    )


def test_the_ablation_and_equal_terms_give_steps_of_their_own(folder):
    (folder / "ablation").mkdir()
    for name, psnr in (("full-precision-32", 35.0), ("rlq-2", 34.5), ("rlq-relative-2", 34.75)):
        for seed in (0, 1):
            text = json.dumps({"psnr_y": {"Set5": psnr + seed, "B100": psnr - 1}})
            (folder / "ablation" / f"{name}-seed{seed}.json").write_text(text)
    shared = {"steps": 1, "data": [], "patch": 1, "batch": 1, "init": {}, "teacher": {}}
    for name, psnr in (("full-precision", 32), ("rlq-w2a2-seed0", 31.2), ("pams-w2a2-seed0", 30)):
        made = record(name, "2026-11-29", 1, psnr)
        write_record({**made, **shared, "seconds": 60, "device": "a CPU"}, folder / "baselines")
    relative, pams = gap.steps(folder)
    assert (relative.before, relative.after) == (pytest.approx(0.5), pytest.approx(0.25))
    assert pams.what == "RLQ instead of PAMS"
    assert (pams.before, pams.after) == (pytest.approx(2.0), pytest.approx(0.8))
    assert "| RLQ instead of PAMS " in gap.text(folder) and "+1.20" in gap.text(folder)


@pytest.mark.skipif(not records.RESULTS.exists(), reason="docs/results: only in a checkout")
def test_the_command_names_a_record_that_exists_for_every_number(capsys):
    assert main(["reproduce", "gap", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    for drop in data["drops"][3:]:
        for name in drop["source"].split(", "):
            assert (records.RESULTS / f"{name}.json").exists(), name
    assert data["drops"][1]["gaps"]["Set5"] == pytest.approx(0.86)
    assert main(["reproduce", "gap"]) == 0
    assert data["sentence"] in capsys.readouterr().out
