from __future__ import annotations

import json

import pytest

from taskedge.cli.main import main
from taskedge.planning.plan import Plan, read_plan
from taskedge.planning.solvers import SOLVERS


@pytest.mark.slow
def test_a_plan_is_printed_written_and_drawn(planning, capsys) -> None:
    out, plot = planning / "plan.json", planning / "plan.svg"
    arguments = ["plan", "--fleet", str(planning / "fleet.toml"), "--out", str(out), "--plot", str(plot)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for part in ("4 blocks", "bandwidth", "lower bound", "fedavg", "memory"):
        assert part in text
    assert read_plan(out).model == "tiny"
    assert plot.read_text().startswith("<?xml")
    assert main(arguments) == 2
    assert "give --replace to overwrite" in capsys.readouterr().err
    for flag in ("--replace", "--force"):  # the name of this flag up to 0.1
        assert main([*arguments, flag]) == 0
    assert {path.name for path in planning.iterdir()} == {"tiny", "fleet.toml", "plan.json", "plan.svg"}


@pytest.mark.slow
def test_json_is_the_plan(planning, capsys) -> None:
    arguments = ["plan", "--fleet", str(planning / "fleet.toml"), "--blocks", "2", "--json", "--no-compare"]
    assert main([*arguments, "--model", str(planning / "tiny"), "--budget", "0.02", "--length", "8"]) == 0
    plan = Plan.model_validate(json.loads(capsys.readouterr().out))
    assert [len(block.layers) for block in plan.blocks] == [2, 2]
    assert plan.compared_seconds == {}
    assert plan.budget == "0.02"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--solver", "exactt"], "did you mean 'exact'"),
        (["--blocks", "9"], "the model has 4 layers"),
        (["--budget", "0"], "trains nothing"),
        (["--budget", "100%"], "more than the"),
        (["--budget", "lots"], "write '0.1%'"),
        (["--length", "65"], "64 positions"),
        (["--solver", "one-each", "--replicate", "2"], "with the solver 'one-each' give 1 to 1"),
        (
            ["--model", "no/such/folder/here"],
            "no/such/folder/here: no such folder: name a local model",
        ),
        (["--out", "no/such/folder/plan.json"], "no folder"),
        (["--plot", "plan.docx"], "ends in .svg"),
    ],
)
def test_mistakes_end_with_two_and_no_traceback(planning, capsys, monkeypatch, extra, part) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(planning)
    assert main(["plan", "--fleet", "fleet.toml", *extra]) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert "Traceback" not in captured.err


def test_no_plan_ends_with_three(planning, capsys) -> None:
    path = planning / "fleet.toml"
    path.write_text(path.read_text().replace("memory_bytes = 2e9", "memory_bytes = 2e8"))
    assert main(["plan", "--fleet", str(path)]) == 3
    assert "no device can hold block" in capsys.readouterr().err


def test_no_model_anywhere(planning, capsys) -> None:
    path = planning / "fleet.toml"
    text = path.read_text()
    path.write_text(text[: text.index("[model]")] + text[text.index("[[device]]") :])
    assert main(["plan", "--fleet", str(path)]) == 2
    assert "give --model" in capsys.readouterr().err


def test_help_names_every_solver(capsys) -> None:
    assert main(["plan", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # names break at hyphens
    assert "Examples:" in text
    assert all(name in text for name in SOLVERS)
