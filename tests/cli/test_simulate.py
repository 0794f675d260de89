from __future__ import annotations

import json

import pytest

from taskedge.cli.main import main


@pytest.mark.slow
def test_a_simulation_is_printed_written_and_drawn(planning, capsys) -> None:
    out, plot = planning / "rounds.json", planning / "rounds.svg"
    arguments = ["simulate", "--fleet", str(planning / "fleet.toml"), "--rounds", "8", "--churn", "0.2"]
    assert main([*arguments, "--out", str(out), "--plot", str(plot), "--drift-db", "2"]) == 0
    text = capsys.readouterr().out
    assert "8 rounds" in text
    assert "fedavg" in text
    assert json.loads(out.read_text())["rounds"] == 8
    assert plot.read_text().startswith("<?xml")


@pytest.mark.slow
def test_one_seed_one_result(planning, capsys) -> None:
    arguments = ["simulate", "--fleet", str(planning / "fleet.toml"), "--rounds", "5", "--json"]
    results = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--compare", "equal,random", "--seed", seed]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]
    assert results[0]["latency_seconds"] != results[2]["latency_seconds"]
    assert list(results[0]["summary"]) == ["exact", "equal", "random"]


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--compare", "eqal"], "did you mean 'equal'"),
        (["--rounds", "0"], "not in the range"),
        (["--churn", "1.5"], "not in the range"),
        (["--fading", "rice"], "rayleigh"),
        (["--fleet", "none.toml"], "No such file"),
    ],
)
def test_mistakes_end_with_two(planning, capsys, extra, part) -> None:
    arguments = ["simulate", "--fleet", str(planning / "fleet.toml"), *extra]
    assert main(arguments) == 2
    assert part in capsys.readouterr().err


@pytest.mark.slow
def test_a_former_name_of_a_solver_is_said(planning, capsys) -> None:
    arguments = ["simulate", "--fleet", str(planning / "fleet.toml"), "--rounds", "1", "--json", "--solver", "joint"]
    assert main([*arguments, "--compare", "equal"]) == 0
    captured = capsys.readouterr()
    assert "the solver 'joint' is now 'exact'" in captured.err
    assert list(json.loads(captured.out)["summary"]) == ["exact", "equal"]
