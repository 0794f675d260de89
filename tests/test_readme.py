"""The commands in README and docs parse, the links exist, and the Python block of the README runs."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import tiny_task
import torch
from pages import PAGES, ROOT, blocks

from taskedge.cli.main import cli, main


def commands() -> list[tuple[str, str]]:
    """Return (page, line) of every `taskedge` command in a shell block, continued lines joined."""
    return [
        (page.name, line.strip())
        for page in PAGES
        for block in blocks(page, "(?:sh|bash|console)")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip().removeprefix("$ ").startswith("taskedge")
    ]


def test_the_readme_has_commands():
    assert {"tune", "eval", "predict", "info", "merge", "doctor"} <= {
        line.split()[1] for page, line in commands() if page == "README.md"
    }


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_parses(page, line):
    words = shlex.split(re.split(r" [|>] ", line.removeprefix("$ "))[0], comments=True)
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None, f"{page}: no verb {words[1]!r}"
    command.make_context(words[1], words[2:])


def test_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(
        r"^make ([a-z]+)", "\n".join(block for page in PAGES for block in blocks(page, "sh")), re.MULTILINE
    )
    assert {"demo", "test", "docs"} <= set(named) <= set(targets)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_the_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    from taskedge.backbone.loading import load_classifier
    from taskedge.training.data.text_data import collator, encode

    folder = tiny_task.bert(tmp_path / "base")
    torch.manual_seed(0)
    base = load_classifier(folder, ["neg", "pos"])
    torch.manual_seed(0)
    fresh = load_classifier(folder, ["neg", "pos"])
    texts, labels = zip(*tiny_task.rows(16), strict=True)
    rows = encode(base.tokenizer, texts, [["neg", "pos"].index(label) for label in labels], 32)
    batches = [collator(base.tokenizer)(rows[start : start + 4]) for start in range(0, 16, 4)]
    known = {"torch": torch, "model": base.model, "fresh_model": fresh.model, "batches": batches, "data": batches}
    before = {name: value.clone() for name, value in fresh.model.state_dict().items()}
    (block,) = blocks(ROOT / "README.md", "python")
    exec(block, known)
    assert (tmp_path / "task.safetensors").exists()
    assert known["te"].load("task.safetensors").num_entries == known["support"].num_entries > 0
    after = fresh.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tiny_task.table(tmp_path / "heldout.csv", tiny_task.rows(16, seed=1))
    for line in ("eval task.safetensors --data heldout.csv", "merge task.safetensors --out merged"):
        assert main(line.split()) == 0
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    assert "does not state at how many tokens texts were cut in training: 128 is assumed" in printed.err


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\[[^]]*\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
