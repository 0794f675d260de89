"""Methods of the comparison at separate learning rates for the body and the head.

Every method makes a model ready to train. Rivals have the settings that their authors or PEFT advise: LoRA scales by
alpha = 2 r, and its variants (dropout 0.05, rsLoRA) get trials of their own. LoRA-Dash, LoRA with filters, TAPS and
diff pruning are those of this project, with the settings of their authors' code. "sparse + LoRA r=1" trains as many
numbers as LoRA r=2, half of them entries: RoSA's way, with the rules and rates of this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import peft
from torch import nn

from benchmarks.accuracy.finding import LearnedSupport, among_candidates, by_dense_run, by_gates
from benchmarks.accuracy.methods import Facts, Prepare, adapter, sparse, sparse_plus_lora, whole
from benchmarks.accuracy.protocol import OURS_NAMES
from benchmarks.accuracy.relatives import dash, draws, filtered, sparse_taps, taps
from benchmarks.cost.workload import LINEARS
from taskedge.training.gates import GateConfig

QUERY_AND_VALUE = ("query", "value", "attn.q", "attn.v")
"""The layers that the LoRA paper adapts, by their names in BERT and in MPNet."""


@dataclass(frozen=True)
class Rival:
    """A method of the comparison.

    Attributes:
        prepare: makes a model ready to train, or finds the support for that by training.
        body_lr: learning rate of the body at which the search begins; None for a method that trains the head only.
        variants: the same method with other advised settings. Each is tried at the learning rates that won.
    """

    prepare: Prepare | LearnedSupport
    body_lr: float | None
    variants: Mapping[str, Prepare] = field(default_factory=dict)


def lora(rank: int, targets: Sequence[str] = LINEARS, **options: Any) -> Prepare:
    """LoRA on linear layers of the encoder, all of them by default; the update is scaled by 2."""
    return adapter(peft.LoraConfig, **{"r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), **options})


def lora_variants(rank: int, targets: Sequence[str] = LINEARS) -> dict[str, Prepare]:
    """The settings of LoRA that are tried beside the plain ones."""
    return {
        "dropout 0.05": lora(rank, targets, lora_dropout=0.05),
        "rsLoRA": lora(rank, targets, use_rslora=True),
    }


def lora_fa(rank: int) -> Prepare:
    """LoRA whose A stays as it was drawn, so that a layer keeps ``rank`` numbers a token (2308.03303)."""
    with_both = lora(rank)

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        adapted, facts = with_both(model, batches, seed)
        frozen = 0
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
                frozen += parameter.numel()
        return adapted, {"entries": facts["entries"] - frozen}

    return prepare


def gates_on_all(*, structured: bool, share: str | None = None, rewound: bool = False) -> LearnedSupport:
    """Diff pruning: gates on all weights of the encoder's linears, with the penalty of the authors' code."""
    gates = GateConfig(structured=structured, group_penalty="sum")
    return LearnedSupport(by_gates(gates), f"gates{', structured' if structured else ''}", share, rewound)


RIVALS: dict[str, Rival] = {
    "LoRA r=8": Rival(lora(8), 3e-3, lora_variants(8)),
    "full": Rival(whole(""), 1e-4),
    "head only": Rival(whole(), None),
    "BitFit": Rival(whole(".bias"), 1e-2),
    "LoRA r=1": Rival(lora(1), 3e-3, lora_variants(1)),
    "LoRA r=1, query and value": Rival(lora(1, QUERY_AND_VALUE), 3e-3, lora_variants(1, QUERY_AND_VALUE)),
    "LayerNorm": Rival(whole("LayerNorm.weight", "LayerNorm.bias"), 1e-2),
    "DoRA r=8": Rival(lora(8, use_dora=True), 3e-3),
    "LoRA-FA r=8": Rival(lora_fa(8), 1e-2),
    "IA3": Rival(adapter(peft.IA3Config, feedforward_modules=["output.dense"]), 1e-2),
    "VeRA": Rival(adapter(peft.VeraConfig, r=256), 1e-2),
    "FourierFT": Rival(adapter(peft.FourierFTConfig, n_frequency=1000, scaling=150.0), 3e-2),
    "SHiRA": Rival(adapter(peft.ShiraConfig, r=1), 1e-2),
    "Super-Tuning": Rival(adapter(peft.SupertuningConfig, sparsity=1 - 20_736 / 10_616_832), 1e-2),
    "LoRA r=2": Rival(lora(2), 3e-3, lora_variants(2)),
    "LoRA-Dash r=1": Rival(dash(1), 3e-3),
    "LoRA-Dash r=2": Rival(dash(2), 3e-3),
    "LoRA-Dash r=8": Rival(dash(8), 3e-3),
    "filtered r=8": Rival(filtered(8), 3e-3, {"gate": filtered(8, "gate")}),
    "TAPS": Rival(taps(), 1e-4, {"penalty 0.3": taps(penalty=0.3)}),
    "diff pruning": Rival(gates_on_all(structured=True), 3e-2),
    "diff pruning 0.5%": Rival(gates_on_all(structured=True, share="0.5%"), 3e-2),
    "diff pruning, rewound": Rival(gates_on_all(structured=True, rewound=True), 3e-2),
    "unstructured diff pruning": Rival(gates_on_all(structured=False), 3e-2),
    "unstructured diff pruning 0.5%": Rival(gates_on_all(structured=False, share="0.5%"), 3e-2),
    "largest change": Rival(LearnedSupport(by_dense_run, "dense run"), 3e-2),
    "largest change 0.5%": Rival(LearnedSupport(by_dense_run, "dense run", "0.5%"), 3e-2),
    "largest change, rewound": Rival(LearnedSupport(by_dense_run, "dense run", rewound=True), 3e-2),
}
"""Rivals, in the order in which they are run."""

OURS: dict[str, Rival] = {
    "taskedge": Rival(sparse("taskedge"), 3e-2),
    "8 columns, one entry": Rival(sparse("taskedge", columns=8), 3e-2),
    "random 8 columns, one entry": Rival(sparse("random", columns=8, column_score="random"), 3e-2),
    "8 columns": Rival(sparse("taskedge", columns=8, per_neuron=None), 3e-2),
    "random 8 columns": Rival(sparse("random", columns=8, column_score="random", per_neuron=None), 3e-2),
    "random": Rival(sparse("random"), 3e-2),
    "8 columns, 4 draws": Rival(draws(columns=8), 3e-2),
    "8 columns, one entry, 4 draws": Rival(draws(columns=8, per_neuron=1), 3e-2),
    "taskedge 0.5%": Rival(sparse("taskedge", budget="0.5%"), 3e-2),
    "random 0.5%": Rival(sparse("random", budget="0.5%"), 3e-2),
    "gates on 8 candidates": Rival(LearnedSupport(among_candidates("taskedge", 8), "gates on taskedge's 8"), 3e-2),
    "gates on 8 random candidates": Rival(LearnedSupport(among_candidates("random", 8), "gates on 8 at random"), 3e-2),
    "gates on 8 random candidates, rewound": Rival(
        LearnedSupport(among_candidates("random", 8), "gates on 8 at random", rewound=True), 3e-2
    ),
    "sparse TAPS": Rival(sparse_taps(), 3e-2, {"penalty 0.3": sparse_taps(penalty=0.3)}),
    "sparse + LoRA r=1": Rival(
        sparse_plus_lora(1),
        3e-2,
        {f"product rate {rate:g}": sparse_plus_lora(1, product_rate=rate) for rate in (0.03, 0.3)},
    ),
}
"""Selection rules and forms of this project. They share one start of the search."""

assert tuple(OURS) == OURS_NAMES
COMPARED = OURS | RIVALS


def installs(method: str) -> Prepare | None:
    """Return how a method makes a model ready; None if that takes training rows."""
    prepare = COMPARED[method].prepare
    return None if isinstance(prepare, LearnedSupport) else prepare
