"""Deltas of tiny models for tests of combining and serving: trained for real, or with values made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from torch import Tensor, nn

import taskedge as te
from taskedge.backbone.fingerprint import digest
from taskedge.delta.delta import LinearDelta, Provenance


def tuned(model: nn.Module, seed: int, *, rule: str = "random", **options: Any) -> te.Delta:
    """Return a delta that a few steps of training made; the model is spoiled. Its head differs by the seed."""
    torch.manual_seed(seed)
    batches = None if rule == "random" else [tiny.batch(model, seed=seed)]
    support = te.select(model, batches, rule=rule, **{"budget": "2%", "seed": seed, **options})
    te.install(model, support)
    optimizer = torch.optim.AdamW(tiny.trained(model), lr=3e-2)
    for step in range(3):
        optimizer.zero_grad()
        tiny.loss(model, tiny.batch(model, seed=100 * seed + step)).backward()
        optimizer.step()
    return te.extract(model)


def by_hand(model: nn.Module, changes: dict[str, dict[int, float]], **about: Any) -> te.Delta:
    """Return a delta that adds ``changes[linear][row * in + column]`` to the model's weights, without a head."""
    modules = dict(model.named_modules())
    linears = {}
    for name, of_linear in changes.items():
        weight = modules[name].weight.detach()
        flat = torch.tensor(sorted(of_linear), dtype=torch.int64)
        base = weight.flatten()[flat]
        added = torch.tensor([of_linear[int(index)] for index in flat], dtype=torch.float64)
        width = weight.shape[1]
        linears[name] = LinearDelta(
            tuple(weight.shape), flat // width, flat % width, (base.double() + added).float(), "float32", digest(base)
        )
    return te.Delta(linears, provenance=Provenance(**about))


def dense(model: nn.Module, delta: te.Delta) -> dict[str, Tensor]:
    """Return the delta's change of each of its linears as a dense float64 matrix."""
    modules = dict(model.named_modules())
    changes = {}
    for name, linear in delta.linears.items():
        base = modules[name].weight.detach().double()
        change = torch.zeros_like(base)
        change[linear.rows, linear.columns] = linear.values.double() - base[linear.rows, linear.columns]
        changes[name] = change
    return changes


def same_after_apply(one: te.Delta, other: te.Delta, make: Any = tiny.bert, heads: Sequence[str | None] = (None, None)):
    """Return whether two deltas make the same model of a fresh base, bit for bit."""
    models = [te.apply(make(), delta.with_head(head)) for delta, head in zip((one, other), heads, strict=True)]
    return tiny.same_bits(*map(tiny.state, models))
