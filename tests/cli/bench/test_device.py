"""``taskedge bench device``."""

from __future__ import annotations

import json

import pytest
import tiny_task

from taskedge.profiling.device_benchmark import DeviceReport
from taskedge.profiling.energy import EnergyMeter

QUICK = ["--batch-size", 2, "--length", 8, "--steps", 3]


@pytest.fixture
def bert(here, monkeypatch):
    monkeypatch.setattr("taskedge.profiling.step_profile.GEMM_SIZES", (64,))
    monkeypatch.setattr("taskedge.profiling.step_profile.GEMM_SECONDS", 0.0)
    return tiny_task.bert(here / "bert")


@pytest.mark.slow
def test_figures_as_text_and_in_a_file(taskedge, bert, here):
    words = ["--model", bert, *QUICK, "--watts", 5, "--uplink", "250 kbit/s", "--local-steps", 4, "-o", "d.json"]
    ended = taskedge("bench", "device", *words)
    assert ended.code == 0, ended.err
    report = DeviceReport.model_validate_json((here / "d.json").read_text())
    (model,) = report.models
    assert f"{model.training_tokens_per_second:,.0f}" in ended.out
    assert f"{model.energy.tokens_per_joule:.1f} tokens/J training" in ended.out
    assert "4 steps, 4 bytes a value, 0.25 Mbit/s up, 50 down" in ended.out
    assert "running bert (encoder)" in ended.err
    assert report.link.uplink_bits_per_second == 250e3
    assert taskedge("bench", "device", *words).code == 2  # the file exists


@pytest.mark.slow
def test_json(taskedge, bert):
    ended = taskedge("bench", "device", "--model", bert, *QUICK, "--downlink", "1e6", "--json")
    assert json.loads(ended.out)["link"]["downlink_bits_per_second"] == 1e6


@pytest.mark.slow
def test_a_machine_without_a_counter_says_so(taskedge, bert, monkeypatch):
    nothing = bert / "nothing"
    monkeypatch.setattr(
        "taskedge.profiling.step_profile.EnergyMeter", lambda watts: EnergyMeter(watts, rapl=nothing, rails=nothing)
    )
    ended = taskedge("bench", "device", "--model", bert, *QUICK)
    assert "bert: energy not available: no readable power counter; give the power with --watts" in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--uplink", "fast"], "'fast' is not a bit rate above 0; write 10Mbit/s"),
        (["--uplink", "0"], "'0' is not a bit rate above 0"),
        (["--shape", "gpt-9"], "'gpt-9' is not one of"),
        (["--length", 65], "65 tokens are more than the 64 positions"),
        (["--model", "nothere"], "nothere: there is no such folder, and the hub does not give a model of that name"),
        (["--device", "abacus"], "cannot be run here"),
    ],
)
def test_mistakes(taskedge, bert, words, told):
    ended = taskedge("bench", "device", "--model", bert, *QUICK, *words)
    assert ended.code == 2
    assert told in ended.err
    assert "Traceback" not in ended.err
