"""``taskedge info``: numbers that add up."""

from __future__ import annotations

import json

import pytest

from taskedge.cli.info import _split


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
        "task      text-classification: neg, pos",
        "entries   124 (2.0019%) by rule 'taskedge', per_neuron",
        "whole     34 parameters: classifier.bias, classifier.weight",
        "bert.encoder.layer.0",
        "attention.self.query",
    ):
        assert part in shown


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
    assert _split(name) == (layer, kind)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_damaged_file(taskedge, tuned, here, cut):
    (here / "o").write_bytes(tuned[0].read_bytes()[:cut])
    ended = taskedge("info", "o", "--json")
    assert ended.code == 2
    assert ended.err.startswith("taskedge: o: ")
    assert ended.out == ""
