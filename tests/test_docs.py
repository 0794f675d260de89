"""docs/selection.md names what there is, says what it needs, and its code runs."""

from __future__ import annotations

import re

import pytest
import tiny
import torch
from pages import ROOT, blocks

from taskedge.backbone.linears import candidates
from taskedge.backbone.storage.frozen_layer import HeldLayer
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.allocations import ALLOCATIONS
from taskedge.selection.patterns import Pattern
from taskedge.selection.rules import RULES
from taskedge.selection.statistics import ABSOLUTE_INPUTS, GRADIENTS, INPUTS, SQUARED_GRADIENTS

PAGE = ROOT / "docs" / "selection.md"
LOOKS_AT = {
    (): "nothing",
    (INPUTS,): "inputs",
    (ABSOLUTE_INPUTS,): "inputs",
    (GRADIENTS,): "gradients",
    (SQUARED_GRADIENTS,): "gradients",
}


def table(title):
    """Rows of the table whose first column has that title, as lists of cells."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_every_rule_is_there_with_what_it_looks_at():
    rows = table("rule")
    assert sorted(row[0] for row in rows) == sorted(f"`{name}`" for name in RULES)
    assert {row[0]: row[2] for row in rows} == {f"`{name}`": LOOKS_AT[RULES[name].needs] for name in RULES}
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_allocation_is_there():
    rows = table("allocation")
    assert sorted(row[0] for row in rows) == sorted(f"`{title}`" for title in ALLOCATIONS.titles)


def test_the_code_runs(bert, tmp_path, monkeypatch):
    import taskedge as te

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RULES, "_things", dict(RULES._things))
    batch = tiny.batch(bert)
    te.extract(te.install(tiny.bert(), te.select(tiny.bert(), [batch], allocation="2:4"))).save("two.safetensors")
    known = {"te": te, "model": bert, "batches": [batch], "batch": batch}
    choosing, unmerged, own = blocks(PAGE, "python")
    exec(choosing.replace("0.1%", "1%"), known)  # the tiny model has no thousand weights
    assert (known["support"].rule, known["support"].allocation) == ("fisher", "global_per_neuron")
    exec(unmerged, known)
    exec(own, known)
    assert known["support"].rule == "squared"
    assert set(known["support"].linears) == set(candidates(bert))


@pytest.mark.parametrize("name", ["2:4", "1:384"])
def test_the_patterns_named_are_patterns(name):
    assert isinstance(ALLOCATIONS[name].pattern, Pattern)


def test_the_code_of_the_memory_page_runs(bert, tmp_path):
    import taskedge as te

    te.install(bert, te.select(bert, [tiny.batch(bert)], per_neuron=1))
    optimizer = torch.optim.AdamW(tiny.trained(bert))
    known = {
        "te": te,
        "model": bert,
        "data": [tiny.batch(bert, seed=seed) for seed in range(2)],
        "optimizer": optimizer,
    }
    recompute, rotate, int8, mapped, mezo = blocks(ROOT / "docs" / "memory.md", "python")
    for code in (recompute, rotate, mezo):
        before = [parameter.detach().clone() for parameter in tiny.trained(bert)]
        exec(code, known)
        assert not all(map(torch.equal, before, tiny.trained(bert)))
    known["model"] = tiny.bert()
    exec(int8, known)
    assert {type(layer).__name__ for layer in sparse_layers(known["model"]).values()} == {"SparseHeldLinear"}
    tiny.bert().save_pretrained(tmp_path)
    known["model"] = type(bert).from_pretrained(tmp_path)
    exec(mapped, known)
    assert any(isinstance(module, HeldLayer) for module in known["model"].modules())
