"""Plain LoRA, trained through PEFT and stored as a delta, so that one tool compares it with the other forms.

Source: LoRA (arXiv 2106.09685); the layers and their initialization are those of the ``peft`` package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from taskedge.backbone.candidates import candidates, candidates_within
from taskedge.backbone.experts import ExpertLinear
from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layers import Linear, LinearAdapter, as_linear, linears
from taskedge.delta.delta import Delta, LowRankDelta, Provenance
from taskedge.errors import InputError
from taskedge.selection.support import Support


def lora_support(model: nn.Module, rank: int, depth: int | None) -> Support:
    """Return a support with a low-rank product in every linear that could carry entries.

    Args:
        model: the base.
        rank: rank of the products.
        depth: number of blocks nearest the output that have products; None for all.
    """
    usable = candidates(model) if depth is None else candidates_within(model, depth)
    targets = {
        name: linear
        for name, linear in usable.items()
        if isinstance(linear.adapter, LinearAdapter) and not isinstance(linear.module, ExpertLinear)  # PEFT has modules
    }
    return Support(
        linears={},
        model_parameters=sum(parameter.numel() for parameter in model.parameters()),
        rule="lora",
        allocation="all",
        budget=f"rank {rank}",
        low_rank=dict.fromkeys(targets, rank),
        num_low_rank_parameters=rank * sum(sum(linear.shape) for linear in targets.values()),
    )


class PeftLora:
    """A model whose linears carry PEFT's LoRA layers until :meth:`fuse`.

    Making one installs the layers in place, and freezes all other parameters but the fully trained ones.

    Args:
        model: the base.
        support: the linears and the rank of their products.
        full_names: names of the fully trained parameters.
        alpha: products are scaled by ``alpha/rank``; None for 1.
        seed: seed of the initial factors.

    Raises:
        InputError: a fully trained parameter belongs to a linear that would carry LoRA.
        ValueError: there are two different ranks.
    """

    def __init__(
        self, model: nn.Module, support: Support, full_names: Sequence[str], alpha: float | None, seed: int
    ) -> None:
        from peft import LoraConfig, LoraModel

        (rank,) = set(support.low_rank.values())
        for name in full_names:
            if name.removesuffix(".weight") in support.low_rank:
                raise InputError(f"{name!r} carries LoRA, so it cannot be trained in full as well")
        parameters = dict(model.named_parameters())
        self.model, self.support = model, support
        self.full_parameters = {name: parameters[name] for name in full_names}  # kept here: PEFT renames some
        model.requires_grad_(False)
        torch.manual_seed(seed)
        all_linears = linears(model)
        targets = [all_linears[name].adapter for name in support.low_rank]
        config = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            target_modules="|".join(map(re.escape, support.low_rank)),  # a pattern, which must match the full name
            fan_in_fan_out=all(adapter == LinearAdapter(transposed=True) for adapter in targets),
        )
        self._tuner: Any = LoraModel(model, config, "default")
        for parameter in self.full_parameters.values():
            parameter.requires_grad_(True)

    def extract(self) -> Delta:
        """Return what was learned so far: a copy on the CPU."""
        support = self.support
        return Delta(
            linears={},
            full_parameters={name: value.detach().cpu().clone() for name, value in self.full_parameters.items()},
            provenance=Provenance(
                rule=support.rule,
                allocation=support.allocation,
                budget=support.budget,
                base_parameters=support.model_parameters,
            ),
            low_rank={name: _product(name, self.model.get_submodule(name)) for name in support.low_rank},
        )

    def fuse(self) -> nn.Module:
        """Remove the layers and return the model. What they learned remains only in :meth:`extract`'s delta."""
        model: nn.Module = self._tuner.unload()
        return model


def _product(name: str, layer: Any) -> LowRankDelta:
    base = as_linear(name, layer.get_base_layer())
    assert isinstance(base, Linear)
    return LowRankDelta(
        a=layer.lora_A["default"].weight.detach().cpu().float().clone(),
        b=layer.lora_B["default"].weight.detach().cpu().float().clone(),
        scale=float(layer.scaling["default"]),
        base_dtype=str(base.weight.dtype).removeprefix("torch."),
        base_digest=digest(base.weight),
    )
