"""The card says what the delta says, and no path of the machine that trained."""

from __future__ import annotations

import tiny
import yaml

import taskedge as te
from taskedge.delta.delta import Provenance
from taskedge.delta.interop.export import Source
from taskedge.delta.interop.model_card import model_card


def card(base, **provenance):
    model = tiny.bert()
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=1))
    delta = te.extract(tiny.train(model)).with_provenance(**provenance)
    return model_card(Source(model, delta, base)), delta


def test_header_and_table():
    text, delta = card(
        "org/base", task="text-classification", labels=("a|b", "c"), base_parameters=10_000, rule="taskedge",
        training={"steps": 1200, "lr": 0.01, "train": "/home/somebody/train.csv", "log": {"x": 1}},
    )  # fmt: skip
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "org/base"
    assert header["pipeline_tag"] == header["tags"][0].replace("taskedge", "text-classification")
    assert f"| changed weights | {delta.num_entries:,} (" in text
    assert "| labels | a\\|b, c |" in text
    assert "| steps | 1,200 |" in text
    assert "somebody" not in text
    assert "license" in text


def test_a_local_base_is_named_without_its_path():
    text, _ = card("/home/somebody/base-7")
    assert "somebody" not in text
    assert "# base-7, tuned for" in text
    assert "base_model" not in text


def test_it_is_in_the_merged_folder(tmp_path):
    _, delta = card("org/base")
    te.export(tiny.bert(), delta.with_provenance(**vars(Provenance(base="org/base"))), tmp_path / "m", to="merged")
    assert 'base_model: "org/base"' in (tmp_path / "m" / "README.md").read_text()
