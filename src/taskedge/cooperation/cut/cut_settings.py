"""Settings of a run over the cut: those of ``tune`` that make sense there, and a few of its own.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from taskedge.errors import InputError
from taskedge.training.config import Config
from taskedge.training.tune_config import TuneConfig

FORMS = ("sparse", "sparse_lora", "lora")
"""Forms whose modules are products on the device."""
NOT_IN_CUT = (
    *("image", "source", "target", "max_new_tokens"),
    *("dtype", "weight_storage", "memory", "allow", "bf16", "recompute", "micro_batch", "rotate"),
    *("optimizer", "perturbation", "head_warmup", "from_delta", "regrow", "regrow_share"),
    *("support", "support_epochs", "support_lr", "gates", "gate_penalty", "group_penalty", "candidates", "gate_tries"),
    *("support_file", "avoid"),
    *("dash", "directions", "dash_start", "filter", "filter_rank", "gate_threshold", "gate_lr", "gate_warmup", "norms"),
    *("prompt_tokens", "prompt_where", "prompt_repeat", "prompt_segments", "prompt_init", "prompt_text"),
    *("product_rate", "column_draws", "change_epochs", "change_lr", "tensorboard", "log"),
)
"""Settings of ``tune`` that a run over the cut does not have."""
NARROWED: dict[str, tuple[tuple[str, ...], str]] = {
    "task": (
        (),
        "Kind of task: text-classification, multi-label-classification, text-regression, token-classification or "
        "text-generation. If left out, it is inferred from the data.",
    ),
    "form": (
        FORMS,
        "What is trained: selected weights (sparse), the same through low-rank factors (sparse_lora), or a low-rank "
        "product beside every linear (lora).",
    ),
    "rule": (
        (),
        "Rule that ranks the weights: taskedge, mean_activation, activation, magnitude, magnitude_bottom, principal, "
        "principal:R (of rank R) or random.",
    ),
    "column_score": (
        (),
        "What ranks the columns of --columns and --max-columns: entries (sum of the rule's scores), activation, "
        "weight, random, principal or greedy.  [default: entries]",
    ),
}
"""Settings of ``tune`` of which fewer values can be used over the cut: these (none: any text), and the help."""


class CutSettings(Config):
    """Settings of a run over the cut beside those of ``tune``."""

    coding: Annotated[
        Literal["fp32", "bf16", "float8", "int8"],
        Field(description="How activations and gradients cross: fp32, bf16, or a byte a number and a scale a token."),
    ] = "fp32"
    active_share: Annotated[
        float,
        Field(
            description="Share of the modules that train at once; the others are idle and are tried again at times.",
            gt=0,
            le=1,
        ),
    ] = 1.0
    noise: Annotated[
        float | None,
        Field(description="Noise on what tells of the data, as a multiple of the clips; its ε is stated.", ge=0),
    ] = None
    clip_inputs: Annotated[
        float | None, Field(description="With --noise: largest norm of the embedded tokens of a row.", gt=0)
    ] = None
    clip_gradient: Annotated[
        float | None, Field(description="With --noise: largest norm of the gradient of a row's last states.", gt=0)
    ] = None
    delta: Annotated[float, Field(description="With --noise: the δ that ε is stated for.", gt=0, lt=1)] = 1e-5
    patience: Annotated[float, Field(description="Seconds without the cloud after which the run stops.", gt=0)] = 600.0

    @model_validator(mode="after")
    def _check_noise(self) -> CutSettings:
        clips = self.clip_inputs, self.clip_gradient
        if self.noise is not None and None in clips:
            raise ValueError("--noise is a multiple of the clips: give --clip-inputs and --clip-gradient as well")
        if self.noise is None and clips != (None, None):
            raise ValueError("--clip-inputs and --clip-gradient belong to --noise: give --noise 0 to clip alone")
        return self


def check_for_cut(config: TuneConfig, settings: CutSettings) -> None:
    """Check that settings of ``tune`` can be used over the cut.

    Raises:
        InputError: One has no meaning there.
    """
    if config.form not in FORMS:
        raise InputError(
            f"--form {config.form}: its layers need the base's own weights or outputs, which are in the cloud: give "
            f"{', '.join(FORMS[:-1])} or {FORMS[-1]}"
        )
    for name in NOT_IN_CUT:
        if getattr(config, name, None) != TuneConfig.model_fields[name].default and name in config.model_fields_set:
            raise InputError(f"--{name.replace('_', '-')} has no effect over the cut: leave it out")
    if settings.noise:
        from taskedge.cooperation.cut.noise import noise_clash

        weights = None if config.class_weights == "none" else config.class_weights
        watches = config.early_stop is not None or config.keep == "best"
        if clash := noise_clash(clip=config.clip, class_weights=weights, watches_held_out=watches):
            raise InputError(clash)
        if settings.active_share < 1:
            raise InputError(
                "--active-share below 1 sends the values of idle modules, and --noise covers none there: leave out one"
            )
    if config.form != "lora":
        _check_reads_inputs(config)


def _check_reads_inputs(config: TuneConfig) -> None:
    """Check that neither the rule nor the column score reads gradients, for which the cloud lacks the labels."""
    from taskedge.selection.columns import COLUMN_SCORES
    from taskedge.selection.rules import RULES

    rule = RULES[config.rule]
    if rule.needs_gradients or rule.needs_dense_run or rule.choose:
        usable = [name for name in RULES if not (RULES[name].needs_gradients or RULES[name].choose)]
        raise InputError(
            f"--rule {config.rule} reads gradients of the loss before the cut is there: choose {' or '.join(usable)}"
        )
    if config.column_score is not None and COLUMN_SCORES[config.column_score].needs_gradients:
        usable = [name for name in COLUMN_SCORES if not COLUMN_SCORES[name].needs_gradients]
        raise InputError(
            f"--column-score {config.column_score} reads gradients of the loss before the cut is there: choose "
            f"{' or '.join(usable)}"
        )
