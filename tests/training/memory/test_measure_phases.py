"""Peaks of the selection and of the evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import memory_runs
import pytest
import torch
import transformers
from causal_models import CAUSAL_CONFIGS, labeled_batch

from taskedge.backbone import linear_cross_entropy
from taskedge.backbone.label_loss import label_count, use_label_loss
from taskedge.backbone.linear_cross_entropy import chunk_limit, head_bytes
from taskedge.forms.recompute import recomputing
from taskedge.profiling.tensor_memory import LiveBytes
from taskedge.training.memory.headroom import MemoryHeadroom
from taskedge.training.memory.measure_phases import LossBytes, measure_evaluation, measure_selection
from taskedge.training.memory.measure_step import SampleBatches


def test_the_selection_of_a_large_batch_is_predicted(task, brief):
    run = memory_runs.run(task, rule="fisher", batch_size=32)
    batches = SampleBatches(run)
    line = measure_selection(run, batches, MemoryHeadroom(None))
    with LiveBytes() as live:
        run.select([batches.batch(32, batches.longest)])
    assert line.at(32) == pytest.approx(live.peak, rel=0.15)


def test_phases_that_a_run_does_not_have(task, brief):
    run = memory_runs.run(task, form="lora", rank=2, per_neuron=None)
    assert measure_selection(run, SampleBatches(run), MemoryHeadroom(None)) is None
    assert measure_evaluation(run, MemoryHeadroom(None)) is None


def test_two_rows_are_tried_only_with_headroom(task, brief):
    run = memory_runs.run(task, eval=task / "eval.csv")
    headroom = MemoryHeadroom(None)
    assert [rows for rows, _ in measure_evaluation(run, headroom).points] == [1, 2]
    headroom.fits = lambda num_bytes: False
    assert [rows for rows, _ in measure_evaluation(run, headroom).points] == [1]


class LanguageRun:
    """As much of a run as the loss needs."""

    def __init__(self, model, labels):
        self.base = SimpleNamespace(model=model)
        self.rows = [{"labels": row} for row in labels]

    def eval_rows(self):
        return []


def language_model(vocabulary):
    config = {**CAUSAL_CONFIGS["llama"], "vocab_size": vocabulary}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("llama", **config))
    assert use_label_loss(model)
    model.get_output_embeddings().requires_grad_(False)
    return model


def test_the_loss_of_a_language_model_counts_the_rows_with_the_most_labels():
    model = language_model(61)
    run = LanguageRun(model, [[5, -100, 7], [5, 6, 7, 8, 9], [-100, -100, 3]])
    loss = LossBytes(run)
    assert [loss.at(rows) for rows in (1, 2, 3)] == [head_bytes(61, count) for count in (4, 5, 6)]
    with chunk_limit(4 * 61 * 2):
        assert loss.at(3) == head_bytes(61, 2)
    assert LossBytes(LanguageRun(torch.nn.Linear(1, 1), [])).at(8) == 0


@pytest.mark.parametrize("recompute", ["none", "blocks", "inputs"])
@pytest.mark.parametrize("words", [500, 5000])
def test_the_peak_of_a_language_model_is_that_without_its_loss_and_the_loss(monkeypatch, words, recompute):
    monkeypatch.setattr(linear_cross_entropy, "has_fused", lambda: False)  # its memory is not in the count
    model = language_model(words)
    batch = labeled_batch(model.config, 8, 20, seed=0)

    def run():
        saved = []
        with LiveBytes() as live, recomputing(model.train(), recompute):
            loss = model(**batch).loss
            saved.append(live.live)
            loss.backward()
        model.zero_grad()
        return saved[0], live.peak

    run()  # gradients exist from here on
    with chunk_limit(1):
        saved, peak = run()
    with chunk_limit(4 * words * 16):
        measured = run()[1]
        predicted = saved + max(peak - saved, head_bytes(words, label_count(batch["labels"])))
    assert measured == pytest.approx(predicted, rel=0.1)
