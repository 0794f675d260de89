"""``taskedge info`` of several files, its picture, and the drawing of layers with gates."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import tiny
import torch

import taskedge as te
from taskedge.cli.located_supports import drawn_layers, located, overlap_text
from taskedge.errors import InputError
from taskedge.forms.install_taps import install_taps, taps_support
from taskedge.forms.taps import layer_gates
from taskedge.selection.support_file import write_support_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two deltas of random supports, the support of the first as a file, a delta of layers, and one of no entries."""
    folder = tmp_path_factory.mktemp("supports")
    for seed in (0, 1):
        model = tiny.bert()
        support = te.select(model, per_neuron=4, rule="random", seed=seed)
        if not seed:
            write_support_file(support, folder / "chosen.safetensors", model)
        te.save(te.extract(te.install(model, support)), folder / f"seed{seed}.safetensors")
    model = install_taps(tiny.bert(), taps_support(tiny.bert()))
    for gate in list(layer_gates(model).values())[:4]:
        gate.score.data.fill_(0.0)
    te.save(te.extract(model), folder / "taps.safetensors")
    te.save(te.Delta({}, {"head": torch.zeros(2)}), folder / "head.safetensors")
    names = ("seed0", "seed1", "chosen", "taps", "head")
    return SimpleNamespace(**{name: folder / f"{name}.safetensors" for name in names})


def test_deltas_and_support_files_overlap(files):
    values = located([files.seed0, files.seed1, files.chosen])
    shared = {(pair["first"], pair["second"]): pair["share"] for pair in values["overlaps"]}
    assert shared["seed0", "chosen"] == 1.0
    assert 0 < shared["seed0", "seed1"] < 0.6
    table = overlap_text(values)
    assert "100.00%" in table
    assert table.count("seed0") == 3


def test_the_verb_prints_and_draws(taskedge, files, tmp_path):
    shown = taskedge("info", files.seed0, files.seed1)
    assert "of the smaller" in shown.out
    told = json.loads(taskedge("info", files.seed0, files.seed1, "--json", "--plot", tmp_path / "a.png").out)
    assert told["overlaps"][0]["shared"] > 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    one = json.loads(taskedge("info", files.seed0, "--json", "--plot", tmp_path / "b.svg").out)
    assert one["entries"] == one["supports"][0]["entries"]
    assert (tmp_path / "b.svg").exists()


def test_open_layers_are_drawn_by_depth(taskedge, files):
    shown = taskedge("info", files.taps).out
    assert "open layers by depth, 8 of 12" in shown
    assert "bert.encoder.layer.0  ....##  2 of 6" in shown
    assert "bert.encoder.layer.1  ######  6 of 6" in shown
    assert "closed_layers" not in shown
    assert len(json.loads(taskedge("info", files.taps, "--json").out)["closed_layers"]) == 4


def test_a_file_without_entries_and_a_file_twice_are_refused(files):
    with pytest.raises(InputError, match=r"head\.safetensors has no entries to locate"):
        located([files.seed0, files.head])
    with pytest.raises(InputError, match="is given twice: name each file once"):
        located([files.seed0, files.seed0])


def test_all_closed():
    assert "0 of 2" in drawn_layers([], ["m.layer.0.query", "m.layer.1.query"])
