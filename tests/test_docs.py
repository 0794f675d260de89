"""The pages of docs/ are complete and right: names, files and examples exist, and the site shows every page."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import tomllib

import pytest
import tiny
import torch
import yaml
from pages import DOCS, PAGES, ROOT, blocks, table

from taskedge.backbone.candidates import candidates
from taskedge.backbone.storage.frozen_layer import FrozenWeightLayer
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.allocations import ALLOCATIONS
from taskedge.selection.columns import COLUMN_SCORES
from taskedge.selection.patterns import Pattern
from taskedge.selection.rules import RULES
from taskedge.selection.statistics import (
    ABSOLUTE_INPUTS,
    CHANGES,
    FIRST_GRADIENTS,
    GRADIENTS,
    INPUTS,
    SQUARED_GRADIENTS,
)

SELECTION = DOCS / "selection.md"
LOOKS_AT = {
    (): "nothing",
    (INPUTS,): "inputs",
    (ABSOLUTE_INPUTS,): "inputs",
    (GRADIENTS,): "gradients",
    (SQUARED_GRADIENTS,): "gradients",
    (FIRST_GRADIENTS,): "gradients",
    (GRADIENTS, SQUARED_GRADIENTS): "gradients",
    (GRADIENTS, INPUTS): "gradients, inputs",
    (CHANGES,): "a dense run",
}


def test_every_rule_is_there_with_what_it_looks_at():
    rows = table(SELECTION, "rule")
    assert sorted(row[0] for row in rows) == sorted(f"`{name}`" for name in RULES)
    assert {row[0]: row[2] for row in rows} == {f"`{name}`": LOOKS_AT[RULES[name].needs] for name in RULES}
    assert all(len(row) == 4 and all(row) for row in rows)


def test_every_allocation_is_there():
    rows = table(SELECTION, "allocation")
    assert sorted(row[0] for row in rows) == sorted(f"`{title}`" for title in ALLOCATIONS.titles)


def test_every_column_score_is_in_the_table():
    section = SELECTION.read_text().partition("### Few columns")[2].partition("### N:M")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(named) == list(COLUMN_SCORES)


def test_the_code_runs(bert, tmp_path, monkeypatch):
    import taskedge as te

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RULES, "_things", dict(RULES._things))
    batch = tiny.batch(bert)
    te.save(te.extract(te.install(tiny.bert(), te.select(tiny.bert(), [batch], allocation="2:4"))), "two.safetensors")
    known = {"te": te, "model": bert, "batches": [batch], "batch": batch}
    known["rows"] = [{key: value[index] for key, value in batch.items()} for index in range(4)]
    known["collate"] = lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    choosing, dense_run, columns, drawn, block, unmerged, own = blocks(SELECTION, "python")
    exec(choosing.replace("0.1%", "1%"), known)  # the tiny model has no thousand weights
    assert (known["support"].rule, known["support"].allocation) == ("fisher", "global_per_neuron")
    exec(dense_run.replace("0.1%", "1%"), known)
    assert known["support"].rule == "change"
    exec(columns, known)
    assert (known["support"].allocation, known["support"].settings["columns"]) == ("columns", 8)
    exec(drawn, known)
    assert known["support"].settings["column_draws"] == 4
    exec(block.replace("0.05%", "1%"), known)
    assert known["support"].settings["max_rows"] == 32
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
    recompute, rotate, int8, mapped, mezo = blocks(DOCS / "memory.md", "python")
    for code in (recompute, rotate, mezo):
        before = [parameter.detach().clone() for parameter in tiny.trained(bert)]
        exec(code, known)
        assert not all(map(torch.equal, before, tiny.trained(bert)))
    known["model"] = tiny.bert()
    exec(int8, known)
    assert {type(layer).__name__ for layer in sparse_layers(known["model"]).values()} == {"SparseFrozenLinear"}
    tiny.bert().save_pretrained(tmp_path)
    known["model"] = type(bert).from_pretrained(tmp_path)
    exec(mapped, known)
    assert any(isinstance(module, FrozenWeightLayer) for module in known["model"].modules())


# --- the chapters that follow the code --------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "most"), [("run-in-ten-steps.md", 14), ("round-in-ten-steps.md", 16)])
def test_the_ten_steps_name_files_that_exist(page, most):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+)\.", text, re.MULTILINE) == [str(step) for step in range(1, 11)]
    files = set(re.findall(r"`([\w/]+\.py)`", text))
    assert not [name for name in files if not (ROOT / "src" / "taskedge" / name).is_file()]
    assert 10 <= len(files) <= most


@pytest.mark.parametrize("page", ["run-in-ten-steps.md", "round-in-ten-steps.md"])
def test_the_ten_steps_name_code_that_exists(page):
    """A step names a file, then functions and methods of that file as ``name()``."""
    file = source = None
    for name in re.findall(r"`([\w/]+\.py|[\w.]+\(\))`", (DOCS / page).read_text(encoding="utf-8")):
        if name.endswith(".py"):
            file = name
            source = (ROOT / "src" / "taskedge" / name).read_text(encoding="utf-8")
        else:
            symbol = name.removesuffix("()").rpartition(".")[2]
            assert source is not None, f"{name} stands before any file"
            assert re.search(rf"^\s*(?:async )?def {symbol}\(|^class {symbol}\b", source, re.MULTILINE), (file, name)


# --- the site ---------------------------------------------------------------------------------------------------------


def site_pages():
    """The module that generates pages of the site; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_shows_every_page_once():
    def leaves(items):
        for item in items:
            for entry in item.values() if isinstance(item, dict) else [item]:
                yield from leaves(entry) if isinstance(entry, list) else [entry]

    shown = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(shown) == sorted([*(path.name for path in DOCS.glob("*.md")), *site_pages().FROM_ROOT])


