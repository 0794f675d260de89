"""Methods of the settings about selection: arguments of ``select``, gradients that it needs, and the weight storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskedge.training.trainer_config import HEAD_LEARNING_RATE, TrainerConfig

SELECTION_FIELDS = (
    *("budget", "per_neuron", "rule", "allocation", "columns", "max_columns", "column_score", "depth", "calibration"),
    *("change_epochs", "change_lr"),
)
"""Settings that only a selection reads."""
GATE_FIELDS = ("support_epochs", "support_lr", "gates", "gate_penalty", "group_penalty")
"""Settings that only a selection with gates reads."""
GATE_PENALTY = 42.5
"""Penalty of a gate times the number of gates: 1.25e-7 for the 340 million parameters of BERT-large."""
_OF_RULES = ("per_neuron", "rule", "allocation", "columns", "max_columns", "column_score")


class SelectionSettings:
    """Methods of :class:`taskedge.training.tune_config.TuneConfig` about its selection settings.

    Must not import torch: see there.
    """

    if TYPE_CHECKING:  # fields of the class that inherits
        model_fields_set: set[str]
        allow: list[str] | None
        support_file: Path | None
        support: str
        dash: bool
        memory: str | None
        budget: str
        per_neuron: int | None
        rule: str
        allocation: str
        columns: int | None
        max_columns: int | None
        column_score: str | None
        depth: int | None
        change_epochs: float
        change_lr: float
        rank: int
        form: Any
        regrow: int
        seed: int
        trainer_config: Callable[[], TrainerConfig]

    def select_kwargs(self) -> dict[str, Any]:
        """Return keyword arguments for :func:`taskedge.select`, without defaults that another setting replaces."""
        from taskedge.selection.patterns import read_pattern
        from taskedge.selection.rules import RULES

        if self.support != "rule":  # a stand-in for the support that gates find, to measure its training
            kwargs: dict[str, Any] = {"budget": self.budget, "rule": "random", "allocation": "global"}
            return kwargs | {"seed": self.seed} | ({} if self.depth is None else {"depth": self.depth})
        chooses_alone = bool(RULES[self.rule].choose)
        replaces_budget = (
            self.per_neuron is not None or self.columns is not None or read_pattern(self.allocation) is not None
        )
        kwargs = {
            "budget": None if replaces_budget else self.budget,
            "per_neuron": self.per_neuron,
            "rule": self.rule,
            "allocation": None if chooses_alone or self.columns is not None else self.allocation,
            "max_columns": self.max_columns,
            "seed": self.seed,
        }
        for name in ("columns", "column_score", "depth"):
            if getattr(self, name) is not None:
                kwargs[name] = getattr(self, name)
        if chooses_alone:
            kwargs["rank"] = self.rank
        return kwargs

    @property
    def needs_dense_run(self) -> bool:
        """Whether all weights are trained first, to see what changes."""
        from taskedge.selection.rules import RULES

        return self.form != "lora" and self.support_file is None and RULES[self.rule].needs_dense_run

    def dense_run_settings(self) -> dict[str, Any]:
        """Return keyword arguments for :func:`taskedge.training.dense_run.measure_changes`.

        The dense run has the settings of the run itself, but for its rate and its epochs.
        """
        config = self.trainer_config()
        head_lr = HEAD_LEARNING_RATE if config.head_lr is None else config.head_lr
        changes = {"lr": self.change_lr, "epochs": self.change_epochs, "head_lr": head_lr}
        return {"config": config.model_copy(update=changes), "depth": self.depth, "needs": self.needs_of_columns}

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
        if self.support_file is not None or self.support != "rule":
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
            if self.form != "sparse":
                return (
                    f"--support {self.support} gives entries a start, and form {self.form!r} has none: leave out either"
                )
            if self.memory:
                return f"--support {self.support} needs memory that is not predicted: leave out --memory"
        else:
            names, reason, other = GATE_FIELDS, "without gates", ""
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

        Memory-mapped and int8 weights are read-only and have no dense gradient; LoRA by PEFT needs plain layers.
        """
        if weight_storage == "resident":
            return ""
        from taskedge.selection.rules import RULES

        rule = RULES[self.rule]
        if self.form == "lora":
            return "--form lora"
        if self.regrow > 0:
            return "--regrow"
        if self.support != "rule":
            return f"--support {self.support}"
        if rule.choose is not None or rule.needs_dense_run or (weight_storage == "int8" and rule.needs_gradients):
            return f"--rule {self.rule}"
        if weight_storage == "int8" and self.needs_gradients:
            return f"--column-score {self.column_score}"
        return ""
