"""Settings of ``taskedge tune`` about the selection and the form, and what follows from them.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from taskedge.forms import STEP_EXPONENT
from taskedge.selection import DEFAULT_RANK
from taskedge.training.config import Config
from taskedge.training.trainer_config import HEAD_LEARNING_RATE, TrainerConfig

SELECTION_FIELDS = (
    *("budget", "per_neuron", "rule", "allocation", "columns", "max_columns", "column_score", "depth", "calibration"),
    *("max_rows", "column_draws", "avoid"),
    *("change_epochs", "change_lr"),
)
"""Settings that only a selection reads."""
GATE_FIELDS = ("support_epochs", "support_lr", "gates", "gate_penalty", "group_penalty", "candidates", "gate_tries")
"""Settings that only a selection with gates reads."""
GATE_PENALTY = 42.5
"""Penalty of a gate times the number of gates: 1.25e-7 for the 340 million parameters of BERT-large."""
FORMS_OF_ENTRIES = ("sparse", "sparse_lora", "sparse_taps", "sparse_plus_low_rank")
"""Forms that train a selection of entries."""
TAPS_FORMS = ("taps", "sparse_taps")
"""Forms with a gate on each layer."""
TAPS_PENALTY = 1.0
"""Penalty of the mean score of the gates on layers, where none is given."""
_OF_RULES = (
    *("per_neuron", "rule", "allocation", "columns", "max_columns", "max_rows", "column_score", "column_draws"),
    "avoid",
)


_FORMS_OF = {
    **dict.fromkeys(
        (
            *("budget", "per_neuron", "rule", "allocation", "columns", "max_columns", "max_rows", "column_score"),
            *("step", "step_exponent", "calibration", "support_file", "support", "avoid", *GATE_FIELDS),
        ),
        FORMS_OF_ENTRIES,
    ),
    "column_draws": ("sparse",),
    "gate_penalty": ("sparse", "sparse_lora", *TAPS_FORMS),
    **dict.fromkeys(("rank", "alpha"), ("sparse_lora", "sparse_plus_low_rank", "lora", "filtered")),
    **dict.fromkeys(("dash", "directions", "dash_start"), ("lora",)),
}
"""Settings that only some forms have, and these forms. In other forms they are refused instead of ignored."""


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence: ``a, b and c``."""
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), *names[-1:]])


