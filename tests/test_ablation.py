"""The ablation compares methods trained alike, and goes on where it was stopped."""

import json

import pytest
import torch

import qsr
from qsr.cli import main
from qsr.paper import ablation

EMBEDDED = ["embedded"]


def small(folder, **changes):
    options = {"steps": 2, "seeds": 1, "methods": ["RLQ no tau"], "sets": EMBEDDED, **changes}
    return ablation.ablation(folder, EMBEDDED, **options)


def test_every_variant_differs_from_the_others_in_one_thing():
    rows = ablation.variants()
    assert len({row.name for row in rows}) == len(rows)
    assert {(row.config.scale, row.config.features) for row in rows} == {(2, 32)}
    assert {row.config.blocks for row in rows if "DQA" not in row.method} == {ablation.BLOCKS}
    assert all(ablation.BLOCKS in row.config.depths for row in rows)
    assert {row.method for row in rows if row.bits == 2} >= {"RLQ", "LSQ", "PAMS", "DoReFa"}


def test_all_variants_start_from_the_same_weights():
    heads = [ablation.network(row, seed=3).head.weight for row in ablation.variants()]
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_without_tau_the_shift_stays_zero_and_with_it_moves(tmp_path):
    patches, largest = qsr.Patches("embedded", 2, patch=24, batch=2), {}
    for row in ablation.variants():
        if row.bits == 4 and row.method in ("RLQ", "RLQ no tau"):
            net = ablation.network(row, seed=0)
            qsr.fit(net, patches, qsr.TrainConfig(steps=2), tmp_path / row.name)
            taus = [p for name, p in net.named_parameters() if name.endswith("tau")]
            largest[row.method] = max(tau.abs().max().item() for tau in taus)
    assert largest["RLQ no tau"] == 0 < largest["RLQ"]


def test_records_are_kept_and_a_second_call_trains_nothing(tmp_path, monkeypatch):
    first = small(tmp_path)
    monkeypatch.setattr(ablation, "run", None)  # would raise
    assert small(tmp_path) == first
    assert json.loads((tmp_path / "rlq-no-tau-4-seed0.json").read_text()) == first[0]
    text = ablation.table(first)
    assert "| RLQ no tau | 4 |" in text and f"{first[0]['psnr_y']['embedded']:.2f}" in text


def test_records_of_another_budget_are_not_mixed_in(tmp_path):
    small(tmp_path)
    with pytest.raises(ValueError, match="was run for 2 steps on embedded"):
        small(tmp_path, steps=3)


@pytest.mark.parametrize(
    "arguments, says",
    [(["--methods", "RLX"], "`--methods` has 'RLX'"), (["--seeds", "0"], "`--seeds` is 0")],
)
def test_the_command_line_refuses_what_makes_no_sense(tmp_path, capsys, arguments, says):
    code = main(["reproduce", "ablation", "--out", str(tmp_path), "--data", "embedded", *arguments])
    assert code == 2 and says in capsys.readouterr().err
