"""Measures of generated texts and of tagged entities."""

from __future__ import annotations

import importlib.util

import pytest

from taskedge.training import text_metrics as module
from taskedge.training.text_metrics import entity_metrics, missing_text_metrics, text_metrics


def test_rouge_bleu_and_chrf_of_known_texts():
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    found = text_metrics(["the cat sat", "a b c d e"], ["the cat ran", "a b c d e"])
    assert found["rouge1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["rouge2"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["rougeL"] == pytest.approx((2 / 3 + 1) / 2)
    same = text_metrics(["one two three four five"], ["one two three four five"])
    assert same["bleu"] == pytest.approx(100)
    assert same["chrf"] == pytest.approx(100)
    assert missing_text_metrics() == ""


def test_entities_count_as_a_whole():
    pytest.importorskip("seqeval")
    truth = [["B-PER", "I-PER", "O", "B-LOC"]]
    found = entity_metrics([["B-PER", "O", "O", "B-LOC"]], truth)
    assert found == {"entity_precision": 0.5, "entity_recall": 0.5, "entity_f1": 0.5}
    assert entity_metrics(truth, truth)["entity_f1"] == 1.0
    assert entity_metrics([["O"]], [["O"]])["entity_f1"] == 0.0


def test_missing_packages_leave_their_measures_out_and_are_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert text_metrics(["a"], ["a"]) == {}
    assert entity_metrics([["O"]], [["O"]]) == {}
    assert missing_text_metrics().startswith("ROUGE and BLEU and chrF will not be measured")
    monkeypatch.setattr(module, "find_spec", lambda name: name == "rouge_score" or None)
    assert missing_text_metrics().startswith("BLEU and chrF will not")
    assert importlib.util.find_spec("json")