def test_every_public_name_is_in_the_library_reference():
    import taskedge as te

    documented = set(
        re.findall(r"^::: taskedge\.(\w+)$", (DOCS / "library.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    errors = {name for name in te.__all__ if getattr(getattr(te, name), "__module__", "") == "taskedge.errors"}
    assert documented == set(te.__all__) - errors - {"__version__"} | {"errors"}


def test_every_verb_is_in_the_command_line_reference():
    from taskedge.cli.main import VERBS, cli

    reference = "\n".join(site_pages().command_reference("taskedge", cli))
    headings = re.findall(r"^#+ (taskedge.*)$", reference, re.MULTILINE)
    assert {f"taskedge {verb}" for verb in VERBS} <= set(headings)
    assert "taskedge cooperate serve" in headings
    assert "--weight-storage" in reference
    assert "<!-- commands -->" in (DOCS / "command-line.md").read_text(encoding="utf-8")


def test_links_of_pages_from_the_root_are_those_of_the_site():
    text = site_pages().with_links_of_the_site("[a](docs/forms.md#x) [b](CHANGELOG.md) [c](https://d.org)")
    assert text == "[a](forms.md#x) [b](changelog.md) [c](https://d.org)"


def test_every_extra_for_users_is_on_the_start_page():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    listed = {row[0].strip("`") for row in table(DOCS / "index.md", "extra")}
    assert listed == set(extras) - {"bench", "docs", "dev"}


# --- all pages --------------------------------------------------------------------------------------------------------


def names_in(module):
    """Return the names of a module; of one that needs Flower, the functions and classes that its source defines."""
    if ".flower." not in module:
        return set(dir(importlib.import_module(module)))
    source = (ROOT / "src" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_in_the_examples_works(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("taskedge"):
                assert {alias.name for alias in node.names} <= names_in(str(node.module)), node.module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_benchmark_named_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"python -m (benchmarks(?:\.\w+)+)", text) + [
        name.removesuffix(".py").replace("/", ".") for name in re.findall(r"benchmarks/[\w/]+\.py", text)
    ]
    assert not [name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    results = re.findall(r"benchmarks/[\w/]+\.jsonl?", text)
    assert not [name for name in results if not (ROOT / name).is_file()]
