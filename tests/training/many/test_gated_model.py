"""The oracles of gates that share and specialize: what runs, and which gradient a gate has."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.errors import InputError
from taskedge.forms.sparse import sparse_layers
from taskedge.training.many.gated_model import GatedModel
from taskedge.training.many.row_gates import START


def gated(num_tasks: int = 2) -> tuple[nn.Module, GatedModel]:
    """A tiny base with random entries of all and of each task."""
    model = tiny.bert().eval()
    shared = te.select(model, rule="random", budget="3%", seed=1)
    own = [te.select(model, rule="random", budget="2%", seed=10 + task) for task in range(num_tasks)]
    made = GatedModel(model, shared, own)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.value_parameters:
            parameter.copy_(0.3 * torch.randn(len(parameter), generator=generator))
    return model, made


def dense(model: nn.Module, made: GatedModel, task: int, gates: dict[str, torch.Tensor]) -> nn.Module:
    """The same network with its weights written out: ``W + G∘Δ_t + (1 - G)∘Δ_0``."""
    written = copy.deepcopy(model)
    for layer in written.modules():
        layer._forward_hooks.clear()
    for name, layer in made.by_name().items():
        weight = written.get_submodule(name).weight.data
        base = weight.clone()
        for entries, chosen in ((layer.own_entries(task), gates[name]), (layer.shared, ~gates[name])):
            kept = chosen[entries.rows]
            at = entries.rows[kept], entries.columns[kept]
            weight[at] = base[at] + entries.differences.detach()[kept]
    return written


def close(made: GatedModel, model: nn.Module, truth: nn.Module) -> None:
    given = tiny.batch(model, seed=3)
    assert torch.allclose(tiny.logits(model, given), tiny.logits(truth, given), atol=1e-5)


def test_the_base_runs_where_no_entries_count() -> None:
    model, made = gated()
    plain = tiny.bert().eval()
    given = tiny.batch(model, seed=3)
    assert torch.equal(tiny.logits(model, given), tiny.logits(plain, given))
    made.present.mode = "shared"
    assert not torch.equal(tiny.logits(model, given), tiny.logits(plain, given))


def test_steps_are_those_of_training_in_place() -> None:
    """They grow as fewer neurons have entries."""
    base = tiny.bert()
    shared, own = (te.select(base, [tiny.batch(base)], budget=budget) for budget in ("3%", "1%"))
    assert own.neuron_share < 1
    made = GatedModel(copy.deepcopy(base), shared, [own])
    for support, entries_of in ((shared, lambda layer: layer.shared), (own, lambda layer: layer.own_entries(0))):
        plain = sparse_layers(te.install(copy.deepcopy(base), support, step="activation"))
        for name, layer in made.by_name().items():
            if name in plain:
                assert torch.equal(entries_of(layer).step, plain[name].entries.step)


@pytest.mark.parametrize("task", [0, 1])
def test_closed_gates_give_one_network_and_open_gates_one_for_each_task(task) -> None:
    model, made = gated()
    made.present.task, made.present.mode = task, "gated"
    with torch.no_grad():
        for layer in made.by_name().values():
            layer.alpha.fill_(-1.0)
    closed = made.row_gates(task)
    assert not any(bool(each.any()) for each in closed.values())
    close(made, model, dense(model, made, 0, closed))
    with torch.no_grad():
        for layer in made.by_name().values():
            layer.alpha.fill_(START)
    opened = made.row_gates(task)
    assert all(bool(each.all()) for each in opened.values())
    close(made, model, dense(model, made, task, opened))
    made.present.mode = "own"
    close(made, model, dense(model, made, task, opened))


def test_gates_choose_by_row_and_by_block() -> None:
    model, made = gated()
    made.present.task, made.present.mode = 1, "gated"
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in made.by_name().values():
            layer.alpha.copy_(torch.randn(layer.alpha.shape, generator=generator))
        made.block_logits[1, 0] = -1.0
    chosen = made.row_gates(1)
    assert not any(bool(each.any()) for name, each in chosen.items() if ".layer.0." in name)
    assert any(bool(each.any()) and not bool(each.all()) for each in chosen.values())
    close(made, model, dense(model, made, 1, chosen))


def test_the_gradient_of_a_gate_is_its_slope_times_what_it_chooses_between() -> None:
    model, made = gated()
    made.double()
    model.double()
    made.present.task, made.present.mode = 0, "gated"
    name, layer = next(iter(made.by_name().items()))
    seen: dict[str, torch.Tensor] = {}

    def keep(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.retain_grad()
        seen.update(x=args[0].detach(), output=output)

    model.get_submodule(name).register_forward_hook(keep)
    model(**tiny.batch(model, seed=3)).loss.backward()
    x = seen["x"].flatten(0, -2)
    difference = layer.own_entries(0).product(x, None) - layer.shared.product(x, None)  # [tokens, out]
    soft = layer.alpha.detach()[0].sigmoid()
    expected = soft * (1 - soft) * (seen["output"].grad.flatten(0, -2) * difference.detach()).sum(0)  # type: ignore[union-attr]
    assert torch.allclose(layer.alpha.grad[0], expected, atol=1e-12)  # type: ignore[index]
    assert not layer.alpha.grad[1].any(), "the other task has no part in this loss"  # type: ignore[index]


def test_layers_that_cannot_be_gated_are_refused() -> None:
    model = tiny.bert().bfloat16()
    support = te.select(model, rule="random", budget="1%")
    with pytest.raises(InputError, match="no linear in fp32"):
        GatedModel(model, support, [support, support])
    model = tiny.bert()
    outside = te.select(model, rule="random", per_neuron=1, linears=["*pooler*"])
    with pytest.raises(InputError, match="in none of the blocks"):
        GatedModel(model, outside, [outside, outside])
