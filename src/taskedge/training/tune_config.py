"""What ``taskedge tune`` can be told. The only place where these names, defaults and help texts stand."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from taskedge.errors import InputError, UnknownName
from taskedge.profiling.byte_size import parse_bytes
from taskedge.selection import RANK
from taskedge.training.trainer_config import FitSettings

_FIT = FitSettings()
_RULE_HELP = (
    "What ranks the weights: taskedge, mean_activation, activation, magnitude, magnitude_bottom, gradient, fisher or "
    "random; spt chooses low-rank modules, biases and norms too."
)
_ALLOCATION_HELP = (
    "How they are spread: per_neuron, per_layer, global, global_per_neuron, or a pattern N:M such as 2:4, which is the "
    "budget too."
)

RATES = {"sparse": _FIT.lr, "sparse_lora": 3e-2, "lora": 1e-3}
"""Peak learning rate of each form, where no other is given."""

_ONLY_FOR = {
    **dict.fromkeys(
        ("budget", "per_neuron", "rule", "allocation", "max_columns", "step", "calibration"), ("sparse", "sparse_lora")
    ),
    **dict.fromkeys(("rank", "alpha"), ("sparse_lora", "lora")),
}
"""Settings that mean nothing in other forms, and are refused there rather than left unheard."""


class TuneSettings(BaseModel):
    """Settings of one run. Flags and the keys of a settings file have the names of these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    model: Annotated[str, Field(description="Base model: a local folder or a hub id.")]
    train: Annotated[
        Path, Field(description="Training data: a CSV, TSV, JSONL, Parquet or text file, or a folder of images.")
    ]
    eval: Annotated[Path | None, Field(description="Held-out data to measure the result on.")] = None
    task: Annotated[
        str | None,
        Field(
            description="Kind of task: text-classification, text-regression, image-classification or text-generation; "
            "what the data says, if left out."
        ),
    ] = None
    text: Annotated[
        list[str] | None, Field(description="Column with the text; repeat it to join several.", min_length=1)
    ] = None
    label: Annotated[str | None, Field(description="Column with the label: a class or a number.")] = None
    prompt: Annotated[str | None, Field(description="Column with the prompt.")] = None
    response: Annotated[str | None, Field(description="Column with the response to it.")] = None
    image: Annotated[str | None, Field(description="Column with the path of an image.")] = None
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], Field(description="Load the base so; 'auto': as its files say.")
    ] = "auto"
    base: Annotated[
        Literal["loaded", "mapped", "int8"],
        Field(
            description="How its weights lie in memory: 'mapped' from the file, shared with other processes; 'int8', "
            "in a quarter of the room."
        ),
    ] = "loaded"
    form: Annotated[
        Literal["sparse", "sparse_lora", "lora"],
        Field(description="What trains: chosen weights, the same through low-rank factors, or LoRA by PEFT."),
    ] = "sparse"
    budget: Annotated[str, Field(description="Share of the model's parameters to train.")] = "0.1%"
    per_neuron: Annotated[int | None, Field(description="Instead of a budget: entries per neuron.", ge=1)] = None
    rule: Annotated[str, Field(description=_RULE_HELP)] = "taskedge"
    allocation: Annotated[str, Field(description=_ALLOCATION_HELP)] = "per_neuron"
    max_columns: Annotated[
        int | None, Field(description="Most distinct inputs used per linear: a cap on memory.", ge=1)
    ] = None
    depth: Annotated[
        int | None, Field(description="Train only so many blocks nearest the output; the rest needs no memory.", ge=1)
    ] = None
    step: Annotated[
        Literal["plain", "activation"], Field(description="'activation' scales steps by the inverse input norm.")
    ] = "activation"
    rank: Annotated[int, Field(description="Of the products of sparse_lora, lora and rule spt.", ge=1)] = RANK
    alpha: Annotated[
        float | None, Field(description="Their product is scaled by alpha/rank.  [default: the rank]", gt=0)
    ] = None
    calibration: Annotated[int, Field(description="Batches that the selection looks at.", ge=1)] = 8
    epochs: Annotated[float, Field(description="Passes over the training data.", gt=0)] = _FIT.epochs
    optimizer: Annotated[
        Literal["adamw", "mezo"],
        Field(description="'mezo' needs no gradients but the head's: the memory of inference, and many more steps."),
    ] = _FIT.optimizer
    perturbation: Annotated[float, Field(description="How far mezo moves values to find a slope.", gt=0)] = (
        _FIT.perturbation
    )
    lr: float = Field(
        default=None,
        validate_default=True,
        gt=0,
        description=f"Peak learning rate.  [default: {', '.join(f'{form} {rate:g}' for form, rate in RATES.items())}]",
    )
    head_lr: Annotated[float | None, Field(description="Learning rate of the head, if it is another.", gt=0)] = (
        _FIT.head_lr
    )
    batch_size: Annotated[int, Field(description="Rows in a batch; for generation 8, if left out.", ge=1)] = (
        _FIT.batch_size
    )
    accumulate: Annotated[int, Field(description="Batches per optimiser step.", ge=1)] = _FIT.accumulate
    micro_batch: Annotated[
        int | None, Field(description="Rows that pass through the model at once; the batch stays the same.", ge=1)
    ] = _FIT.micro_batch
    weight_decay: Annotated[float, Field(description="Pull of the weights towards the base.", ge=0)] = _FIT.weight_decay
    warmup: Annotated[float, Field(description="Share of the steps with a rising rate.", ge=0, lt=1)] = _FIT.warmup
    clip: Annotated[float, Field(description="Largest norm of the gradient; 0 for no limit.", ge=0)] = _FIT.clip
    bf16: Annotated[bool, Field(description="Compute in bfloat16 where it is safe (autocast).")] = _FIT.bf16
    recompute: Annotated[
        Literal["none", "blocks", "inputs"],
        Field(description="Compute again rather than keep: whole blocks, or in each what lies between its products."),
    ] = _FIT.recompute
    rotate: Annotated[int, Field(description="Blocks train in turn, so many steps each; 0 for all at once.", ge=0)] = (
        _FIT.rotate
    )
    max_length: Annotated[
        int | None,
        Field(description="Longest text in tokens; longer ones are cut. If left out: 128, for generation 512.", ge=1),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(description="Longest generated response in tokens. If left out: as in the training data.", ge=1),
    ] = None
    seed: Annotated[int, Field(description="Of the head, the order of the data, and dropout.", ge=0)] = _FIT.seed
    threads: Annotated[int | None, Field(description="CPU threads; 1 makes runs bit-identical.", ge=1)] = None
    checkpoint_every: Annotated[int, Field(description="Optimiser steps between checkpoints.", ge=1)] = 25
    regrow: Annotated[int, Field(description="Steps between moves of the support; 0 to leave it.", ge=0)] = _FIT.regrow
    regrow_share: Annotated[
        float, Field(description="Share of the entries that a move takes at first.", gt=0, le=1)
    ] = _FIT.regrow_share
    values: Annotated[Literal["fp32", "bf16"], Field(description="How the file stores trained values.")] = "fp32"
    tensorboard: Annotated[bool, Field(description="Log for TensorBoard in the run's folder.")] = False
    memory: Annotated[
        str | None,
        Field(
            description="Largest resident memory of the whole process, such as 600MB: the fastest way to train that "
            "stays within is taken, or the run refused."
        ),
    ] = None
    allow: Annotated[
        list[str] | None,
        Field(
            description="With --memory: a way that changes what is learnt may be taken, too: bf16, int8 or depth; "
            "may be repeated.",
            min_length=1,
        ),
    ] = None
    out: Annotated[Path, Field(description="The delta file to write.")] = Path("task.safetensors")

    @model_validator(mode="before")
    @classmethod
    def _one_text_is_a_list(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("text"), str):
            return data | {"text": [data["text"]]}
        return data

    @field_validator("lr", mode="before")
    @classmethod
    def _as_the_form_wants(cls, value: Any, info: ValidationInfo) -> Any:
        return RATES[info.data.get("form", "sparse")] if value is None else value

    @field_validator(*_ONLY_FOR)
    @classmethod
    def _means_something(cls, value: Any, info: ValidationInfo) -> Any:
        """Runs for what was given, not for defaults."""
        form, forms = info.data.get("form"), _ONLY_FOR[str(info.field_name)]
        if info.field_name == "rank" and form == "sparse" and info.data.get("rule") == "spt":
            return value
        if form is not None and form not in forms:
            raise ValueError(f"means nothing with form {form!r}, only with {' and '.join(forms)}: leave it out")
        return value

    @field_validator("form")
    @classmethod
    def _can_be_trained(cls, value: str) -> str:
        if value == "lora" and not find_spec("peft"):
            raise ValueError("LoRA is trained by PEFT, which is not installed: pip install 'taskedge[peft]'")
        return value

    @field_validator("rule", "allocation", "budget", "task")
    @classmethod
    def _is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        from taskedge.selection.allocations import ALLOCATIONS
        from taskedge.selection.rules import RULES
        from taskedge.selection.select import parse_share
        from taskedge.training.tasks import TASKS

        check: Callable[[str], Any] = {
            "rule": RULES.__getitem__,
            "allocation": ALLOCATIONS.__getitem__,
            "budget": parse_share,
            "task": TASKS.__getitem__,
        }[str(info.field_name)]
        try:
            check(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        try:
            _ = None if value is None else parse_bytes(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("allow")
    @classmethod
    def _can_be_allowed(cls, value: list[str] | None) -> list[str] | None:
        from taskedge.training.memory.options import allowable

        for name in value or ():
            if name not in allowable():
                raise ValueError(str(UnknownName("way to allow", name, allowable())))
        return value

    @property
    def memory_bytes(self) -> int | None:
        """The budget, if there is one."""
        return None if self.memory is None else parse_bytes(self.memory)

    @field_validator("tensorboard")
    @classmethod
    def _is_installed(cls, value: bool) -> bool:
        if value and not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise ValueError("TensorBoard is not installed: pip install tensorboard")
        return value

    @model_validator(mode="after")
    def _nothing_is_given_in_vain(self) -> TuneSettings:
        if self.model_fields_set & {"rule", "allocation"}:
            from taskedge.selection.select import refuse_clashes

            names = ("budget", "per_neuron", "max_columns", "allocation")
            given = {name: getattr(self, name) if name in self.model_fields_set else None for name in names}
            try:
                refuse_clashes(self.rule, **given)
            except InputError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _base_can_be_held(self) -> TuneSettings:
        if what := self.asks_more_of(self.base):
            raise ValueError(f"--base {self.base} only reads the weights, {what} needs more: leave out either")
        return self

    def asks_more_of(self, base: str) -> str:
        """The setting that a base held so cannot serve: its weights take no product, and give no gradient of all."""
        if base == "loaded":
            return ""
        from taskedge.selection.rules import RULES

        rule = RULES[self.rule]
        faults = {
            f"--form {self.form}": self.form == "lora",
            "--regrow": self.regrow > 0,
            f"--rule {self.rule}": rule.chooses is not None or (base == "int8" and rule.of_gradients),
        }
        return next((what for what, amiss in faults.items() if amiss), "")

    @model_validator(mode="after")
    def _rungs_go_together(self) -> TuneSettings:
        try:
            self.fit().passes  # noqa: B018  # refuses what does not go together
        except InputError as error:
            raise ValueError(f"--{error}".replace("_", "-")) from None
        if self.regrow and self.rotate:
            raise ValueError("--regrow moves entries of all blocks, --rotate trains one block at a time: give one")
        if self.regrow and self.memory:
            raise ValueError("--regrow looks at whole gradients, whose memory is not predicted: leave out --memory")
        given = self.model_fields_set
        if self.optimizer == "mezo":
            vain = given & {"clip"}
            if "lr" not in given:
                raise ValueError("--optimizer mezo wants other learning rates than AdamW, none fits all: give --lr")
            vain |= {name for name, off in (("recompute", "none"), ("regrow", 0)) if getattr(self, name) != off}
        else:
            vain = given & {"perturbation"}
        if vain:
            raise ValueError(f"--{min(vain)} means nothing with --optimizer {self.optimizer}: leave it out")
        return self

    def selection(self) -> dict[str, Any]:
        """What :func:`taskedge.select` is told: of the defaults, those that have a say."""
        from taskedge.selection.patterns import read_pattern
        from taskedge.selection.rules import RULES

        told = {name: getattr(self, name) for name in ("per_neuron", "rule", "max_columns", "seed")}
        has_budget = self.per_neuron is not None or read_pattern(self.allocation) is not None
        if self.depth is not None:
            told["depth"] = self.depth
        if RULES[self.rule].chooses:
            told["rank"] = self.rank
        return told | {
            "budget": None if has_budget else self.budget,
            "allocation": None if RULES[self.rule].chooses else self.allocation,
        }

    def fit(self) -> FitSettings:
        """The part that concerns the training loop."""
        names = FitSettings.__dataclass_fields__.keys() & type(self).model_fields.keys()
        return FitSettings(**{name: getattr(self, name) for name in names})