class SelectionSettings(Config):
    """Settings of one run about what is trained, and in which form."""

    if TYPE_CHECKING:  # of the class that inherits
        allow: list[str] | None
        memory: str | None
        regrow: int
        seed: int

        def trainer_config(self) -> TrainerConfig:
            """Return the settings of the loop."""

    form: Annotated[
        Literal["sparse", "sparse_lora", "sparse_plus_low_rank", "lora", "taps", "sparse_taps", "filtered", "prompt"],
        Field(
            description="What is trained: selected weights (sparse), the same through low-rank factors (sparse_lora) "
            "or beside a low-rank product (sparse_plus_low_rank), LoRA by PEFT (lora), whole layers behind gates "
            "(taps), selected weights behind the same gates (sparse_taps), LoRA with filters of hidden states "
            "(filtered), or soft tokens beside the text (prompt)."
        ),
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
            description="How the budget is divided: per_neuron, per_layer, global, global_per_neuron, block (few whole "
            "neurons), or a pattern N:M such as 2:4, which replaces the budget."
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
    max_rows: Annotated[
        int | None,
        Field(
            description="Largest number of neurons of every linear that have entries; with --max-columns and "
            "--allocation block, all entries of these rows and columns train instead of a budget.",
            ge=1,
        ),
    ] = None
    column_score: Annotated[
        str | None,
        Field(
            description="What ranks the columns of --columns and --max-columns: entries (sum of the rule's scores), "
            "activation, weight, random, gradient, pursuit, principal or greedy.  [default: entries]"
        ),
    ] = None
    column_draws: Annotated[
        int,
        Field(
            description="Draw the columns of --columns this often during training, weighted by their scores, instead "
            "of taking the best; memory is that of one draw.",
            ge=1,
        ),
    ] = 1
    avoid: Annotated[
        list[Path] | None,
        Field(
            description="Delta or support file of another task, whose entries are not chosen, so that the two can be "
            "merged without collisions; may be repeated.",
            min_length=1,
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
    rank: Annotated[int, Field(description="Rank of low-rank products, and of those of rule spt.", ge=1)] = DEFAULT_RANK
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
    candidates: Annotated[
        int | None,
        Field(
            description="With --support diff-pruning: gates only on this many candidates of each neuron, by the rule; "
            "the best one stays, or as many as --per-neuron. Needs the memory of these entries only.",
            ge=2,
        ),
    ] = None
    support_epochs: Annotated[float, Field(description="Epochs in which gates are trained.", gt=0)] = 3.0
    support_lr: Annotated[float, Field(description="Peak learning rate of weights with gates.", gt=0)] = 1e-4
    gates: Annotated[
        Literal["structured", "unstructured"], Field(description="Gates of weights and matrices, or of weights only.")
    ] = "structured"
    gate_penalty: Annotated[
        float | None,
        Field(
            description="Pressure that closes gates; for any model size.  "
            f"[default: diff-pruning {GATE_PENALTY:g}, taps and sparse_taps {TAPS_PENALTY:g}]",
            ge=0,
        ),
    ] = None
    gate_tries: Annotated[
        int,
        Field(
            description="Penalties to try with gates, until the expected share with an open gate is 1 to 2 times the "
            "budget; 1 is no search.",
            ge=1,
        ),
    ] = 1
    group_penalty: Annotated[
        Literal["product", "sum"],
        Field(description="Penalty of gates of matrices: a sum, as in the published code, or the paper's product."),
    ] = "sum"
    support_file: Annotated[
        Path | None, Field(description="Instead of a selection: a support that `taskedge select` found on this base.")
    ] = None

    @field_validator(*_FORMS_OF)
    @classmethod
    def _check_form_has_setting(cls, value: Any, info: ValidationInfo) -> Any:
        """Check a value that was set; pydantic does not validate defaults."""
        form, forms = info.data.get("form"), _FORMS_OF[str(info.field_name)]
        if info.field_name == "rank" and form == "sparse" and info.data.get("rule") == "spt":
            return value
        if form is not None and form not in forms:
            raise ValueError(f"has no effect with form {form!r}, only with {listed(forms)}: leave it out")
        return value

    @field_validator("form")
    @classmethod
    def _check_peft_is_installed(cls, value: str) -> str:
        if value == "lora" and not find_spec("peft"):
            raise ValueError("LoRA is trained by PEFT, which is not installed: pip install 'taskedge[peft]'")
        return value

    def select_kwargs(self) -> dict[str, Any]:
        """Return keyword arguments for :func:`taskedge.select`, without defaults that another setting replaces."""
        from taskedge.selection.patterns import read_pattern
        from taskedge.selection.rules import RULES

        if self.support != "rule":  # a stand-in for the support that gates find, to measure its training
            kwargs: dict[str, Any] = {"budget": self.budget, "rule": "random", "allocation": "global"}
            if self.candidates is not None:
                kwargs = {"per_neuron": self.per_neuron or 1, "rule": "random"}
            return kwargs | {"seed": self.seed} | ({} if self.depth is None else {"depth": self.depth})
        chooses_alone = bool(RULES[self.rule].choose)
        replaces_budget = (
            self.per_neuron is not None
            or self.columns is not None
            or read_pattern(self.allocation) is not None
            or self._is_whole_block
        )
        kwargs = {
            "budget": None if replaces_budget else self.budget,
            "per_neuron": self.per_neuron,
            "rule": self.rule,
            "allocation": None if chooses_alone or self.columns is not None else self.allocation,
            "max_columns": self.max_columns,
            "seed": self.seed,
        }
        for name in ("columns", "max_rows", "column_score", "depth"):
            if getattr(self, name) is not None:
                kwargs[name] = getattr(self, name)
        if self.column_draws > 1:
            kwargs["column_draws"] = self.column_draws
        if chooses_alone:
            kwargs["rank"] = self.rank
        return kwargs

    @property
    def _is_whole_block(self) -> bool:
        """Whether the limits of rows and columns are the budget."""
        from taskedge.selection.allocations import BLOCK

        limited = self.max_rows is not None and self.max_columns is not None
        return self.allocation == BLOCK and limited and "budget" not in self.model_fields_set

    @property
    def needs_dense_run(self) -> bool:
        """Whether all weights are trained first, to see what changes."""
        from taskedge.selection.rules import RULES

        return self.form in FORMS_OF_ENTRIES and self.support_file is None and RULES[self.rule].needs_dense_run

    def dense_run_settings(self) -> dict[str, Any]:
        """Return keyword arguments for :func:`taskedge.training.dense_run.measure_changes`.

        The dense run has the settings of the run itself, but for its rate and its epochs.
        """
        config = self.trainer_config()
        head_lr = HEAD_LEARNING_RATE if config.head_lr is None else config.head_lr
        changes = {"lr": self.change_lr, "epochs": self.change_epochs, "head_lr": head_lr}
        return {"config": config.model_copy(update=changes), "depth": self.depth, "needs": self.needs_of_columns}

    def draws_clash(self) -> str:
        """Return why columns cannot be drawn anew during the run; ``""`` if they can, or are not to be."""
        if self.column_draws == 1:
            return ""
        if self.columns is None:
            return "--column-draws needs the number of columns of a draw: give --columns as well"
        if self.memory is not None:
            return "--memory does not predict columns that change: leave out --column-draws"
        if self.regrow:
            return "--column-draws and --regrow both change which entries train: give one"
        return ""

    def change_clash(self) -> str:
        """Return why settings of a dense run cannot be used; ``""`` if they can."""
        given = [
            f"--{name.replace('_', '-')}" for name in ("change_epochs", "change_lr") if name in self.model_fields_set
        ]
        if self.rule != "change":
            return f"{given[0]} has no effect without --rule change: leave it out" if given else ""
        if self.memory is not None and self.support_file is None:
            return "--rule change trains all weights first, whose memory is not predicted: leave out --memory"
        return ""

    @property
    def needs_of_columns(self) -> tuple[str, ...]:
        """The statistics that the column score reads."""
        from taskedge.selection.columns import COLUMN_SCORES, DEFAULT_COLUMN_SCORE

        if self.columns is None and self.max_columns is None:
            return ()
        return COLUMN_SCORES[self.column_score or DEFAULT_COLUMN_SCORE].needs

    @property
    def needs_gradients(self) -> bool:
        """Whether the selection reads gradients of the loss."""
        if self.support_file is not None or (self.support != "rule" and self.candidates is None):
            return False
        from taskedge.selection.columns import COLUMN_SCORES
        from taskedge.selection.rules import RULES

        if RULES[self.rule].needs_gradients:
            return True
        return self.column_score is not None and COLUMN_SCORES[self.column_score].needs_gradients

    def support_clash(self) -> str:
        """Return why settings cannot be used beside those of the support or of LoRA-Dash; ``""`` if all can."""
        if self.dash and self.memory:
            return "--dash keeps singular directions, whose memory is not predicted: leave out --memory"
        if not self.dash and (given := sorted({"directions", "dash_start"} & self.model_fields_set)):
            return f"--{given[0].replace('_', '-')} has no effect without --dash: leave it out, or give --dash"
        if self.support_file is not None:
            names: tuple[str, ...] = (*SELECTION_FIELDS, "support", *GATE_FIELDS)
            reason, other = "with --support-file, whose entries are chosen already", "--support-file"
        elif self.support != "rule":
            names, reason, other = _OF_RULES, f"with --support {self.support}, which chooses by its gates", "--support"
            if self.gate_tries > 1 and self.gate_penalty == 0:
                return "--gate-tries begins at --gate-penalty 0, which has no multiples: give a penalty above 0"
            if self.candidates is not None:
                names = ("budget", *(name for name in _OF_RULES if name not in ("rule", "per_neuron")))
                reason, other = "with --candidates, of which the best of each neuron stay", "--candidates"
                if self.candidates <= (self.per_neuron or 1):
                    return f"--candidates {self.candidates} leave gates nothing to choose: give more than --per-neuron"
            if self.form != "sparse":
                return (
                    f"--support {self.support} gives entries a start, and form {self.form!r} has none: leave out either"
                )
            if self.memory:
                return f"--support {self.support} needs memory that is not predicted: leave out --memory"
        else:
            names, reason, other = GATE_FIELDS, "without gates", ""
            if self.form in TAPS_FORMS:
                names = tuple(name for name in GATE_FIELDS if name != "gate_penalty")
        given = [f"--{name.replace('_', '-')}" for name in names if name in self.model_fields_set]
        if self.support_file is not None and "depth" in (self.allow or ()):
            given.append("--allow depth")
        if not given:
            return ""
        verb, them = ("has", "it") if len(given) == 1 else ("have", "them")
        remedy = (
            f"leave {them} out, or leave out {other}" if other else f"leave {them} out, or give --support diff-pruning"
        )
        return f"{' and '.join(given)} {verb} no effect {reason}: {remedy}"

    def unsupported_by(self, weight_storage: str) -> str:
        """Return the flag that a weight storage does not support; ``""`` if it supports all.

        Memory-mapped and coded weights are read-only and have no dense gradient; LoRA by PEFT needs plain layers.
        """
        if weight_storage == "resident":
            return ""
        from taskedge.selection.rules import RULES

        rule = RULES[self.rule]
        if self.form in ("lora", "taps", "filtered", "sparse_plus_low_rank"):
            return f"--form {self.form}"
        if self.regrow > 0:
            return "--regrow"
        if self.support != "rule":
            return f"--support {self.support}"
        if rule.choose is not None or rule.needs_dense_run or (weight_storage != "mmap" and rule.needs_gradients):
            return f"--rule {self.rule}"
        if weight_storage != "mmap" and self.needs_gradients:
            return f"--column-score {self.column_score}"
        return ""
