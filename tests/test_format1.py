"""Files and messages of the first formats, written by an earlier revision, are read, and deltas have the same bytes."""

import random
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.payloads import decode_support
from taskedge.delta.delta import Delta, LinearDelta, LowRankDelta, Provenance
from taskedge.selection.support import LayerSupport, Support, load_support
from taskedge.training.callbacks import TrainState
from taskedge.training.checkpoint import Checkpoint

FOLDER = Path(__file__).parent / "fixtures" / "format1"


def linear(shape, flat, digest):
    flat = torch.tensor(flat)
    values = (torch.arange(len(flat)) - 1.5) / 4
    return LinearDelta(shape, flat // shape[1], flat % shape[1], values, "float32", digest)


LINEARS = {
    "encoder.first": linear((3, 300), [5, 299, 300, 301, 899], "0123456789abcdef01234567"),
    "encoder.second": linear((2, 4), [0, 3, 5], "89abcdef0123456701234567"),
}
HEAD = {
    "classifier.weight": torch.arange(6.0).view(2, 3) / 8,
    "classifier.bias": torch.tensor([-0.0, 1.5], dtype=torch.bfloat16),
}
PROVENANCE = Provenance(
    rule="taskedge",
    allocation="per_neuron",
    budget="0.1%",
    base="bert-base-uncased",
    base_parameters=109483778,
    task="text-classification",
    labels=("negative", "positive"),
    training={"lr": 0.01, "epochs": 3.0, "text": "review", "base": "loaded", "warm": None},
)
LOW_RANK = {
    "encoder.third": LowRankDelta(
        torch.arange(6.0).view(2, 3) / 4, torch.arange(8.0).view(4, 2) - 3, 2.0, "bfloat16", "51f0" * 6
    )
}
DELTAS = {
    "delta-fp32": (Delta(LINEARS, HEAD, PROVENANCE), "fp32"),
    "delta-bf16-low-rank": (Delta(LINEARS, HEAD, PROVENANCE, LOW_RANK), "bf16"),
    "delta-one-per-row": (Delta({"only": linear((4, 2), [1, 2, 5, 6], "00" * 12)}), "fp32"),
}


@pytest.mark.parametrize("name", list(DELTAS))
def test_a_delta(name, tmp_path):
    expected, values = DELTAS[name]
    path = FOLDER / f"{name}.safetensors"
    delta = te.load(path)
    assert delta.provenance == expected.provenance
    assert list(delta.linears) == list(expected.linears)
    for layer, one in expected.linears.items():
        other = delta.linears[layer]
        assert (other.shape, other.base_dtype, other.base_digest) == (one.shape, one.base_dtype, one.base_digest)
        assert torch.equal(other.rows, one.rows)
        assert torch.equal(other.columns, one.columns)
        assert torch.equal(other.values, one.values)  # multiples of 1/8: exact in bf16 too
    assert list(delta.low_rank) == list(expected.low_rank)
    for layer, product in expected.low_rank.items():
        other = delta.low_rank[layer]
        assert (other.scale, other.base_dtype) == (product.scale, product.base_dtype)
        assert torch.equal(other.a, product.a)
        assert torch.equal(other.b, product.b)
    assert tiny.same_bits(delta.full_parameters, expected.full_parameters)
    assert te.save(expected, tmp_path / "again", values=values).read_bytes() == path.read_bytes()


def check_support(support):
    assert support.linears.keys() == {"a", "b"}
    first, second = support.linears["a"], support.linears["b"]
    assert (first.shape, first.flat.tolist(), first.shared_input) == ((2, 3), [2, 3], "a")
    assert first.input_rms.tolist() == [1.0, 2.0, 3.0]
    assert (second.shape, second.flat.tolist(), second.shared_input) == ((4, 3), [10], "a")
    assert second.input_rms is None
    assert (support.model_parameters, support.rule, support.allocation, support.budget) == (100, "spt", "spt", "3%")
    assert support.settings == {"seed": 7, "rank": 8}
    assert (support.low_rank, support.num_low_rank_parameters) == ({"c": 8}, 48)
    assert (support.full_parameters, support.num_full_parameters) == (("n.weight", "n.bias"), 6)


def test_a_support():
    check_support(load_support(FOLDER / "support.safetensors"))


def test_messages():
    message = Message.unpack((FOLDER / "install.message").read_bytes())
    assert (message.kind, message.header["run"]) == ("install", "r1")
    check_support(decode_support(message.header["support"], message.tensors))
    packed = (FOLDER / "hello.message").read_bytes()
    assert Message.unpack(packed) == Message("hello", {"name": "dévice"})
    assert Message("hello", {"name": "dévice"}).pack() == packed


def test_a_version_of_a_cooperative_run():
    state, tensors = versions.read(FOLDER / "version-3.safetensors")
    assert state == {"round": 3, "loss": 0.5}
    expected = {"value/x": torch.tensor([1.0, -0.0, 1e-40]), "steps/x": torch.tensor(7)}
    assert tiny.same_bits(tensors, expected)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


def test_a_checkpoint():
    """AdamW at step 2 over two entries of ``first`` and the bias of ``head``."""
    model = TwoLayers()
    support = LayerSupport((4, 3), torch.tensor([0, 2]), torch.tensor([1, 2]), "first")
    te.install(model, Support({"first": support}, 100), trainable=["head.bias"])
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=0.25)
    checkpoint = Checkpoint(FOLDER / "checkpoint-2")
    state = TrainState(model, optimizer, max_steps=9)
    checkpoint.restore(state)
    checkpoint.restore_random()
    assert (state.step, state.loss_sum, state.log) == (2, 1.5, [{"loss": 0.5, "step": 2}])
    assert [parameter.tolist() for parameter in tiny.trained(model)] == [[1.0, 1.5], [1.0, 1.5]]
    for parameter in tiny.trained(model):
        moments = optimizer.state[parameter]
        assert float(moments["step"]) == 2.0
        assert (moments["exp_avg"].tolist(), moments["exp_avg_sq"].tolist()) == ([0.5, 0.5], [0.25, 0.25])
    drawn = random.Random(3)
    assert random.random() == drawn.random()  # the run that wrote it had drawn nothing after its seed
