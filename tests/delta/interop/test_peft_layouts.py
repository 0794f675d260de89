"""Each layout represents the same change for any support, with as many numbers as peft expects."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.delta.delta import LowRankDelta
from taskedge.delta.interop.peft_layouts import Change, lora, shira, supertuning
from taskedge.errors import InputError


@st.composite
def changes(draw):
    """Draw one to four linears of any shape with at least one entry each."""
    made = {}
    for number in range(draw(st.integers(1, 4))):
        out, inputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        flat = torch.tensor(sorted(draw(st.sets(st.integers(0, out * inputs - 1), min_size=1))))
        relative = torch.randn(len(flat), generator=torch.Generator().manual_seed(number))
        made[f"layer.{number}"] = Change((out, inputs), flat // inputs, flat % inputs, relative, True)
    return made


def dense(change):
    matrix = torch.zeros(change.shape)
    matrix[change.rows, change.columns] = change.relative
    return matrix


@given(changes())
def test_any_support_keeps_its_change(made):
    layout = supertuning(made)
    for name, change in made.items():
        at, values = layout.tensors[f"{name}.supertuning_indices"], layout.tensors[f"{name}.supertuning_values"]
        assert len(values) == len(at) == int(change.size * (1 - layout.config["sparsity"]))  # peft's own count
        assert torch.equal(torch.zeros(change.size).scatter_add(0, at.long(), values).view(change.shape), dense(change))
    assert 0 <= layout.config["sparsity"] < 1
    full = max(made.values(), key=lambda change: len(change.rows) / change.size)
    assert int(full.size * (1 - layout.config["sparsity"])) <= len(full.rows) + 1

    try:
        layout = shira(made)
    except InputError:
        r = max(-(-len(change.rows) // sum(change.shape)) for change in made.values())
        assert any(r * sum(change.shape) > change.size for change in made.values())
    else:
        for name, change in made.items():
            at, values = layout.tensors[f"{name}.shira_indices"], layout.tensors[f"{name}.shira_weight"]
            assert len(values) == at.shape[1] == layout.config["r"] * sum(change.shape)
            assert torch.equal(torch.sparse_coo_tensor(at, values, change.shape).to_dense(), dense(change))

    layout = lora(made)
    for name, change in made.items():
        a, b = layout.tensors[f"{name}.lora_A.weight"], layout.tensors[f"{name}.lora_B.weight"]
        assert torch.equal(b @ a, dense(change))
        assert a.shape[0] == b.shape[1] == layout.config["r"]
    needed = [min(len(change.rows.unique()), len(change.columns.unique())) for change in made.values()]
    assert layout.config["r"] == max(needed)


READERS = {
    "one scale for all, as vLLM": lambda config, a: config["lora_alpha"] / config["r"],
    "alpha over the rank of the tensor, as llama.cpp": lambda config, a: config["lora_alpha"] / a.shape[0],
}
"""How readers that ignore ``rank_pattern`` and ``alpha_pattern`` scale the product of a linear."""


@pytest.mark.parametrize("reader", READERS)
@given(made=changes(), scales=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=4, max_size=4))
def test_lora_is_right_for_readers_that_ignore_patterns(reader, made, scales):
    """Linears of different ranks, entries and products of different scales, all by one r and one lora_alpha."""
    expected = {name: dense(change) for name, change in made.items()}
    for index, (name, change) in enumerate(list(made.items())[1:]):
        generator = torch.Generator().manual_seed(index)
        out, inputs = change.shape
        rank = index + 1
        a, b = torch.randn(rank, inputs, generator=generator), torch.randn(out, rank, generator=generator)
        none = torch.empty(0, dtype=torch.int64)
        product = LowRankDelta(a, b, scales[index], "float32", "0" * 24)
        made[name] = Change(change.shape, none, none, none.float(), True, product)
        expected[name] = b @ a * scales[index]
    layout = lora(made)
    assert not {"rank_pattern", "alpha_pattern"} & layout.config.keys()
    for name in made:
        a, b = layout.tensors[f"{name}.lora_A.weight"], layout.tensors[f"{name}.lora_B.weight"]
        torch.testing.assert_close(b @ a * READERS[reader](layout.config, a), expected[name])


def test_zeros_that_lora_stores_are_counted():
    """Ranks 1 and 2: of 2·(3 + 4) + 2·(5 + 6) numbers, one is an entry and the product's own are 2·(5 + 6)."""
    one = torch.zeros(1, dtype=torch.int64)
    none = torch.empty(0, dtype=torch.int64)
    product = LowRankDelta(torch.randn(2, 6), torch.randn(5, 2), 1.0, "float32", "0" * 24)
    layout = lora(
        {
            "sparse": Change((3, 4), one, one, torch.ones(1), True),
            "product": Change((5, 6), none, none, none.float(), True, product),
        }
    )
    assert layout.padded == 2 * (3 + 4) - 1
    assert torch.equal(layout.tensors["product.lora_A.weight"], product.a)
