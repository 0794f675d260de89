"""The cloud's blocks: against the plain model, and against autograd through changed weights."""

from __future__ import annotations

import cut_runs
import pytest
import tiny
import torch
import torch.nn.functional as F

from taskedge.cooperation.cut.cloud_base import CloudBase, Pass
from taskedge.cooperation.cut.module_groups import Module, groups_of
from taskedge.errors import InputError

LAYER = "encoder.layer"


def batch(width: int = 16):
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return torch.randn(2, 5, width), mask


def plain(base: CloudBase, hidden, mask, weights=None):
    """What the blocks of transformers give, called one by one with a mask of their kind."""
    extended = torch.zeros(2, 1, 5, 5).masked_fill(mask[:, None, None, :] == 0, torch.finfo(torch.float32).min)
    states = hidden
    for index, block in enumerate(base.blocks):
        own = {} if weights is None else {
            name.removeprefix(f"{LAYER}.{index}."): value for name, value in weights.items() if f".{index}." in name
        }  # fmt: skip
        output = torch.func.functional_call(block.module, own, (states, extended))
        states = output[0] if isinstance(output, tuple) else output
    return states


def test_without_modules_the_blocks_are_those_of_transformers():
    base = cut_runs.cloud_base()
    hidden, mask = batch()
    states = base.forward(Pass(hidden, mask), trains=False)
    expected = plain(base, hidden, mask)
    keep = mask.bool()
    assert torch.allclose(states[keep], expected[keep], atol=1e-5)
    assert not states.requires_grad


@pytest.mark.parametrize("low_rank", [False, True])
def test_products_of_the_device_act_as_changes_of_the_weights(low_rank):
    base = cut_runs.cloud_base()
    hidden, mask = batch()
    names = [f"{LAYER}.{i}.{part}" for i in (0, 1) for part in ("attention.self.query", "attention.self.value")]
    names += [f"{LAYER}.1.output.dense"]
    rows, columns = (None, None) if low_rank else (torch.tensor([1, 4, 9]), torch.tensor([0, 3, 7, 11]))
    plan = {}
    for name in base.shapes:
        if name in names:
            first = name.replace("value", "query")
            plan[name] = Module(name, base.shapes[name], first, rows, columns)
    deltas = {}
    for name, module in plan.items():
        whole = torch.zeros(module.shape)
        if low_rank:
            whole += 0.1 * torch.randn(module.shape[0], 2) @ torch.randn(2, module.shape[1])
        else:
            whole[rows[:, None], columns] = 0.2 * torch.randn(3, 4)
        deltas[name] = whole
    groups = groups_of(plan, names)
    asked, gradients, columns_of = [], {}, {}

    def ask(kind, group, matrix, needed):
        asked.append((kind, group.name, needed))
        blocks = [
            deltas[m.name] if m.rows is None else deltas[m.name][m.rows[:, None], group.columns] for m in group.modules
        ]
        if kind == "columns":
            columns_of[group.name] = matrix
            return torch.cat([matrix @ block.t() for block in blocks], 1)
        parts = torch.split(matrix, group.row_counts, 1)
        gradients.update({m.name: g.t() @ columns_of[group.name] for m, g in zip(group.modules, parts, strict=True)})
        return sum(g @ block for g, block in zip(parts, blocks, strict=True)) if needed else None

    direction = torch.randn(2, 5, 16) * mask[..., None]
    states = base.forward(Pass(hidden, mask, groups, {}, ask), trains=True)
    states.backward(direction)

    leaves = {f"{name}.weight": (base.linears[name].weight.detach() + deltas[name]).requires_grad_() for name in plan}
    expected = plain(base, hidden, mask, leaves)
    expected.backward(direction)
    keep = mask.bool()
    assert torch.allclose(states[keep], expected[keep], atol=1e-5)
    for name, module in plan.items():
        dense = leaves[f"{name}.weight"].grad
        chosen = dense if module.rows is None else dense[module.rows[:, None], module.columns]
        assert torch.allclose(gradients[name], chosen, atol=1e-4), name
    kinds = [kind for kind, _, _ in asked]
    assert kinds == ["columns"] * 3 + ["gradients"] * 3  # q and v share one message
    assert [needed for _, _, needed in asked] == [False, True, True, True, True, False]
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_blocks_below_the_lowest_active_module_keep_nothing_for_a_backward_pass():
    base = cut_runs.cloud_base()
    hidden, mask = batch()
    name = f"{LAYER}.1.output.dense"
    plan = {name: Module(name, base.shapes[name], name)}
    seen = []
    base.blocks[0].module.register_forward_hook(lambda _, __, output: seen.append(output))
    base.forward(
        Pass(hidden, mask, groups_of(plan, [name]), {}, lambda kind, group, matrix, needed: matrix[:, :16] * 0),
        trains=True,
    )
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert output.grad_fn is None


def test_a_parked_module_adds_without_asking():
    base = cut_runs.cloud_base()
    hidden, mask = batch()
    name = f"{LAYER}.0.attention.output.dense"
    change = 0.3 * torch.randn(base.shapes[name])
    states = base.forward(Pass(hidden, mask, [], {name: lambda x: F.linear(x, change)}), trains=False)
    expected = plain(base, hidden, mask, {f"{name}.weight": base.linears[name].weight + change})
    assert torch.allclose(states[mask.bool()], expected[mask.bool()], atol=1e-5)


def test_two_passes_in_two_threads_do_not_meet():
    import threading

    base = cut_runs.cloud_base()
    hidden, mask = batch()
    alone = base.forward(Pass(hidden, mask), trains=False)
    results = {}

    def work(scale):
        results[scale] = base.forward(Pass(hidden * scale, mask), trains=False)

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (1.0, -1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[1.0], alone)
    assert not torch.equal(results[-1.0], alone)


@pytest.mark.parametrize("make", [tiny.t5, tiny.vit])
def test_a_model_that_is_no_stack_of_texts_is_refused(make):
    with pytest.raises(InputError, match=r"stacks of blocks|no token ids"):
        CloudBase(make().base_model if make is tiny.vit else make(), "other")
