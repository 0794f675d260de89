"""Tiny models of every architecture that the tests need, with batches and a plain training loop; no downloads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY, LABELS = 40, 3


def bert(dropout: float = 0.0) -> nn.Module:
    """Return an encoder with a classifier: 1,088 embeddings + 2 x 2,224 block + 272 pooler + 51 classifier."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        num_labels=LABELS,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return _counted(_seeded(BertForSequenceClassification, config), 5859)


def gpt2() -> nn.Module:
    """Return a decoder with Conv1D linears ([in, out]): 1,024 embeddings + 2 x 3,280 block + 32 norm + 48 score."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=24,
        n_embd=16,
        n_layer=2,
        n_head=2,
        num_labels=LABELS,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return _counted(_seeded(GPT2ForSequenceClassification, config), 7664)


def vit() -> nn.Module:
    """Return an image classifier: 880 embeddings + 2 x 2,224 block + 32 norm + 51 classifier."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return _counted(_seeded(ViTForImageClassification, config), 5411)


def resnet() -> nn.Module:
    """Return an image classifier of convolutions, with running statistics that differ from their initial values."""
    config = ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 6], depths=[2, 1], layer_type="basic", num_labels=LABELS
    )
    model = _seeded(ResNetForImageClassification, config)
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(1 + 0.5 * torch.rand(module.num_features, generator=generator))
    return model.eval()


def t5(tie: bool = True) -> nn.Module:
    """Return an encoder-decoder with shared embeddings and a language-model head, tied to them if ``tie``."""
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        tie_word_embeddings=tie,
    )
    return _seeded(T5ForConditionalGeneration, config).eval()


def t5_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = (torch.randint(1, VOCABULARY, (3, 5), generator=generator) for _ in range(2))
    return {"input_ids": ids, "labels": labels}


class Mlp(nn.Module):
    """A plain module without repeated blocks: 12 -> 10 -> 8 -> 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, LABELS)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.dropout(torch.relu(self.first(x))))))


def mlp() -> nn.Module:
    """Return the plain module: 130 + 88 + 27 parameters."""
    return _counted(_seeded(Mlp), 245)


MODELS = {"bert": bert, "gpt2": gpt2, "vit": vit, "mlp": mlp}


def batch(model: nn.Module, rows: int = 4, tokens: int = 6, seed: int = 0) -> Any:
    """Return inputs for the model, with labels if it takes them and padding if it takes a mask."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Mlp):
        return torch.randn(rows, tokens, 12, generator=generator)
    labels = torch.randint(0, LABELS, (rows,), generator=generator)
    if isinstance(model, ViTForImageClassification | ResNetForImageClassification):
        return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator), "labels": labels}
    ids = torch.randint(1, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


def logits(model: nn.Module, given: Any) -> Tensor:
    output = model(**given) if isinstance(given, dict) else model(given)
    return output if isinstance(output, Tensor) else output.logits


def loss(model: nn.Module, given: Any) -> Tensor:
    return logits(model, given).square().mean() + logits(model, given).mean()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(model: nn.Module, steps: int = 3, lr: float = 3e-2) -> nn.Module:
    """Train with a plain torch loop, and return the model."""
    optimizer = torch.optim.AdamW(trained(model), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, batch(model, seed=step)).backward()
        optimizer.step()
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's state dict."""
    return copy.deepcopy(dict(model.state_dict()))


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, so that -0.0 and 0.0 differ and NaN equals itself."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(bits(one[name]), bits(other[name])) for name in one
    )


def _seeded(kind: Any, *arguments: Any) -> nn.Module:
    """Return a model with the same values on every call; the global generator is not advanced."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return kind(*arguments)


def _counted(model: nn.Module, parameters: int) -> nn.Module:
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    return model.eval()
