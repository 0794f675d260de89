from __future__ import annotations

import json

import pytest
import torch
import transformers

from taskedge.cli.main import main
from taskedge.profiling.profile_file import read_profile


@pytest.fixture
def model(planning, monkeypatch):
    monkeypatch.setattr("taskedge.profiling.step_profile.GEMM_SIZES", (64,))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(planning / "tiny")
    transformers.AutoModel.from_config(config).save_pretrained(planning / "tiny")
    return str(planning / "tiny")


QUICK = ["--batch-size", "2", "--length", "16", "--steps", "3"]


@pytest.mark.slow
def test_a_profile_goes_into_the_fleet(planning, model, capsys) -> None:
    out = planning / "d.json"
    assert main(["measure", "--model", model, *QUICK, "--out", str(out), "--watts", "5"]) == 0
    assert "GEMM peak" in capsys.readouterr().out
    assert read_profile(out).model == "tiny"
    fleet = planning / "fleet.toml"
    text = fleet.read_text().replace(
        "flops_per_second = 1000000000.0\nutilisation_ratio = 0.5\n", 'profile = "d.json"\n'
    )
    fleet.write_text(text.replace("batch_sequences = 2\n", "", 1))
    assert main(["plan", "--fleet", str(fleet), "--json", "--no-compare"]) == 0
    capsys.readouterr()

    config = json.loads((planning / "tiny" / "config.json").read_text())
    (planning / "tiny" / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    assert main(["plan", "--fleet", str(fleet)]) == 2
    assert "was measured on tiny" in capsys.readouterr().err


@pytest.mark.slow
def test_json(model, capsys) -> None:
    assert main(["measure", "--model", model, *QUICK, "--depths", "1,4", "--json"]) == 0
    assert [row["depth"] for row in json.loads(capsys.readouterr().out)["measured"]] == [1, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--depths", "one"], "not a list of depths"),
        (["--depths", "9"], "the model has 4 layers"),
        (["--length", "65"], "64 positions"),
        (
            ["--model", "no/such/folder/here"],
            "no/such/folder/here: no such folder: name a local model",
        ),
    ],
)
def test_mistakes_end_with_two(model, capsys, monkeypatch, extra, part) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["measure", "--model", model, *QUICK, *extra]) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert "Traceback" not in captured.err


def test_a_model_without_weights(planning, capsys) -> None:
    assert main(["measure", "--model", str(planning / "tiny"), *QUICK]) == 2
    assert "Traceback" not in capsys.readouterr().err
