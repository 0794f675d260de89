"""Supports that training finds for the comparison, and the forms that need callbacks or gates beside a support."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from benchmarks.accuracy import finding
from benchmarks.accuracy.finding import LearnedSupport, TrainingRows, by_dense_run, by_gates, largest
from benchmarks.accuracy.methods import CALLBACKS, MEASURED
from benchmarks.accuracy.relatives import dash, draws, sparse_taps, taps
from benchmarks.accuracy.rivals import COMPARED, installs
from taskedge.delta.extract import extract
from taskedge.forms.dash import dash_layers
from taskedge.forms.install import installation
from taskedge.forms.sparse import sparse_layers
from taskedge.forms.taps import layer_gates
from taskedge.selection.support import LayerSupport, Support
from taskedge.training.diff_pruning import find_by_gates
from taskedge.training.gates import GateConfig
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

ENTRIES = 40


def collate(rows: list[Any]) -> Any:
    return tiny.batch(tiny.bert(), rows=len(rows), seed=rows[0]["seed"])


ROWS = TrainingRows("tiny", [{"seed": seed} for seed in range(16)], collate, epochs=1, batch_size=8)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(finding, "OWN_ENTRIES", ENTRIES)
    monkeypatch.setattr(finding, "LARGEST_SHARE", "2%")


def calibration() -> list[Any]:
    return [tiny.batch(tiny.bert(), seed=seed) for seed in range(2)]


def test_the_largest_changes_are_kept_whatever_their_linear() -> None:
    linears = {name: LayerSupport.from_flat((2, 3), torch.tensor([0, 2, 5]), name) for name in "ab"}
    start = {"a": torch.tensor([0.1, -3.0, 0.2]), "b": torch.tensor([0.5, 0.125, -0.25])}
    kept = largest(Support(linears, model_parameters=100, start=start), 2)
    assert {name: linear.flat.tolist() for name, linear in kept.linears.items()} == {"a": [2], "b": [0]}
    assert {name: change.tolist() for name, change in kept.start.items()} == {"a": [-3.0], "b": [0.5]}
    assert largest(kept, 2) is kept


def test_the_penalty_is_searched_on_the_first_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, float]] = []

    def find(*arguments: Any, **options: Any) -> Support:
        config, gates = arguments[4:6]
        tried.append((config.seed, gates.penalty))
        support = find_by_gates(*arguments, **options)
        return replace(support, settings=support.settings | {"expected_share": 0.1 / gates.penalty})

    monkeypatch.setattr(finding, "find_by_gates", find)
    monkeypatch.setattr(finding, "LARGEST_SHARE", "1%")
    method = LearnedSupport(by_gates(GateConfig()), "test", "1%")
    facts = [method.on(ROWS)(tiny.bert(), calibration(), seed)[1] for seed in (0, 1)]
    assert tried == [(0, 42.5), (0, 42.5 / 4), (0, 42.5 / 16), (0, 42.5 / 8), (1, 42.5 / 8)]
    assert [of_seed["penalty"] for of_seed in facts] == [42.5 / 8] * 2


def test_a_dense_run_gives_the_entries_that_moved_most_and_starts_from_them() -> None:
    model = tiny.bert()
    before = tiny.state(model)
    support = by_dense_run(model, calibration(), ROWS, 0)
    assert tiny.same_bits(before, tiny.state(model))
    tuned = tiny.bert()
    names = [f"{name}.weight" for name in support.linears]
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_(".layer." in name and name.endswith("weight") and "LayerNorm" not in name)
        parameter.requires_grad_(parameter.requires_grad or name in support.start_full)
    config = ROWS.config(0)
    train(tuned, ROWS.rows, collate, config, Path(tempfile.mkdtemp()), progress=False, head=[*support.start_full])
    moved = {name: value - before[name] for name, value in tiny.state(tuned).items()}
    rest = [moved[name].abs().flatten() for name in moved if ".layer." in name and name.endswith("weight")]
    smallest = min(float(change.abs().min()) for change in support.start.values())
    assert int((torch.cat(rest) > smallest * 1.01).sum()) <= support.num_entries == round(0.02 * 5859)
    for name, stored in zip(names, support.linears, strict=True):
        linear = support.linears[stored]
        torch.testing.assert_close(support.start[stored], moved[name][linear.rows, linear.columns])


@pytest.mark.slow
@pytest.mark.parametrize("rewound", [False, True])
def test_a_support_is_found_once_for_all_trials_of_a_seed(rewound: bool) -> None:
    calls: list[int] = []

    def find(model: Any, batches: list[Any], rows: TrainingRows, seed: int, first: Support | None) -> Support:
        assert (first is None) == (seed == 0)
        calls.append(seed)
        return by_dense_run(model, batches, rows, seed)

    method = LearnedSupport(find, "test", rewound=rewound)
    for seed in (0, 0, 1):
        model = tiny.bert()
        before = tiny.state(model)["classifier.weight"]
        model, facts = method.on(ROWS)(model, calibration(), seed)
        assert facts["entries"] == ENTRIES == sum(len(layer.entries.rows) for layer in sparse_layers(model).values())
        assert facts["finding"]["seconds"] > 0
        assert facts["finding"]["peak_bytes_above"] >= 0
        assert json.dumps(facts)
        offsets = torch.cat([layer.entries.current_offsets() for layer in sparse_layers(model).values()])
        assert bool((offsets == 0).all()) == rewound
        assert torch.equal(model.get_parameter("classifier.weight"), before) == rewound
    assert calls == [0, 1]


def test_dash_starts_within_a_short_run() -> None:
    model, facts = dash(2)(tiny.bert(), calibration(), 0)
    assert facts["entries"] == sum(p.numel() for n, p in model.named_parameters() if ".product." in n)
    config = TrainerConfig(epochs=5, lr=1e-3, batch_size=8)
    train(model, ROWS.rows, collate, config, Path(tempfile.mkdtemp()), progress=False, callbacks=facts[CALLBACKS])
    assert all(layer.product.started for layer in dash_layers(model).values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", [taps, sparse_taps])
def test_only_entries_behind_open_gates_are_counted(form: Any) -> None:
    model, facts = form()(tiny.bert(), calibration(), 0)
    gates = layer_gates(model)
    assert facts[MEASURED](model)["entries"] == facts["entries"]
    with torch.no_grad():
        for gate in list(gates.values())[1:]:
            gate.score.fill_(0.0)
    measured = facts[MEASURED](model)
    assert measured["open_layers"] == "1" + 11 * "0"
    assert measured["entries"] == extract(model).num_entries


@pytest.mark.slow
def test_drawn_columns_cost_the_memory_of_one_draw() -> None:
    model, facts = draws(columns=2)(tiny.bert(), calibration(), 0)
    inputs = {id(layer.entries.shared_input): layer.entries.shared_input for layer in sparse_layers(model).values()}
    assert sum(len(shared.columns) for shared in inputs.values()) <= facts["stored_columns"]
    assert installation(model) is not None


def test_every_method_installs_or_is_found_by_training() -> None:
    learned = {name for name in COMPARED if installs(name) is None}
    assert learned == {name for name in COMPARED if "diff pruning" in name or "largest" in name or "gates on" in name}


def test_entries_beside_lora_train_as_many_numbers_as_lora_of_twice_the_rank() -> None:
    batches = [tiny.batch(tiny.bert(), seed=seed) for seed in range(2)]
    counts = {}
    for name in ("LoRA r=2", "sparse + LoRA r=1"):
        prepare = installs(name)
        assert prepare is not None
        model, facts = prepare(tiny.bert(), batches, 0)
        head = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "classifier" in n)
        counts[name] = facts["entries"]
        assert facts["entries"] == sum(p.numel() for p in model.parameters() if p.requires_grad) - head
    assert counts["sparse + LoRA r=1"] == counts["LoRA r=2"]
    entries = sum(len(layer.entries.rows) for layer in sparse_layers(model).values())
    assert 2 * entries == counts["LoRA r=2"]
