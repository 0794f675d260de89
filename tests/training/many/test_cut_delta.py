"""The cut network is the uncut one bit for bit, and nothing that no task uses is left."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.delta.delta import Head, Provenance
from taskedge.training.many.cut_delta import cut_delta
from taskedge.training.many.gated_model import GatedModel


def trained(seed: int) -> tuple[nn.Module, GatedModel]:
    model = tiny.bert().eval()
    shared = te.select(model, rule="random", budget="3%", seed=seed)
    made = GatedModel(model, shared, [te.select(model, rule="random", budget="2%", seed=seed + 1 + t) for t in (0, 1)])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        made.block_logits.abs_()
    return model, made


def uncut(model: nn.Module, made: GatedModel, task: int) -> nn.Module:
    """Every trained entry in its place, chosen by the gates; nothing is left out."""
    written = copy.deepcopy(model)
    for layer in written.modules():
        layer._forward_hooks.clear()
    gates = made.row_gates(task)
    for name, layer in made.by_name().items():
        weight = written.get_submodule(name).weight.data
        base = weight.clone()
        of_task, of_all = base.clone(), base.clone()
        for entries, into in ((layer.own_entries(task), of_task), (layer.shared, of_all)):
            into[entries.rows, entries.columns] = base[entries.rows, entries.columns] + entries.differences.detach()
        weight.copy_(torch.where(gates[name][:, None], of_task, of_all))
    return written


@pytest.mark.parametrize("seed", range(4))
def test_cut_and_uncut_networks_are_equal_bit_for_bit(seed, tmp_path) -> None:
    model, made = trained(seed)
    heads = {name: Head({}, Provenance(labels=(name,))) for name in ("a", "b")}
    delta, cut = cut_delta(made, heads, Provenance())
    delta = te.load(te.save(delta, tmp_path / "x"))
    made.present.mode = "base"
    plain, given = tiny.bert().eval(), tiny.batch(model, seed=3)
    for task, name in enumerate(heads):
        truth = uncut(model, made, task)
        with te.applied(plain, delta.with_head(name)):
            assert tiny.same_bits(plain.state_dict(), truth.state_dict())
            assert torch.equal(tiny.logits(plain, given), tiny.logits(truth, given))
    kept, total = cut.shared_entries
    assert kept == delta.num_entries < total
    assert (
        cut.lines(["a", "b"])[0] == f"shared: {kept:,} of {total:,} entries are used by some task, the others are cut"
    )


def test_every_entry_that_is_left_is_used_by_some_task() -> None:
    _, made = trained(9)
    heads = {name: Head({}, Provenance()) for name in ("a", "b")}
    delta, _ = cut_delta(made, heads, Provenance())
    for name, shared in delta.linears.items():
        own = [head.gated[name].gates for head in delta.heads.values() if name in head.gated]
        if len(own) == 2:
            assert not (own[0] & own[1])[shared.rows].any()
    for head in delta.heads.values():
        for rows in head.gated.values():
            assert rows.gates[rows.rows].all()
            assert rows.gates.any()


def test_without_open_gates_all_tasks_have_the_shared_entries() -> None:
    _, made = trained(3)
    with torch.no_grad():
        made.block_logits.fill_(-1.0)
    delta, cut = cut_delta(made, {name: Head({}, Provenance()) for name in ("a", "b")}, Provenance())
    assert not any(head.gated for head in delta.heads.values())
    assert cut.own_entries[0][0] == 0
    assert cut.shared_entries[0] == cut.shared_entries[1]


def test_with_all_gates_open_nothing_is_shared() -> None:
    _, made = trained(3)
    with torch.no_grad():
        for gate in made.gate_parameters:
            gate.fill_(1.0)
    delta, cut = cut_delta(made, {name: Head({}, Provenance()) for name in ("a", "b")}, Provenance())
    assert delta.num_entries == 0
    assert all(kept == total for kept, total in cut.own_entries)
