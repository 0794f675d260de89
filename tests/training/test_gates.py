"""Gates on a model: gradients against dense autograd through the formulas, in fp64; nothing learned is the base."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from taskedge.selection.hard_concrete import HardConcrete, uniform_like
from taskedge.training.data_order import derive_seed
from taskedge.training.gates import GateConfig, Gates
from taskedge.training.selection_settings import GATE_PENALTY
from taskedge.training.tune_config import TuneConfig


def small(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def gated(model, **config):
    weights = {name: parameter for name, parameter in model.named_parameters() if name.endswith("weight")}
    made = Gates(weights, GateConfig(**config), seed=7)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (*made.w, *made.alpha, *made.group_alpha):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return made


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("group_penalty", ["product", "sum"])
def test_gradients_are_those_of_autograd(structured, group_penalty):
    model = small()
    made = gated(model, structured=structured, group_penalty=group_penalty, penalty=11.0, gate=HardConcrete(-0.4, 1.2))
    names, base = made.names, {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)

    made.write(draw=4)
    for half in (slice(0, 2), slice(2, 6)):  # two passes of a step share a draw, and their gradients add up
        ((model(x[half]) - y[half]).square().sum() / y.numel()).backward()
    made.backward(draw=4)

    variables = [
        [p.detach().clone().requires_grad_() for p in group] for group in (made.w, made.alpha, made.group_alpha)
    ]
    w, alpha, group_alpha = variables
    c, stretch = made.config.gate.shift, made.config.gate
    values, penalty = dict(base), torch.zeros((), dtype=torch.float64)
    for index, name in enumerate(names):
        generator = torch.Generator().manual_seed(derive_seed(7, "gates", 4, index))

        def gate(a, generator=generator):
            u = uniform_like(a, generator)
            s = torch.sigmoid(torch.log(u) - torch.log(1 - u) + a)
            return (s * (stretch.high - stretch.low) + stretch.low).clamp(0, 1)

        z = gate(alpha[index])
        open_weights = torch.sigmoid(alpha[index] - c).sum()
        if structured:
            z = z * gate(group_alpha[index])
            open_group = torch.sigmoid(group_alpha[index] - c).sum()
            open_weights = open_weights * open_group if group_penalty == "product" else open_weights + open_group
        values[name] = base[name] + z * w[index]
        penalty = penalty + open_weights
    output = torch.func.functional_call(model, values, (x,))
    loss = (output - y).square().mean() + 11.0 / made.num_gates * penalty
    everything = [p for group in variables for p in group]
    expected = torch.autograd.grad(loss, everything)
    found = [p.grad for group in (made.w, made.alpha, made.group_alpha) for p in group]
    assert len(found) == (6 if structured else 4)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-12


def test_nothing_learned_is_the_base_bit_for_bit(bert):
    batch = tiny.batch(bert)
    bert.eval()
    weights = {n: p for n, p in bert.named_parameters() if n.endswith("query.weight")}
    with torch.no_grad():
        next(iter(weights.values()))[0, 0] = -0.0
    before = tiny.logits(bert, batch)
    bits = [tiny.bits(p).clone() for p in weights.values()]
    made = Gates(weights, GateConfig(), seed=0)
    made.write(draw=0)
    assert torch.equal(tiny.logits(bert, batch), before)
    assert all(torch.equal(tiny.bits(p), kept) for p, kept in zip(weights.values(), bits, strict=True))


def test_the_expected_number_is_the_mean_of_draws():
    model = small()
    made = gated(model)
    with torch.no_grad():
        for w in made.w:
            w.fill_(1.0)
    counts = [sum(int(made.change(i, draw).count_nonzero()) for i in range(len(made.names))) for draw in range(1000)]
    assert sum(counts) / len(counts) == pytest.approx(made.expected_nonzero(), rel=0.05)


def test_a_draw_follows_from_seed_and_step_and_restoring_gives_the_base():
    model = small(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = gated(model)
    assert made.w[0].dtype == torch.float32
    made.write(draw=1)
    first = model[0].weight.detach().clone()
    made.write(draw=2)
    assert not torch.equal(model[0].weight, first)
    made.write(draw=1)
    assert torch.equal(model[0].weight, first)
    made.show_changes(draw=1)
    assert torch.equal(model[0].weight, made.change(0, 1))
    made.restore()
    assert all(torch.equal(p, before[name]) and p.dtype == torch.bfloat16 for name, p in model.named_parameters())


def test_the_defaults_are_those_of_the_settings():
    config, gates = TuneConfig(model="m", train="t"), GateConfig()
    assert gates.structured == (config.gates == "structured")
    assert (gates.group_penalty, gates.clip, gates.penalty) == (config.group_penalty, config.clip, GATE_PENALTY)
