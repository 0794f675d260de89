"""Descriptions of a training: a line before it starts, and the provenance in the file."""

from __future__ import annotations

from typing import Any

import torch

from taskedge.forms.install import step_share
from taskedge.forms.install_taps import whole_layers
from taskedge.reporting.tables import percent_text
from taskedge.selection.support import Support
from taskedge.training.fastest_dtype import FASTEST, processor_speeds
from taskedge.training.run import Run
from taskedge.training.selection_settings import FORMS_OF_ENTRIES, SELECTION_FIELDS, TAPS_FORMS
from taskedge.training.tune_config import TuneConfig

_OF_FORM = {
    **dict.fromkeys(("sparse_lora", "lora"), ("rank", "alpha")),
    "sparse_plus_low_rank": ("rank", "alpha", "product_rate"),
    "filtered": ("rank", "alpha", "filter", "filter_rank"),
    "taps": ("gate_threshold", "gate_penalty", "gate_lr", "gate_warmup", "norms"),
    "sparse_taps": ("gate_threshold", "gate_penalty", "gate_lr", "gate_warmup"),
    "prompt": ("prompt_tokens", "prompt_where", "prompt_repeat", "prompt_segments", "prompt_init"),
}
_OF_DASH = ("dash", "directions", "dash_start")


def training_text(run: Run, support: Support, num_trained: int) -> str:
    """Return a line about what is going to be trained."""
    config = run.config
    factors = f"{num_trained:,} parameters of rank {config.rank}"
    if config.form == "sparse":
        trained = str(support)
    elif config.form == "lora":
        trained = f"LoRA, {factors} in {len(support.low_rank)} linears"
    elif config.form == "filtered":
        trained = f"LoRA with filters ({config.filter}), {factors} in {len(support.low_rank)} linears"
    elif config.form == "taps":
        layers = len(whole_layers(support))
        trained = f"{num_trained:,} parameters of {layers} whole layers behind gates, with {config.norms} norms"
    elif config.form == "prompt":
        trained = f"{num_trained:,} numbers of soft tokens and segments"
    elif config.form == "sparse_plus_low_rank":
        trained = f"{support}, beside products of rank {config.rank} at {config.product_rate:g} times the learning rate"
    elif config.form == "sparse_taps":
        trained = f"{support}, with a gate on each linear"
    else:
        trained = f"{support}, through {factors}"
    full = f"a head of {run.num_full_parameters:,} parameters" if run.full_names else "nothing"
    rate = f"learning rate {config.lr:g}{larger_steps_text(support, config.step)}"
    return f"training {trained}; in full: {full}; {rate}, batches of {config.batch_size}"


def larger_steps_text(support: Support, step: str) -> str:
    """Return by how much steps are larger because few neurons have entries; ``""`` if they are not.

    Args:
        support: the entries.
        step: how they are scaled: ``"plain"`` or ``"activation"``.
    """
    if step != "activation" or not support.linears or (share := step_share(support.neuron_share)) == 1:
        return ""
    return f" times {1 / share:.3g} for entries, which are in {percent_text(support.neuron_share, 1)} of the neurons"


def training_provenance(run: Run, support: Support, steps: int) -> dict[str, Any]:
    """Return how the delta was trained."""
    config = run.config
    names = ["epochs", "lr", "batch_size", "accumulate", "seed", "step", "dtype"]
    if config.form not in FORMS_OF_ENTRIES:
        names.remove("step")
    if config.form != "sparse":
        names = ["form", *_OF_FORM.get(config.form, ()), *(_OF_DASH if config.dash else ()), *names]
    optional = (
        "change_epochs",
        "change_lr",
        "columns",
        "column_score",
        "column_draws",
        "step_exponent",
        "head_warmup",
        "depth",
        "rotate",
        "optimizer",
        "validation",
        "class_weights",
        "eval_every",
        "early_stop",
        "keep",
    )
    recorded = SELECTION_FIELDS if config.support_file is not None else ("change_epochs", "change_lr")
    given = {name: value for name, value in support.settings.items() if name in recorded}
    names += [name for name in (*optional, "weight_storage") if name in config.model_fields_set or name in given]
    training = {name: given.get(name, getattr(config, name)) for name in names}
    if config.form in TAPS_FORMS:
        training["gate_penalty"] = config.layer_gate_penalty
    training |= run.data.columns.named | run.task.to_provenance()
    if run.data.parts is not None:
        training["held_out_rows"] = len(run.data.parts[1])
    elif run.data.validation is not None:
        training["held_out_rows"] = len(run.data.validation)
    if "from_delta" in support.settings:
        training["from_delta"] = support.settings["from_delta"]
    if run.max_length:
        training["max_length"] = run.max_length
    if run.base.head:
        training["head"] = run.base.head
    return training | {"steps": steps, "rows": len(run.rows)}


def bf16_hint(config: TuneConfig) -> str:
    """Return a line about bf16 where it would pay on this processor and is not used; ``""`` if not."""
    if config.bf16 or config.dtype == "bf16" or torch.cuda.is_available() or not processor_speeds().bf16_pays:
        return ""
    speeds = processor_speeds()
    return (
        f"hint: products in bf16 run {speeds.bf16 / speeds.fp32:.1f} times as fast as in fp32 on this processor "
        f"({speeds}): --bf16 computes with them; --dtype {FASTEST} loads the base in bf16 where that was measured"
    )
