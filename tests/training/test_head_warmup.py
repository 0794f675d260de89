"""The head is fitted to features of the frozen base, and nothing else changes."""

import copy

import pytest
import tiny
import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from taskedge.backbone.candidates import head_parameters
from taskedge.errors import InputError
from taskedge.training.head_warmup import warm_head

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_labels": 3,
}


def made(kind):
    torch.manual_seed(0)
    if kind in tiny.MODELS:
        return tiny.MODELS[kind]()
    if kind == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=1))
    if kind == "mpnet":
        return MPNetForSequenceClassification(MPNetConfig(**SIZES))
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes))


def rows_of(count=24, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 40, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0]) % labels} for row in tokens]


def collate(rows):
    return {
        "input_ids": torch.stack([row["input_ids"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def penalized_loss(model, rows, module):
    """Return the mean loss of the whole model in evaluation mode and the penalty of the head."""
    loss = model.eval()(**collate(rows)).loss
    matrices = [p for p in model.get_submodule(module).parameters() if p.dim() > 1]
    return loss + sum(matrix.square().sum() for matrix in matrices) / (2 * len(rows))


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert"])
def test_the_gradient_of_the_whole_model_is_zero_at_the_fitted_head(kind):
    model, rows = made(kind), rows_of()
    before = tiny.state(model)
    warmed = warm_head(model.train(), rows, collate, batch_size=5)
    assert model.training
    assert warmed.loss_after < warmed.loss_before
    assert warmed.converged
    loss = penalized_loss(model, rows, warmed.module)
    parameters = list(model.get_submodule(warmed.module).parameters())
    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.abs().max() <= 3e-4
    assert model(**collate(rows)).loss.item() == pytest.approx(warmed.loss_after, rel=1e-4)
    inside = {name for name in before if name.startswith(f"{warmed.module}.")}
    assert inside <= set(head_parameters(model))
    assert tiny.same_bits(
        {name: t for name, t in model.state_dict().items() if name not in inside},
        {name: t for name, t in before.items() if name not in inside},
    )
    assert [p.requires_grad for p in model.parameters()] == [True] * len(list(model.parameters()))


def test_a_head_that_reads_every_token_is_fitted_to_the_one_that_counts():
    model = made("gpt2")
    model.config.pad_token_id = 0
    rows = rows_of(labels=tiny.LABELS)
    warmed = warm_head(model, rows, collate, batch_size=7)
    assert warmed.module == "score"
    assert model.eval()(**collate(rows)).loss.item() == pytest.approx(warmed.loss_after, rel=1e-4)


def test_sets_of_labels_are_fitted_to_the_loss_of_the_model():
    model = made("bert")
    model.config.problem_type = "multi_label_classification"
    rows = [row | {"labels": [float(token % 2) for token in row["input_ids"][:3].tolist()]} for row in rows_of()]
    warmed = warm_head(model, rows, collate, batch_size=5)
    assert warmed.converged
    assert warmed.loss_after < warmed.loss_before
    assert model.eval()(**collate(rows)).loss.item() == pytest.approx(warmed.loss_after, rel=1e-4)


def test_numbers_are_fitted_as_by_ridge_regression():
    config = copy.deepcopy(made("bert").config)
    config.num_labels = 1
    model = type(made("bert"))(config).eval()
    rows = [row | {"labels": float(row["input_ids"][0]) / 25 - 1} for row in rows_of(count=30)]
    inputs = []
    hook = model.classifier.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(**collate(rows))
    hook.remove()
    x, y = inputs[0].double(), torch.tensor([row["labels"] for row in rows]).double()
    centered = x - x.mean(0)
    weight = torch.linalg.solve(
        centered.t() @ centered + 0.5 * torch.eye(x.shape[1]).double(), centered.t() @ (y - y.mean())
    )
    warm_head(model, rows, collate, batch_size=8)
    torch.testing.assert_close(model.classifier.weight.double()[0], weight, atol=2e-3, rtol=2e-3)


def test_a_half_precision_head_is_fitted_in_fp32_and_rounded_once():
    exact, rounded, rows = made("bert"), made("bert").bfloat16(), rows_of()
    exact.load_state_dict(rounded.state_dict())
    warm_head(exact, rows, collate, 8)
    warm_head(rounded, rows, collate, 8)
    assert rounded.classifier.weight.dtype == torch.bfloat16
    assert (rounded.classifier.weight.float() - exact.classifier.weight).abs().max() < 0.1


def test_a_second_run_gives_the_same_bits():
    one, again = made("bert"), made("bert")
    for model in (one, again):
        warm_head(model, rows_of(), collate, 8)
    assert tiny.same_bits(one.state_dict(), again.state_dict())


class Mixed(nn.Module):
    """A model whose logits are no function of one vector a row."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, input_ids, labels=None):
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.classifier(self.embed(input_ids)).mean(1))


def test_models_whose_head_cannot_be_trained_alone_are_refused():
    with pytest.raises(InputError, match=r"do not follow from one vector a row through 'classifier'.*leave out"):
        warm_head(Mixed(), rows_of(), collate, 8)
    with pytest.raises(InputError, match="no head of its own"):
        warm_head(tiny.t5(), rows_of(), collate, 8)
