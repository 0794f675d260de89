"""Every result belongs to a benchmark, every benchmark states its results, and all results have one schema."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from benchmarks.__main__ import declared, main, scripts
from benchmarks.record import BENCHMARKS, KEYS, REQUIRED
from taskedge.selection.rules import RULES

PRODUCTS = {"cost/results/device.json"}
"""Files that a command of taskedge writes in a format of its own (`taskedge bench device --json`)."""


def results():
    """Return the committed results, relative to the folder of benchmarks; a folder of a sweep counts once."""
    paths = sorted(BENCHMARKS.glob("*/results/*"))
    return {path.relative_to(BENCHMARKS).as_posix() + ("/" if path.is_dir() else "") for path in paths} - PRODUCTS


def test_every_result_has_a_benchmark_and_every_benchmark_its_results():
    stated = [
        f"{path.parent.name}/results/{name}" for path in scripts().values() for name in declared(path) or ["(none)"]
    ]
    assert len(stated) == len(set(stated))
    assert set(stated) == results()


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*/results/*.json")), ids=lambda path: path.name)
def test_a_result_follows_the_schema(path):
    if path.relative_to(BENCHMARKS).as_posix() in PRODUCTS:
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(REQUIRED) <= set(record) <= set(KEYS)
    assert record["command"].split("python ")[1].startswith(f"-m benchmarks.{path.parents[1].name}.")
    assert {"processor", "python", "threads"} <= set(record["machine"])
    assert "figures" in record or "details" in record
    for figure in record.get("figures", ()):
        assert isinstance(figure, dict)


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*/results/**/*.jsonl")), ids=lambda path: path.name)
def test_a_sweep_has_one_run_a_line(path):
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert runs
    assert all(isinstance(run, dict) and run for run in runs)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(scripts()))
def test_a_benchmark_can_be_imported(module, monkeypatch):
    """A rename in the library that leaves a benchmark behind fails here. Rules that it registers go with the test."""
    list(RULES)  # the library's own are registered
    monkeypatch.setattr(RULES, "_things", dict(RULES._things))
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.import_module(module)


def test_the_index_lists_every_benchmark(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines[1:] if line and not line.startswith(("Run one", "writes"))}
    assert listed == {name.removeprefix("benchmarks.") for name in scripts()}
