"""Every class of layer trains, is extracted, applied, reverted and fused: against dense autograd, and bit for bit."""

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparse_models import KERNELS
from torch import nn
from transformers.pytorch_utils import Conv1D

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.forms.kernels import force_kernel
from taskedge.forms.sparse import sparse_layers

pytestmark = pytest.mark.usefixtures("gather_on_tiny_layers")


class Words(nn.Module):
    """Embeddings of two sizes that read the same ids, then a linear and a Conv1D."""

    def __init__(self):
        super().__init__()
        self.words, self.kinds = nn.Embedding(20, 6, padding_idx=0), nn.Embedding(30, 6)
        self.inner, self.outer = nn.Linear(6, 6), Conv1D(3, 6)

    def forward(self, ids):
        return self.outer(torch.relu(self.inner(self.words(ids) + self.kinds(ids))))


class Pictures(nn.Module):
    """Convolutions of two shapes that read the same picture, one that overlaps, and a linear."""

    def __init__(self):
        super().__init__()
        self.patches, self.wide = nn.Conv2d(2, 6, 2, stride=2), nn.Conv2d(2, 6, (3, 2), stride=2, padding=(1, 0))
        self.over, self.head = nn.Conv2d(6, 5, 3, padding="same", dilation=2), nn.Linear(5, 3)

    def forward(self, x):
        hidden = torch.relu(self.over(torch.relu(self.patches(x) + self.wide(x))))
        return self.head(hidden.flatten(2).mean(-1))


def words(dtype=torch.float32):
    return Words().to(dtype), torch.randint(0, 20, (4, 7))


def pictures(dtype=torch.float32):
    return Pictures().to(dtype), torch.randn(4, 2, 8, 6, dtype=dtype)


MAKES = {"words": words, "pictures": pictures}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@given(seed=st.integers(0, 1000), budget=st.sampled_from(["2%", "20%", "80%"]))
def test_gradients_are_those_of_dense_autograd_in_fp64(make, kernel, seed, budget):
    torch.manual_seed(seed)
    model, given_ = make(torch.float64)
    twin = copy.deepcopy(model)
    te.install(model, te.select(model, [given_], budget=budget, rule="random", linears=["*"], seed=seed), trainable=[])
    with force_kernel(kernel):
        for one in (model, twin):
            one(given_).square().sum().backward()
    for name, layer in sparse_layers(model).items():
        dense = linears(twin)[name]
        gradient = dense.adapter.matrix(dense.module.weight.grad)[layer.entries.rows, layer.entries.columns]
        offsets = layer.entries.offsets.grad  # float32: rounded once, at the end
        torch.testing.assert_close(offsets, gradient.float(), rtol=1e-6, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["taskedge", "magnitude"])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_from_selection_to_revert(make, rule, dtype, tmp_path):
    model, given_ = make(dtype)
    base = copy.deepcopy(model)
    support = te.select(model, [given_], per_neuron=2, rule=rule, linears=["*"])
    assert support.linears.keys() == linears(model).keys()
    before = model(given_)
    te.install(model, support, trainable=[], step="activation")
    assert torch.equal(model(given_), before)
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=3e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(given_).float().square().mean().backward()
        optimizer.step()
    trained = model(given_)
    assert not torch.equal(trained, before)
    delta = te.load(te.save(te.extract(model), tmp_path / "round.delta"))
    te.fuse(model)
    assert torch.equal(model(given_), trained)
    other = te.apply(copy.deepcopy(base), delta)
    assert tiny.same_bits(other.state_dict(), model.state_dict())
    te.revert(other)
    assert tiny.same_bits(other.state_dict(), base.state_dict())


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_layers_of_different_classes_that_read_one_tensor_do_not_share_columns(make):
    model, given_ = make()
    support = te.select(model, [given_], per_neuron=1, linears=["*"])
    first, second = list(support.linears)[:2]
    assert (support.linears[first].shared_input, support.linears[second].shared_input) == (first, second)
    changed = copy.copy(support.linears)
    object.__setattr__(changed[second], "shared_input", first)  # a support that says otherwise does no harm
    te.install(model, te.Support(changed, support.model_parameters), trainable=[])
    model(given_).sum().backward()
    assert sparse_layers(model)[first].entries.shared_input is not sparse_layers(model)[second].entries.shared_input


def test_the_gradient_rule_on_every_class():
    class WithLoss(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x).square().sum()

    for make in MAKES.values():
        model, given_ = make()
        model = WithLoss(model)
        support = te.select(model, [given_], per_neuron=1, rule="gradient", linears=["*"])
        model(given_).backward()
        for name, linear in linears(model).items():
            dense = linear.adapter.matrix(linear.module.weight.grad).abs()
            chosen = support.linears[name]
            assert torch.allclose(dense[chosen.rows, chosen.columns], dense.max(1).values)


def test_embeddings_and_outer_convolutions_take_part_only_where_they_are_named():
    vit, bert = tiny.vit(), tiny.bert()
    assert not [name for name in te.select(vit, per_neuron=1, rule="random").linears if "embed" in name]
    assert not [name for name in te.select(bert, per_neuron=1, rule="random").linears if "embed" in name]
    named = te.select(vit, per_neuron=1, rule="random", linears=["*embed*"]).linears
    assert list(named) == ["vit.embeddings.patch_embeddings.projection"]
    named = te.select(bert, per_neuron=1, rule="random", linears=["*embed*"]).linears
    assert [name.rpartition(".")[2] for name in named] == [
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
    ]


def test_a_convolution_inside_the_repeated_blocks_takes_part():
    block = lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())  # noqa: E731
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Sequential(block(), block()), nn.Flatten(), nn.Linear(48, 2))
    support = te.select(model, [torch.randn(2, 1, 4, 4)], per_neuron=1)
    assert list(support.linears) == ["1.0.0", "1.1.0"]
    with pytest.raises(InputError, match=r"0: takes part in blocks only, and lies outside them"):
        te.select(nn.Sequential(nn.Conv2d(1, 3, 1)), [torch.randn(2, 1, 4, 4)], per_neuron=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_stored_channels_last_writes_its_entries(layout):
    model, x = pictures()
    twin = copy.deepcopy(model)
    support = te.select(model, [x], per_neuron=1, linears=["over"])
    for one, memory in ((model, layout), (twin, torch.contiguous_format)):
        te.install(one.to(memory_format=memory), support, trainable=[])
        one.over.entries.offsets.data.fill_(0.5)
    torch.testing.assert_close(model(x), twin(x))
    assert torch.equal(model.over.weight, twin.over.weight)
