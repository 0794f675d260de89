"""A step in parts has the gradient of the whole: parts of unequal size and unequal numbers of labels included."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import taskedge as te
from taskedge.errors import InputError
from taskedge.training.callbacks import Callback
from taskedge.training.memory.micro_batch import count_labels
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

SETTINGS = TrainerConfig(epochs=1, batch_size=8, lr=1e-2, clip=0)


def llama():
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )  # fmt: skip
    return _seeded(LlamaForCausalLM, config)


def gpt2_lm():
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=24, n_embd=16, n_layer=2, n_head=2)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return _seeded(GPT2LMHeadModel, config)


def regression():
    model = tiny.bert()
    model.config.problem_type, model.config.num_labels, model.num_labels = "regression", 1, 1
    model.classifier = torch.nn.Linear(16, 1)
    return model


def _seeded(kind, config):
    torch.manual_seed(7)
    return kind(config)


def rows(model, count=22):
    """Texts of 3 to 10 tokens; of those of a language model a part is learnt, in some but one token."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for place in range(count):
        ids = torch.randint(1, tiny.VOCABULARY, (3 + place % 8,), generator=draw)
        if isinstance(model, LlamaForCausalLM | GPT2LMHeadModel):
            labels = ids.clone()
            labels[: len(ids) - 1 if place % 3 else 0] = -100
        else:
            labels = torch.tensor(place % 7 / 3) if model.num_labels == 1 else torch.tensor(place % tiny.LABELS)
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(examples):
    def padded(name, value):
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in examples], batch_first=True, padding_value=value)

    ids = padded("input_ids", 0)
    scalar = examples[0]["labels"].dim() == 0
    labels = torch.stack([row["labels"] for row in examples]) if scalar else padded("labels", -100)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


class Gradients(Callback):
    def __init__(self):
        self.seen = []

    def on_gradients(self, state):
        self.seen.append({name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None})


def run(folder, made, settings):
    watch = Gradients()
    torch.manual_seed(0)
    result = train(made, rows(made), collate, settings, folder, progress=False, callbacks=[watch])
    return watch.seen, result


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2, regression, llama, gpt2_lm])
@pytest.mark.parametrize("micro", [1, 4])
def test_every_step_has_the_gradient_of_its_whole_batch(tmp_path, make, micro):
    """22 rows in batches of 8, of which two make a step: the last step's parts are unequal."""
    model = make().double()
    te.install(model, te.select(model, rule="magnitude", per_neuron=1), trainable=[])
    twin = copy.deepcopy(model)
    # at this rate all steps start from the same values
    frozen = TrainerConfig(**SETTINGS.model_dump() | {"lr": 1e-30, "accumulate": 2})
    whole, first = run(tmp_path, twin, TrainerConfig(**frozen.model_dump() | {"batch_size": 16, "accumulate": 1}))
    parts, second = run(tmp_path, model, TrainerConfig(**frozen.model_dump() | {"micro_batch": micro}))
    assert first.steps == second.steps == len(whole) == len(parts) == 2
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-9)
    assert second.loss == pytest.approx(first.loss, rel=1e-5)


def test_the_gradient_is_that_of_the_mean_loss(tmp_path):
    """Against a plain backward pass, not only against another run of the loop."""
    model = tiny.bert().double()
    te.install(model, te.select(model, rule="magnitude", per_neuron=1))
    twin = copy.deepcopy(model).train()
    settings = TrainerConfig(**SETTINGS.model_dump() | {"batch_size": 22, "micro_batch": 2})
    (found,), result = run(tmp_path, model, settings)
    loss = twin(**collate(rows(twin))).loss
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in twin.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-9)


def test_parts_must_fit():
    whole, parts = TrainerConfig(batch_size=32, accumulate=2), TrainerConfig(batch_size=32, accumulate=2, micro_batch=8)
    assert (whole.rows_per_pass, whole.passes_per_step) == (32, 2)
    assert (parts.rows_per_pass, parts.passes_per_step) == (8, 8)
    message = "a micro-batch of 5 rows does not divide a batch of 8: give one of 1, 2, 4, 8"
    with pytest.raises(InputError, match=message):
        TrainerConfig(batch_size=8, micro_batch=5)


def test_what_is_counted():
    assert count_labels({"labels": torch.tensor([[-100, 3], [1, 2]])}) == 3
    assert count_labels({"labels": torch.tensor([-100.0, 1.0])}) == 2
    assert count_labels({"pixel_values": torch.zeros(5, 3)}) == 5
