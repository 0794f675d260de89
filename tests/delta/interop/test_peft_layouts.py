"""Any support, laid out as peft wants it, adds up to the same change, in as many numbers as peft will count."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from taskedge.delta.interop.peft_layouts import Change, lora, shira, supertuning
from taskedge.errors import InputError


@st.composite
def changes(draw):
    """One to four linears of any shape with one entry or more each."""
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
        assert a.shape[0] == min(len(change.rows.unique()), len(change.columns.unique()))
