"""What the accuracy benchmark compares: every method makes a model ready to train and says what that takes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import nn

import taskedge as te
from benchmarks.cost.workload import LINEARS
from taskedge.backbone.candidates import head_parameters
from taskedge.forms import PRODUCT_RATE
from taskedge.forms.low_rank import low_rank_layers
from taskedge.forms.sparse_plus_low_rank import set_product_rate
from taskedge.profiling.process_memory import peak_bytes, reset_peak, resident_bytes

Facts = dict[str, Any]
Prepare = Callable[[nn.Module, list[Any], int], tuple[nn.Module, Facts]]
SCALED = ", scaled step"
CALLBACKS, MEASURED = "callbacks", "measured"
"""Facts that are not written: callbacks of the training loop, and a function of the trained model that adds facts."""


@dataclass(frozen=True)
class Method:
    """How a model is made ready, and the two learning rates that the search begins with."""

    prepare: Prepare
    rates: tuple[float, float]
    fit: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training loop that are this method's own."""


@contextmanager
def finding_cost(facts: Facts, model: nn.Module) -> Iterator[None]:
    """Add seconds and memory of what runs inside to the facts of a run: how a support was found.

    ``peak_bytes_above`` is the peak less what the process had before, with the model; on a GPU, what torch reserved.
    """
    device = next(model.parameters()).device
    reset_peak(device)
    before = resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    yield
    facts["finding"] = {
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "peak_bytes_above": max(peak_bytes(device) - before, 0),
    }


def sparse(
    rule: str,
    step: str = "activation",
    form: str = "sparse",
    installed: Mapping[str, Any] | None = None,
    **options: Any,
) -> Prepare:
    """Entries chosen by ``rule``; one per neuron unless ``options`` say otherwise.

    Args:
        rule: ranks the weights.
        step: of the entries.
        form: how they are parameterized.
        installed: more arguments of ``te.install``.
        options: of ``te.select``.
    """
    chosen: dict[str, Any] = options if "budget" in options else {"per_neuron": 1, **options}

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        facts: Facts = {}
        with finding_cost(facts, model):
            support = te.select(model, batches, rule=rule, seed=seed, **chosen)
        columns = [len(linear.distinct_columns) for linear in support.linears.values()]
        facts |= {
            "entries": support.parameters,
            "columns_mean": sum(columns) / len(columns),
            "columns_range": [min(columns), max(columns)],
            "stored_columns": support.stored_columns,
        }
        return te.install(model, support, step=step, form=form, seed=seed, **(installed or {})), facts

    return prepare


def sparse_plus_lora(rank: int, rule: str = "taskedge", product_rate: float = PRODUCT_RATE) -> Prepare:
    """Entries chosen by ``rule``, and as many numbers in LoRA of that rank on the same linears, scaled by 2.

    All encoder linears together have as many inputs as outputs, so ``rank·(in + out)`` are 2·rank entries per neuron.

    Args:
        rank: of the products.
        rule: ranks the weights.
        product_rate: learning rate of the products, relative to that of the entries.
    """
    options = {"rank": rank, "alpha": 2 * rank}
    entries = sparse(rule, form="sparse_plus_low_rank", installed=options, per_neuron=2 * rank)

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        model, facts = entries(model, batches, seed)
        set_product_rate(model, product_rate)
        products = sum(layer.product.a.numel() + layer.product.b.numel() for layer in low_rank_layers(model).values())
        return model, facts | {"entries": facts["entries"] + products}

    return prepare


def whole(*kinds: str) -> Prepare:
    """Trains the head and the parameters of these kinds, as they are."""

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        head = set(head_parameters(model))
        entries = 0
        for name, parameter in model.named_parameters():
            chosen = name not in head and any(name.endswith(kind) for kind in kinds)
            parameter.requires_grad_(chosen or name in head)
            entries += parameter.numel() if chosen else 0
        return model, {"entries": entries}

    return prepare


def adapter(kind: type[peft.PeftConfig], **options: Any) -> Prepare:
    """An adapter of PEFT's on all encoder linears."""

    def prepare(model: nn.Module, batches: list[Any], seed: int) -> tuple[nn.Module, Facts]:
        seeded = {"random_seed": seed} if kind is peft.ShiraConfig else {}
        config = kind(**{"target_modules": LINEARS, "task_type": "SEQ_CLS", **options, **seeded})
        with warnings.catch_warnings(action="ignore"):
            adapted = peft.get_peft_model(model, config)
        head = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and "modules_to_save" in n)
        return adapted, {"entries": sum(p.numel() for p in adapted.parameters() if p.requires_grad) - head}

    return prepare


RULES = (
    "taskedge", "random", "magnitude", "gradient", "fisher", "activation", "mean_activation", "magnitude_bottom",
)  # fmt: skip
_OURS_AS_SHARE = 20_736 / 10_616_832  # entries over the weights of the encoder linears

METHODS: dict[str, Method] = {
    "taskedge": Method(sparse("taskedge", "plain"), (3e-3, 1e-2)),
    "random": Method(sparse("random", "plain"), (3e-3, 1e-2)),
    "magnitude": Method(sparse("magnitude", "plain"), (3e-3, 1e-2)),
    "gradient": Method(sparse("gradient", "plain"), (3e-3, 1e-2)),
    "head only": Method(whole(), (1e-2, 3e-2)),
    "BitFit": Method(whole(".bias"), (3e-3, 1e-2)),
    "LoRA r=8": Method(adapter(peft.LoraConfig, r=8), (1e-3, 3e-3)),
    "LoRA r=1": Method(adapter(peft.LoraConfig, r=1), (1e-3, 3e-3)),
    "SHiRA r=1": Method(adapter(peft.ShiraConfig, r=1), (1e-2, 3e-2)),
    "Super-Tuning": Method(adapter(peft.SupertuningConfig, sparsity=1 - _OURS_AS_SHARE), (1e-2, 3e-2)),
    "full": Method(whole(""), (1e-4, 3e-4)),
    "taskedge, global": Method(sparse("taskedge", allocation="global"), (1e-2, 3e-2)),
    "taskedge, per layer": Method(sparse("taskedge", allocation="per_layer"), (1e-2, 3e-2)),
    "random, 64 columns": Method(sparse("random", max_columns=64), (1e-2, 3e-2)),
    "taskedge, batches of 16": Method(sparse("taskedge"), (1e-2, 3e-2), {"batch_size": 16}),
    "random, 26 columns": Method(sparse("random", max_columns=26), (1e-2, 3e-2)),
    "taskedge, 32 columns": Method(sparse("taskedge", max_columns=32), (1e-2, 3e-2)),
    "SPT": Method(sparse("spt", budget="0.0913%"), (3e-3, 1e-2)),
    "sparse + LoRA r=1": Method(sparse_plus_lora(1), (1e-2, 3e-2)),
    "sparse LoRA": Method(sparse("taskedge", form="sparse_lora"), (1e-2, 3e-2)),
    "regrown": Method(sparse("taskedge"), (1e-2, 3e-2), {"regrow": 20}),
} | {rule + SCALED: Method(sparse(rule), (1e-2, 3e-2)) for rule in RULES}  # fmt: skip


SHARES = ("0.01%", "0.03%", "0.1%", "0.3%", "1%")
"""Of the model's parameters."""
SWEPT = ("taskedge", "random", "magnitude", "gradient")
"""The rules that are compared at every share."""


def at_share(rule: str, share: str) -> Method:
    """The rule with scaled steps and another budget; it takes the rate the rule had at one entry per neuron."""
    return Method(sparse(rule, budget=share), METHODS[rule + SCALED].rates)
