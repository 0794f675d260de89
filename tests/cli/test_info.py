"""``taskedge info``: numbers that add up."""

from __future__ import annotations

import json

import pytest
import torch

from taskedge.cli.info import _names_text
from taskedge.delta.delta import Delta, LinearDelta, Provenance
from taskedge.delta.file import save
from taskedge.selection.support_location import block_and_kind


def test_the_numbers_add_up(taskedge, tuned):
    path, said = tuned
    about = json.loads(taskedge("info", path, "--json").out)
    assert about["bytes"] == path.stat().st_size == said["file_bytes"] == sum(about["sections"].values())
    assert about["entries"] == said["entries"] == sum(about["by_layer"].values()) == sum(about["by_kind"].values())
    assert about["sections"]["values"] == 4 * about["entries"]
    assert about["share"] == said["share"] == about["entries"] / about["provenance"]["base_parameters"]
    assert about["whole_parameters"] == said["head"] == 2 * 16 + 2
    assert about["whole"] == {"classifier.bias": [2], "classifier.weight": [2, 16]}
    assert about["provenance"]["labels"] == ["neg", "pos"]
    assert about["provenance"]["training"]["steps"] == said["steps"]
    assert about["base_dtype"] == "float32"


def test_what_a_person_reads(taskedge, tuned, task):
    shown = taskedge("info", tuned[0]).out
    for part in (
        f"{tuned[0]}: {tuned[1]['file_bytes']:,} bytes",
        f"base      {task / 'base'} (6,194 parameters, float32)",
        "task      text-classification: 'neg', 'pos'",
        "entries   124 (2.0019%) by rule 'taskedge', per_neuron",
        "in full   34 parameters: classifier.bias, classifier.weight",
        "as LoRA   rank ",
        "bert.encoder.layer.0",
        "attention.self.query",
    ):
        assert part in shown


def test_sections_and_names_of_layers_are_no_list_of_all_layers(taskedge, tuned, task, here):
    arguments = ["--model", task / "base", "--train", task / "train.csv", "--epochs", "1", "--rank", "1"]
    assert taskedge("tune", *arguments, "--form", "lora", "--out", here / "low").code == 0
    shown = taskedge("info", here / "low").out
    (line,) = (line for line in shown.splitlines() if line.startswith("sections"))
    sections = json.loads(taskedge("info", here / "low", "--json").out)["sections"]
    for kind in ("low_rank_a", "low_rank_b", "whole"):
        sizes = [size for name, size in sections.items() if name.startswith(f"{kind}/")]
        assert f"{kind} {sum(sizes):,} in {len(sizes)}" in line
    assert "layer" not in line


def test_many_names_are_counted():
    assert _names_text(f"n{i}" for i in range(10)) == "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more"
    assert _names_text([]) == "none"


def delta_of(path, *masks, allocation="given"):
    """A delta file whose linears have the entries of the masks."""
    linears = {}
    for place, mask in enumerate(masks):
        rows, columns = torch.tensor(mask).nonzero(as_tuple=True)
        linears[f"l.{place}"] = LinearDelta(
            tuple(torch.tensor(mask).shape), rows, columns, torch.ones(len(rows)), "float32", "0" * 24
        )
    return save(Delta(linears, provenance=Provenance(allocation=allocation)), path)


def test_the_pattern_is_that_of_the_entries(taskedge, here):
    even, wider = [[1, 1, 0, 0], [0, 1, 1, 0]], [[1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0]]
    path = delta_of(here / "a", even, wider)
    assert json.loads(taskedge("info", path, "--json").out)["pattern"] == {
        "name": "2:4",
        "linears": 2,
        "rest_groups": {"3": 2},
    }
    assert "\npattern   2:4 holds in all 2 linears (2 of a last group of 3)\n" in taskedge("info", path).out
    path = delta_of(here / "b", even)
    assert "\npattern   2:4 holds in all 1 linears\n" in taskedge("info", path).out
    path = delta_of(here / "c", even, [[1, 1, 1, 0, 1, 0, 0, 0]], allocation="2:4")  # it says so, but does not hold
    assert json.loads(taskedge("info", path, "--json").out)["pattern"] is None
    assert "\npattern" not in taskedge("info", path).out


def test_labels_are_quoted_and_counted(taskedge, here):
    """Labels may have commas and line breaks."""
    save(Delta({}, provenance=Provenance(task="text-classification", labels=("a\nb", "not, so good"))), here / "a")
    assert "task      text-classification: 'a\\nb', 'not, so good'\n" in taskedge("info", "a").out
    names = tuple(map(str, range(15)))
    save(Delta({}, provenance=Provenance(task="text-classification", labels=names)), here / "b")
    assert "'10', '11' and 3 more\n" in taskedge("info", "b").out


def test_a_claimed_width_costs_nothing(taskedge, here):
    one = torch.zeros(1, dtype=torch.int64)
    wide = LinearDelta((1, 2**31 - 1), one, one, torch.ones(1), "float32", "0" * 24)
    path = save(Delta({"l": wide}), here / "a")
    assert json.loads(taskedge("info", path, "--json").out)["pattern"] is None


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("bert.encoder.layer.3.output.dense", "bert.encoder.layer.3", "output.dense"),
        ("h.0.attn.c_attn", "h.0", "attn.c_attn"),
        ("encoder.fc", "encoder", "fc"),
        ("fc", "fc", "fc"),
        ("0", "0", "0"),
        ("layers.0", "layers.0", "layers.0"),
    ],
)
def test_names_are_cut_at_the_layer(name, layer, kind):
    assert block_and_kind(name) == (layer, kind)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_damaged_file(taskedge, tuned, here, cut):
    (here / "o").write_bytes(tuned[0].read_bytes()[:cut])
    ended = taskedge("info", "o", "--json")
    assert ended.code == 2
    assert ended.err.startswith("taskedge: o: ")
    assert ended.out == ""
