"""Settings of ``taskedge tune``. The only place of their names, defaults and help texts.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from taskedge.backbone.storage import current_name
from taskedge.errors import InputError, UnknownName
from taskedge.forms import STEP_EXPONENT
from taskedge.profiling.byte_size import parse_bytes
from taskedge.selection import DEFAULT_RANK
from taskedge.training.config import Config
from taskedge.training.selection_settings import GATE_FIELDS, GATE_PENALTY, SelectionSettings
from taskedge.training.trainer_config import (
    DEFAULTS,
    HEAD_LEARNING_RATE,
    OptimizerName,
    Recompute,
    TrainerConfig,
    trainer_field,
)

LEARNING_RATES = {"sparse": DEFAULTS.lr, "sparse_lora": 3e-2, "lora": 1e-3}
"""Default peak learning rate of each form."""

_FORMS_OF = {
    **dict.fromkeys(
        (
            *("budget", "per_neuron", "rule", "allocation", "columns", "max_columns", "column_score"),
            *("step", "step_exponent", "calibration", "support_file", "support", *GATE_FIELDS),
        ),
        ("sparse", "sparse_lora"),
    ),
    **dict.fromkeys(("rank", "alpha"), ("sparse_lora", "lora")),
    **dict.fromkeys(("dash", "directions", "dash_start"), ("lora",)),
}
"""Settings that only some forms have, and these forms. In other forms they are refused instead of ignored."""


class TuneConfig(SelectionSettings, Config):
    """Settings of one run. Flags and the keys of a settings file have the names of these fields."""

    model_config = ConfigDict(coerce_numbers_to_str=True)
    old_names: ClassVar[dict[str, str]] = {"base": "weight_storage"}

    # data and task
    model: Annotated[str, Field(description="Base model: a local folder or a hub id.")]
    train: Annotated[
        Path, Field(description="Training data: a CSV, TSV, JSONL, Parquet or text file, or a folder of images.")
    ]
    eval: Annotated[Path | None, Field(description="Held-out data to measure the result on.")] = None
    task: Annotated[
        str | None,
        Field(
            description="Kind of task: text-classification, text-regression, image-classification or text-generation. "
            "If left out, it is inferred from the data."
        ),
    ] = None
    text: Annotated[
        list[str] | None, Field(description="Column with the text; repeat it to join several.", min_length=1)
    ] = None
    label: Annotated[str | None, Field(description="Column with the label: a class or a number.")] = None
    prompt: Annotated[str | None, Field(description="Column with the prompt.")] = None
    response: Annotated[str | None, Field(description="Column with the response to it.")] = None
    image: Annotated[str | None, Field(description="Column with the path of an image.")] = None

    # base model
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(description="Data type of the base weights; 'auto': the one in which its files store them."),
    ] = "auto"
    weight_storage: Annotated[
        Literal["resident", "mmap", "int8"],
        Field(
            description="How base weights are stored: 'resident' in memory; 'mmap', mapped from the file and shared "
            "with other processes; 'int8', quantized to a quarter of the memory."
        ),
    ] = "resident"

    # selection and form
    form: Annotated[
        Literal["sparse", "sparse_lora", "lora"],
        Field(description="What is trained: selected weights, the same through low-rank factors, or LoRA by PEFT."),
    ] = "sparse"
    budget: Annotated[str, Field(description="Share of the model's parameters to train.")] = "0.1%"
    per_neuron: Annotated[int | None, Field(description="Instead of a budget: entries per neuron.", ge=1)] = None
    rule: Annotated[
        str,
        Field(
            description="Rule that ranks the weights: taskedge, mean_activation, activation, magnitude, "
            "magnitude_bottom, principal, principal:R (of rank R), gradient, first_batch, pursuit, pursuit_t, snip, "
            "ratio, fisher, fisher_bottom or random; change trains all weights first and takes those that moved most; "
            "spt selects low-rank modules, biases and norms as well."
        ),
    ] = "taskedge"
    change_epochs: Annotated[float, Field(description="With --rule change: epochs of its dense run.", gt=0)] = 1.0
    change_lr: Annotated[float, Field(description="With --rule change: peak rate of its dense run.", gt=0)] = 1e-4
    allocation: Annotated[
        str,
        Field(
            description="How the budget is divided: per_neuron, per_layer, global, global_per_neuron, or a pattern N:M "
            "such as 2:4, which replaces the budget."
        ),
    ] = "per_neuron"
    columns: Annotated[
        int | None,
        Field(
            description="Instead of a budget: the best columns of every input, in which all entries are trained, or "
            "with --per-neuron the best of each neuron.",
            ge=1,
        ),
    ] = None
    max_columns: Annotated[
        int | None,
        Field(description="With a budget: largest number of columns used of every input, a cap on memory.", ge=1),
    ] = None
    column_score: Annotated[
        str | None,
        Field(
            description="What ranks the columns of --columns and --max-columns: entries (sum of the rule's scores), "
            "activation, weight, random, gradient, pursuit, principal or greedy.  [default: entries]"
        ),
    ] = None
    depth: Annotated[
        int | None,
        Field(description="Train only this many blocks nearest the output; the others need no memory.", ge=1),
    ] = None
    step: Annotated[
        Literal["plain", "activation"], Field(description="'activation' scales steps by the inverse input norm.")
    ] = "activation"
    step_exponent: Annotated[
        float,
        Field(
            description="'activation' also divides steps by this power of the number of entries of the neuron.",
            ge=0,
            le=1,
        ),
    ] = STEP_EXPONENT
    rank: Annotated[int, Field(description="Rank of the products of sparse_lora, lora and rule spt.", ge=1)] = (
        DEFAULT_RANK
    )
    alpha: Annotated[
        float | None, Field(description="Low-rank products are scaled by alpha/rank.  [default: the rank]", gt=0)
    ] = None
    dash: Annotated[bool, Field(description="LoRA-Dash, trained by this program instead of PEFT.")] = False
    directions: Annotated[int, Field(description="Singular directions that LoRA-Dash trains.", ge=1)] = 8
    dash_start: Annotated[int, Field(description="Optimizer steps of plain LoRA before LoRA-Dash.", ge=1)] = 100
    calibration: Annotated[int, Field(description="Batches on which the selection takes statistics.", ge=1)] = 8
    support: Annotated[
        Literal["rule", "diff-pruning"],
        Field(description="How weights are found: by the rule, or with trained gates, in eleven times their memory."),
    ] = "rule"
    support_epochs: Annotated[float, Field(description="Epochs in which gates are trained.", gt=0)] = 3.0
    support_lr: Annotated[float, Field(description="Peak learning rate of weights with gates.", gt=0)] = 1e-4
    gates: Annotated[
        Literal["structured", "unstructured"], Field(description="Gates of weights and matrices, or of weights only.")
    ] = "structured"
    gate_penalty: Annotated[float, Field(description="Pressure that closes gates; for any model size.", ge=0)] = (
        GATE_PENALTY
    )
    group_penalty: Annotated[
        Literal["product", "sum"], Field(description="Penalty of gates of matrices: the paper's product, or a sum.")
    ] = "product"
    support_file: Annotated[
        Path | None, Field(description="Instead of a selection: a support that `taskedge select` found on this base.")
    ] = None

    # training
    epochs: float = trainer_field("epochs")
    optimizer: OptimizerName = trainer_field("optimizer")
    perturbation: float = trainer_field("perturbation")
    lr: float = Field(
        default=None,
        validate_default=True,
        gt=0,
        description="Peak learning rate.  "
        f"[default: {', '.join(f'{form} {rate:g}' for form, rate in LEARNING_RATES.items())}]",
    )
    head_lr: float | None = trainer_field(
        "head_lr",
        validate_default=True,
        description=f"Peak learning rate of the fully trained parameters (the head).  [default: {HEAD_LEARNING_RATE}]",
    )
    head_warmup: Annotated[
        bool,
        Field(description="Train the head alone first, on features computed once. For classes and numbers."),
    ] = False
    batch_size: int = trainer_field("batch_size")
    accumulate: int = trainer_field("accumulate")
    micro_batch: int | None = trainer_field("micro_batch")
    weight_decay: float = trainer_field("weight_decay")
    warmup: float = trainer_field("warmup")
    clip: float = trainer_field("clip")
    bf16: bool = trainer_field("bf16")
    recompute: Recompute = trainer_field("recompute")
    rotate: int = trainer_field("rotate")
    max_length: Annotated[
        int | None,
        Field(description="Longest text in tokens; longer ones are cut.  [default: 128; for generation 512]", ge=1),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        Field(description="Longest generated response in tokens.  [default: the longest in the training data]", ge=1),
    ] = None
    strict: Annotated[bool, Field(description="Refuse data that is warned about.")] = False
    seed: int = trainer_field("seed")
    threads: Annotated[int | None, Field(description="CPU threads; 1 makes runs bit-identical.", ge=1)] = None
    checkpoint_every: int = trainer_field(
        "checkpoint_every", default=25, description="Optimizer steps between checkpoints.", ge=1
    )
    regrow: int = trainer_field("regrow")
    regrow_share: float = trainer_field("regrow_share")

    # memory
    memory: Annotated[
        str | None,
        Field(
            description="Largest resident memory of the process, such as 600MB. The fastest way to train within it is "
            "taken; if there is none, the run is refused."
        ),
    ] = None
    allow: Annotated[
        list[str] | None,
        Field(
            description="With --memory: also consider an option that changes what is learned: bf16, int8 or depth. "
            "May be repeated.",
            min_length=1,
        ),
    ] = None

    # output
    values: Annotated[Literal["fp32", "bf16"], Field(description="Data type of the values in the delta file.")] = "fp32"
    tensorboard: Annotated[bool, Field(description="Write TensorBoard logs to the folder of the run.")] = False
    out: Annotated[Path, Field(description="The delta file to write.")] = Path("task.safetensors")

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes, if there is one."""
        return None if self.memory is None else parse_bytes(self.memory)

    def trainer_config(self) -> TrainerConfig:
        """Return the settings of the training loop."""
        return TrainerConfig(**{name: getattr(self, name) for name in TrainerConfig.model_fields})

    # --- checks of one setting ---

    @model_validator(mode="before")
    @classmethod
    def _wrap_single_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("text"), str):
            return data | {"text": [data["text"]]}
        return data

    @field_validator("lr", mode="before")
    @classmethod
    def _default_lr_of_form(cls, value: Any, info: ValidationInfo) -> Any:
        return LEARNING_RATES[info.data.get("form", "sparse")] if value is None else value

    @field_validator("head_lr", mode="before")
    @classmethod
    def _default_head_lr(cls, value: Any, info: ValidationInfo) -> Any:
        """Leave out a default that equals the rate of the rest: one group of parameters has the same values."""
        if value is not None or info.data.get("optimizer") == "mezo" or info.data.get("lr") == HEAD_LEARNING_RATE:
            return value
        return HEAD_LEARNING_RATE

    @field_validator("weight_storage", mode="before")
    @classmethod
    def _translate_old_weight_storage(cls, value: Any) -> Any:
        return current_name(value) if isinstance(value, str) else value

    @field_validator(*_FORMS_OF)
    @classmethod
    def _check_form_has_setting(cls, value: Any, info: ValidationInfo) -> Any:
        """Check a value that was set; pydantic does not validate defaults."""
        form, forms = info.data.get("form"), _FORMS_OF[str(info.field_name)]
        if info.field_name == "rank" and form == "sparse" and info.data.get("rule") == "spt":
            return value
        if form is not None and form not in forms:
            raise ValueError(f"has no effect with form {form!r}, only with {' and '.join(forms)}: leave it out")
        return value

    @field_validator("form")
    @classmethod
    def _check_peft_is_installed(cls, value: str) -> str:
        if value == "lora" and not find_spec("peft"):
            raise ValueError("LoRA is trained by PEFT, which is not installed: pip install 'taskedge[peft]'")
        return value

    @field_validator("tensorboard")
    @classmethod
    def _check_tensorboard_is_installed(cls, value: bool) -> bool:
        if value and not (find_spec("tensorboard") or find_spec("tensorboardX")):
            raise ValueError("TensorBoard is not installed: pip install tensorboard")
        return value

    @field_validator("rule", "allocation", "column_score", "budget", "task", "memory")
    @classmethod
    def _check_value_is_readable(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        from taskedge.selection.allocations import ALLOCATIONS
        from taskedge.selection.columns import COLUMN_SCORES
        from taskedge.selection.rules import RULES
        from taskedge.selection.select import parse_share
        from taskedge.training.tasks import TASKS

        check: Callable[[str], Any] = {
            "rule": RULES.__getitem__,
            "allocation": ALLOCATIONS.__getitem__,
            "column_score": COLUMN_SCORES.__getitem__,
            "budget": parse_share,
            "task": TASKS.__getitem__,
            "memory": parse_bytes,
        }[str(info.field_name)]
        try:
            check(value)
        except InputError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("allow")
    @classmethod
    def _check_options_can_be_allowed(cls, value: list[str] | None) -> list[str] | None:
        from taskedge.training.memory.options import allowable_options

        for name in value or ():
            if name not in allowable_options():
                raise ValueError(str(UnknownName("option to allow", name, allowable_options())))
        return value

    # --- checks of settings together ---

    @model_validator(mode="after")
    def _check_selection(self) -> TuneConfig:
        if clash := self.support_clash() or self.change_clash():
            raise ValueError(clash)
        if not self.model_fields_set & {"rule", "allocation", "columns", "column_score"}:
            return self
        from taskedge.selection.select import refuse_clashes

        names = ("budget", "per_neuron", "columns", "max_columns", "column_score", "allocation")
        kwargs = {name: getattr(self, name) if name in self.model_fields_set else None for name in names}
        try:
            refuse_clashes(self.rule, **kwargs)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _check_weight_storage(self) -> TuneConfig:
        if flag := self.unsupported_by(self.weight_storage):
            raise ValueError(
                f"--weight-storage {self.weight_storage} does not support {flag}, which needs writable weights or "
                "dense gradients: leave out either"
            )
        return self

    @model_validator(mode="after")
    def _check_training(self) -> TuneConfig:
        try:
            self.trainer_config()
        except InputError as error:
            raise ValueError(f"--{error}".replace("_", "-")) from None
        if self.regrow and self.rotate:
            raise ValueError("--regrow moves entries of all blocks, --rotate trains one block at a time: give one")
        if self.head_warmup and self.memory:
            raise ValueError(
                "--head-warmup keeps features of all rows, whose memory is not predicted: leave out either"
            )
        if self.regrow and self.memory:
            raise ValueError("--regrow takes dense gradients, whose memory is not predicted: leave out --memory")
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> TuneConfig:
        if self.optimizer != "mezo":
            without_effect = self.model_fields_set & {"perturbation"}
        elif "lr" not in self.model_fields_set:
            raise ValueError(
                "--optimizer mezo needs other learning rates than AdamW, and no default suits all tasks: give --lr"
            )
        else:
            without_effect = self.model_fields_set & {"clip"}
            if self.recompute != "none":
                without_effect.add("recompute")
            if self.regrow:
                without_effect.add("regrow")
        if without_effect:
            raise ValueError(f"--{min(without_effect)} has no effect with --optimizer {self.optimizer}: leave it out")
        return self
