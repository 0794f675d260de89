"""The sweep over cooperative runs knows what it has done, and what idle blocks save is counted right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_fleet

pytest.importorskip("peft")  # of the benchmarks that it shares code with
from benchmarks.cooperation import cooperation_accuracy as sweep
from benchmarks.cooperation.cooperation_runs import Ran, patient
from taskedge.cooperation.scheduling.freezing import FreezingConfig


def test_runs_on_file_are_known_by_variant_change_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PATH", tmp_path / "runs.jsonl")
    assert not sweep.done()
    run = {"variant": "tune", "change": "", "seed": 0}
    lines = [run, run | {"seed": 1}, run | {"change": "lr=0.01"}]
    sweep.PATH.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(sweep.done()) == {("tune", "", 0), ("tune", "", 1), ("tune", "lr=0.01", 0)}


def test_changes_are_settings() -> None:
    assert sweep.changed(["lr=0.01", 'mode="fedavg"', "clip=0"]) == {"lr": 0.01, "mode": "fedavg", "clip": 0}


def test_a_cooperative_run_takes_as_many_rows_and_steps_as_tune() -> None:
    settings = patient(**sweep.SETTINGS)
    assert settings.rounds * settings.devices * settings.rows_per_round == sweep.STEPS * sweep.ROWS
    assert not settings.calibrate


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """By hand: a round with all modules, one with half, then 4 with those that stay; backward goes to the deepest."""
    monkeypatch.setattr(sweep, "LENGTH", 24)
    monkeypatch.setattr(sweep, "DEVICES", 2)
    how = tiny_fleet.settings(devices=2, rounds=6, mode="fedavg", active_share=share)
    freezing = FreezingConfig(share, stage=1, window=2, every=99)
    trainings = {f"d{place}": tiny_fleet.training(place) for place in range(2)}
    head, _, events = tiny_fleet.run(tmp_path / "run", how, trainings, freezing=freezing)
    ran = Ran(head._model, events)
    active = [line["active"] for line in ran.of("round")]
    sizes = {b: sum(head.state.values[n].numel() for n in head.state.blocks.names_in([b])) for b in range(5)}
    sent = sum(sizes[0] + line["active_values"] for line in ran.of("round"))
    found = sweep.saved(ran, how)
    assert found["upload_saved"] == pytest.approx(1 - sent / (6 * sum(sizes.values())))
    assert found["backward_saved"] == pytest.approx(1 - sum(max(blocks) for blocks in active) / (6 * 4))
    assert found["flops_saved"] <= found["backward_saved"]
    entries = sum(sizes.values()) - sizes[0]
    tokens = [line["tokens"] for line in ran.of("round")]
    trained = sum(line["active_values"] * count for line, count in zip(ran.of("round"), tokens, strict=True))
    assert found["entries_saved"] == pytest.approx(1 - trained / (entries * sum(tokens)))
    assert (found["upload_saved"] > 0) == (share < 1)
