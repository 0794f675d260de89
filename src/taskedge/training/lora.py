"""Plain LoRA, trained through PEFT and kept as a delta, so that it compares with the other forms within one tool.

Source: LoRA (arXiv 2106.09685); the layers and how they start are those of the ``peft`` package.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from taskedge.backbone.fingerprint import digest
from taskedge.backbone.layer_adapters import Features
from taskedge.backbone.linears import Linear, as_linear, linears
from taskedge.delta.delta import Delta, LowRankDelta, Provenance
from taskedge.errors import InputError
from taskedge.selection.support import Support


class PeftLora:
    """A model whose linears carry PEFT's LoRA layers, from the moment it is made until :meth:`fuse`."""

    def __init__(
        self, model: nn.Module, support: Support, whole: Sequence[str], alpha: float | None, seed: int
    ) -> None:
        """Puts the layers into ``model``, in place, and freezes all else but the parameters in ``whole``.

        Raises:
            InputError: a parameter is to train whole whose linear is to carry LoRA; two different ranks.
        """
        from peft import LoraConfig, LoraModel

        (rank,) = set(support.low_rank.values())
        for name in whole:
            if name.removesuffix(".weight") in support.low_rank:
                raise InputError(f"{name!r} carries LoRA, so it cannot train whole as well")
        parameters = dict(model.named_parameters())
        self.model, self.support = model, support
        self.whole = {name: parameters[name] for name in whole}  # themselves: PEFT renames some
        model.requires_grad_(False)
        torch.manual_seed(seed)
        known = linears(model)
        config = LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            target_modules="|".join(map(re.escape, support.low_rank)),  # as a pattern, it must match the whole name
            fan_in_fan_out=all(known[name].kind == Features(transposed=True) for name in support.low_rank),
        )
        self._tuner: Any = LoraModel(model, config, "default")
        for parameter in self.whole.values():
            parameter.requires_grad_(True)

    def extract(self) -> Delta:
        """What was learnt so far, a copy on the CPU."""
        support = self.support
        return Delta(
            linears={},
            whole={name: parameter.detach().cpu().clone() for name, parameter in self.whole.items()},
            provenance=Provenance(
                rule=support.rule,
                allocation=support.allocation,
                budget=support.budget,
                base_parameters=support.model_parameters,
            ),
            low_rank={name: _product(name, self.model.get_submodule(name)) for name in support.low_rank},
        )

    def fuse(self) -> nn.Module:
        """The model without the layers; what they learnt is gone from it, and in :meth:`extract`'s delta."""
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
