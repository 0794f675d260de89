"""Costs counted on models of any names, against formulas and against a model with weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from taskedge.backbone.cost_model import (
    block_table,
    distribute_entries,
    dummy_inputs,
    first_float,
    shape_digest,
    skeleton,
)
from taskedge.errors import InputError

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}


def tiny(device: str = "cpu", **changes) -> nn.Module:
    with torch.device(device):
        return transformers.AutoModel.from_config(transformers.BertConfig(**TINY | changes))


class Stack(nn.Module):
    """Layers of one linear and one ReLU each, under unusual names."""

    class Layer(nn.Module):
        def __init__(self, width: int, inner: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x)))

    def __init__(self, width: int = 4, inner: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.tower = nn.ModuleList(Stack.Layer(width, inner) for _ in range(layers))
        self.out = nn.Linear(width, 5, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.tower:
            x = layer(x)
        return self.out(x)


def test_by_hand() -> None:
    model = Stack()
    table = block_table(model, {"ids": torch.zeros(2, 7, dtype=torch.long)}, 0.1, "stack")
    assert table.layers == (("tower.2",), ("tower.1",), ("tower.0",))
    assert np.allclose(table.parameters, 48)
    assert np.allclose(table.forward_flops, 2 * 48)  # two products of 4 x 6 multiply-adds
    assert np.allclose(table.backward_flops, 2 * 48)  # the input's gradient alone
    assert np.allclose(table.activation_bytes, 6 * 4)  # the ReLU's output
    assert np.allclose(table.input_bytes, 4 * 4)  # the first linear's input; the second's is kept already
    assert np.allclose(table.boundary_bytes, 4 * 4)
    assert table.other_forward_flops == 2 * 20
    assert table.base_bytes == 4 * (40 + 3 * 48 + 20)
    assert table.payload_values.sum() == round(0.1 * 204)
    assert table.sequence_tokens == 7


def test_the_model_is_left_as_it_was() -> None:
    model = tiny().eval()
    next(iter(model.parameters())).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    block_table(model, dummy_inputs(model, 1, 8), 0.01, "tiny")
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_shapes_alone_are_enough() -> None:
    with_weights, without = tiny(), tiny("meta")
    one = block_table(with_weights, dummy_inputs(with_weights, 1, 16), 0.01, "tiny")
    two = block_table(without, dummy_inputs(without, 1, 16), 0.01, "tiny")
    assert one.layers == two.layers
    assert one.digest == two.digest
    for key in ("forward_flops", "backward_flops", "activation_bytes", "input_bytes", "payload_values"):
        assert np.allclose(getattr(one, key), getattr(two, key)), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        transformers.RobertaConfig(**TINY | {"num_hidden_layers": 2, "max_position_embeddings": 60}),
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=64),
        transformers.LlamaConfig(**TINY | {"num_hidden_layers": 2}),
        transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=50),
        transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50),
    ],
    ids=lambda config: type(config).__name__,
)
def test_any_architecture(config) -> None:
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    table = block_table(model, dummy_inputs(model, 1, 16), 0.01, "x")
    assert len(table) in (2, 4)
    for key in (
        "parameters",
        "forward_flops",
        "backward_flops",
        "activation_bytes",
        "boundary_bytes",
        "payload_values",
    ):
        assert (getattr(table, key) > 0).all(), key


def test_flops_grow_with_attention() -> None:
    model = tiny("meta")
    short, long = (block_table(model, dummy_inputs(model, 1, n), 0.01, "t") for n in (8, 32))
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert np.allclose(short.forward_flops, weights + 4 * 8 * 32)  # scores and their product with the values
    assert np.allclose(long.forward_flops, weights + 4 * 32 * 32)


def test_digest_knows_the_shape_only() -> None:
    assert shape_digest(tiny()) == shape_digest(tiny())
    assert shape_digest(tiny()) != shape_digest(tiny(intermediate_size=65))
    assert shape_digest(tiny()) != shape_digest(tiny().half())


def test_no_blocks() -> None:
    with pytest.raises(InputError, match="no repeated blocks"):
        block_table(nn.Linear(3, 3), {"input": torch.zeros(1, 3)}, 0.1, "flat")


def test_too_long_a_sequence() -> None:
    with pytest.raises(InputError, match="smaller --length"):
        dummy_inputs(tiny(), 1, 41)


def test_a_model_without_token_ids() -> None:
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.ViTConfig(hidden_size=32, num_hidden_layers=2))
    with pytest.raises(InputError, match="takes no token ids"):
        dummy_inputs(model, 1, 8)
    images = {"pixel_values": torch.zeros(1, 3, 224, 224, device="meta")}
    assert len(block_table(model, images, 0.01, "vit")) == 2


def test_skeletons(tmp_path) -> None:
    transformers.BertConfig(**TINY).save_pretrained(tmp_path)
    model = skeleton(str(tmp_path))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no config that can be used"):
        skeleton(str(tmp_path))


def test_first_float() -> None:
    assert first_float((torch.zeros(1, dtype=torch.long), torch.ones(2))).sum() == 2
    with pytest.raises(InputError, match="no floating-point"):
        first_float({"ids": torch.zeros(1, dtype=torch.long)})


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=12))
def test_spread_is_exact_and_even(entries, rows) -> None:
    got = distribute_entries(entries, np.array(rows))
    if not sum(rows):
        assert not got.any()
        return
    assert got.sum() == entries
    assert (np.abs(got - entries * np.array(rows) / sum(rows)) < 1 + 1e-9).all()
