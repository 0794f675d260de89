"""A support that moves while it trains, against dense gradients under a mask that moves with it."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import taskedge as te
from taskedge.backbone.layers import as_linear
from taskedge.errors import InputError
from taskedge.forms.install import installation
from taskedge.forms.regrow import moved_positions, regrow, set_positions
from taskedge.forms.sparse import sparse_layers

LR, BETAS, EPS = 1e-2, (0.9, 0.99), 1e-8


def doubled(make, step="plain", **options):
    """Return a model in fp64 that trains offsets in fp64."""
    model = make().double()
    options = options or {"per_neuron": 2}
    te.install(model, te.select(model, [double(tiny.batch(model))], **options), step=step)
    for layer in sparse_layers(model).values():
        layer.entries.offsets = nn.Parameter(layer.entries.offsets.detach().double())
        if layer.entries.step is not None:
            layer.entries.step = layer.entries.step.double()
    return model


def double(batch):
    if isinstance(batch, torch.Tensor):
        return batch.double()
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def dense_gradient(model, batch, name):
    """Return the gradient of the loss for one dense weight [out, in], by plain autograd on a fused copy."""
    plain = te.fuse(copy.deepcopy(model))
    plain.requires_grad_(True)
    tiny.loss(plain, batch).backward()
    gradient = plain.get_submodule(name).weight.grad
    return as_linear(name, plain.get_submodule(name)).adapter.matrix(gradient)


class Reference:
    """Dense offsets, dense moments and a mask for every linear, and an unmasked head; Adam written out."""

    def __init__(self, model):
        done, self.layers = installation(model), sparse_layers(model)
        self.plain = te.fuse(copy.deepcopy(model)).requires_grad_(True)
        self.of_column, self.scale, self.mask, self.time = {}, {}, {}, 0
        self.neuron_share = done.support.neuron_share
        for name, support in done.support.linears.items():
            rms = support.input_rms
            steps = (rms.square().mean().sqrt() / rms.clamp_min(1e-12)).clamp(0.01, 100)
            self.of_column[name] = steps if done.step == "activation" else None
            self.mask[name] = torch.zeros(support.shape, dtype=torch.bool)
            self.mask[name][support.rows, support.columns] = True
            self.scale[name] = self.steps(name)
        self.base = {name: self.linear(name).weight.clone(memory_format=torch.contiguous_format) for name in self.mask}
        self.numbers = {name: torch.zeros_like(self.base[name]) for name in self.mask}
        self.numbers |= {
            name: dict(self.plain.named_parameters())[name].detach().clone() for name in done.full_parameters
        }
        self.moments = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in self.numbers.items()}

    def steps(self, name):
        mask, of_column = self.mask[name], self.of_column[name]
        if of_column is None:
            return torch.ones(mask.shape).double()
        steps = of_column * mask.sum(1, keepdim=True).clamp_min(1).float() ** -0.75
        return (steps / max(self.neuron_share, 0.1)).double()  # rounded as in a model

    def linear(self, name):
        return as_linear(name, self.plain.get_submodule(name))

    def gradients(self, batch):
        self.plain.zero_grad()
        tiny.loss(self.plain, batch).backward()
        parameters = dict(self.plain.named_parameters())
        return {
            name: (self.linear(name).adapter.matrix(g) if name in self.mask else g)
            for name in self.numbers
            for g in [parameters[f"{name}.weight" if name in self.mask else name].grad]
        }

    def step(self, batch):
        self.time += 1
        for name, gradient in self.gradients(batch).items():
            g = gradient * self.scale[name] * self.mask[name] if name in self.mask else gradient
            first, second = self.moments[name]
            first.mul_(BETAS[0]).add_((1 - BETAS[0]) * g)
            second.mul_(BETAS[1]).add_((1 - BETAS[1]) * g.square())
            root = (second / (1 - BETAS[1] ** self.time)).sqrt() + EPS
            moved = LR * first / (1 - BETAS[0] ** self.time) / root
            self.numbers[name] -= moved * self.mask[name] if name in self.mask else moved
        self.write()

    def write(self):
        parameters = dict(self.plain.named_parameters())
        with torch.no_grad():
            for name, numbers in self.numbers.items():
                if name in self.mask:
                    self.linear(name).weight.copy_(self.base[name] + self.scale[name] * numbers)
                else:
                    parameters[name].copy_(numbers)

    def move(self, gradients, share):
        for name, mask in self.mask.items():
            count = int(share * int(mask.sum()))
            change = (self.scale[name] * self.numbers[name]).abs().masked_fill(~mask, torch.inf).flatten()
            wanted = gradients[name].abs().masked_fill(mask, -1).flatten()
            dropped, grown = change.argsort()[:count], wanted.argsort(descending=True)[:count]
            first, second = (moment.view(-1) for moment in self.moments[name])
            for tensor in (first, second, self.numbers[name].view(-1)):
                tensor[dropped] = 0
            mask.view(-1)[dropped], mask.view(-1)[grown] = False, True
            ratio = self.steps(name) / self.scale[name]  # weights stay where they are
            self.numbers[name] /= ratio
            first *= ratio.view(-1)
            second *= ratio.view(-1).square()
            self.scale[name] = self.steps(name)
            g = (gradients[name] * self.scale[name]).flatten()[grown]
            first[grown], second[grown] = g * (1 - BETAS[0] ** self.time), g.square() * (1 - BETAS[1] ** self.time)
        self.write()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["plain", "activation"])
@pytest.mark.parametrize(
    "options", [{"per_neuron": 2}, {"budget": "4%", "allocation": "global"}], ids=["even", "global"]
)
@pytest.mark.parametrize("make", list(tiny.MODELS.values()), ids=list(tiny.MODELS))
def test_training_equals_dense_training_under_a_moving_mask(make, step, options):
    model = doubled(make, step, **options)
    reference = Reference(model)
    optimizer = torch.optim.Adam(tiny.trained(model), lr=LR, betas=BETAS, eps=EPS)
    moved = 0
    for turn in range(12):
        batch = double(tiny.batch(model, seed=turn))
        optimizer.zero_grad()
        tiny.loss(model, batch).backward()
        optimizer.step()
        reference.step(batch)
        if turn % 4 == 3:
            given = double(tiny.batch(model, seed=100 + turn))
            gradients = reference.gradients(given)
            reference.move(gradients, 0.3)
            moved += regrow(model, optimizer, lambda name: gradients[name], 0.3)  # noqa: B023
    assert moved >= 3 * len(sparse_layers(model))
    found, expected = te.fuse(model).state_dict(), reference.plain.state_dict()
    for name in expected:
        assert (found[name] - expected[name]).abs().max() <= 1e-9 * expected[name].abs().max(), name


def in_training(make=tiny.bert, steps=4, **options):
    model = make()
    te.install(model, te.select(model, [tiny.batch(model)], **(options or {"per_neuron": 2})))
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=LR)
    advance(model, optimizer, range(steps))
    return model, optimizer


def advance(model, optimizer, seeds):
    for seed in seeds:
        optimizer.zero_grad()
        tiny.loss(model, tiny.batch(model, seed=seed)).backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_entries_get_the_base_back_bit_for_bit(dtype):
    model = tiny.bert().to(dtype)
    base = tiny.state(model)
    te.install(model, te.select(model, [tiny.batch(model)], per_neuron=2), trainable=[])
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=LR)
    advance(model, optimizer, range(3))
    before = moved_positions(model) or {n: s.flat for n, s in installation(model).support.linears.items()}
    assert regrow(model, optimizer, lambda n: dense_gradient(model, tiny.batch(model), n), 0.5) > 0
    for name, layer in sparse_layers(model).items():
        old, weight = base[f"{name}.weight"].flatten(), layer.weight.detach().flatten()
        now = moved_positions(model)[name]
        gone = before[name][~torch.isin(before[name], now)]
        new = now[~torch.isin(now, before[name])]
        assert len(gone) == len(new) == len(now) // 2
        untouched = torch.ones(len(old), dtype=torch.bool)
        untouched[now] = False
        untouched[new] = True
        assert torch.equal(tiny.bits(weight[untouched]), tiny.bits(old[untouched]))
        assert bool((weight[now[torch.isin(now, before[name])]] != old[now[torch.isin(now, before[name])]]).any())
        assert torch.equal(tiny.bits(layer.entries.base), tiny.bits(old[now]))


def test_extract_and_shared_inputs_use_the_new_support(tmp_path):
    model, optimizer = in_training()
    regrow(model, optimizer, lambda name: dense_gradient(model, tiny.batch(model), name), 0.3)
    advance(model, optimizer, range(5, 8))
    given = tiny.batch(model, seed=9)
    expected = tiny.logits(model, given)
    delta = te.extract(model)
    te.save(delta, tmp_path / "task")
    with te.applied(tiny.bert(), te.load(tmp_path / "task")) as fresh:  # digests of the base at the new places fit
        assert torch.equal(tiny.logits(fresh, given), expected)
    shared = {id(layer.entries.shared_input): layer.entries.shared_input for layer in sparse_layers(model).values()}
    for input_ in shared.values():
        readers = [layer for layer in sparse_layers(model).values() if layer.entries.shared_input is input_]
        used = torch.cat([layer.entries.columns for layer in readers]).unique()
        assert torch.equal(input_.columns, used)
    assert torch.equal(tiny.logits(copy.deepcopy(model), given), expected)
    te.fuse(model)
    assert torch.equal(tiny.logits(model, given), expected)


def test_a_run_restored_elsewhere_continues_with_the_same_bits():
    first, optimizer = in_training()
    regrow(first, optimizer, lambda name: dense_gradient(first, tiny.batch(first), name), 0.3)
    second, other = in_training(steps=6)  # has gone on otherwise
    set_positions(second, moved_positions(first))
    for one, two in zip(tiny.trained(first), tiny.trained(second), strict=True):
        with torch.no_grad():
            two.copy_(one)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, going in ((first, optimizer), (second, other)):
        advance(model, going, range(20, 24))
    assert tiny.same_bits(first.state_dict(), second.state_dict())


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 4))
def test_the_smallest_go_and_the_largest_come(seed, share, per_neuron):
    draw = torch.Generator().manual_seed(seed)
    model = tiny.mlp()
    te.install(model, te.select(model, rule="random", per_neuron=per_neuron, seed=seed % 100))
    offsets, gradients, before = {}, {}, {}
    for name, layer in sparse_layers(model).items():
        offsets[name] = torch.randn(len(layer.entries.rows), generator=draw)
        gradients[name] = torch.randn(as_linear(name, layer).shape, generator=draw)
        with torch.no_grad():
            layer.entries.offsets.copy_(offsets[name])
        before[name] = installation(model).support.linears[name].flat
    regrow(model, torch.optim.SGD(tiny.trained(model), lr=1), gradients.__getitem__, share)
    for name, layer in sparse_layers(model).items():
        now = installation(model).support.linears[name].flat
        count = min(int(share * len(now)), gradients[name].numel() - len(now))
        assert len(now) == len(before[name])
        stay = torch.isin(before[name], now)
        assert int((~stay).sum()) == count
        if count:
            assert not stay.any() or offsets[name].abs()[~stay].max() <= offsets[name].abs()[stay].min()
            flat = gradients[name].abs().flatten()
            free = torch.ones(len(flat), dtype=torch.bool)
            free[before[name]], free[now] = False, False
            new = now[~torch.isin(now, before[name])]
            assert not free.any() or flat[new].min() >= flat[free].max()
        expected = dict(zip(before[name].tolist(), offsets[name].tolist(), strict=True))
        assert layer.entries.offsets.tolist() == [expected.get(place, 0.0) for place in now.tolist()]


def test_models_whose_entries_cannot_move_are_refused_and_unchanged():
    model, optimizer = in_training()
    before = tiny.state(model)
    with pytest.raises(InputError, match=r"is \[2, 2\], not \["):
        regrow(model, optimizer, lambda name: torch.zeros(2, 2), 0.3)
    with pytest.raises(InputError, match="is not finite"):
        regrow(model, optimizer, lambda name: dense_gradient(model, tiny.batch(model), name) * torch.nan, 0.3)
    with pytest.raises(InputError, match="entries are those of another run"):
        set_positions(model, {"other": torch.arange(3)})
    assert tiny.same_bits(model.state_dict(), before)
    assert moved_positions(model) == {}
    product = tiny.bert()
    te.install(product, te.select(product, rule="magnitude", per_neuron=1), form="sparse_lora")
    with pytest.raises(InputError, match="only in the form 'sparse'"):
        regrow(product, optimizer, torch.zeros, 0.3)
    with pytest.raises(InputError, match="no support installed"):
        regrow(tiny.bert(), optimizer, torch.zeros, 0.3)


def test_a_share_of_nothing_moves_nothing():
    model, optimizer = in_training()
    before, state = tiny.state(model), copy.deepcopy(optimizer.state_dict())
    assert regrow(model, optimizer, lambda name: dense_gradient(model, tiny.batch(model), name), 0.0) == 0
    assert tiny.same_bits(model.state_dict(), before)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
