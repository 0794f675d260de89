"""Settings of ``taskedge tune`` that only forms with gates or filters have.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from taskedge.forms import PRODUCT_RATE
from taskedge.training.selection_settings import TAPS_FORMS, TAPS_PENALTY, SelectionSettings, listed
from taskedge.training.trainer_config import OptimizerName

_FORMS_OF = {
    **dict.fromkeys(("gate_threshold", "gate_lr", "gate_warmup"), TAPS_FORMS),
    "norms": ("taps",),
    "product_rate": ("sparse_plus_low_rank",),
    **dict.fromkeys(("filter", "filter_rank"), ("filtered",)),
    **dict.fromkeys(
        ("prompt_tokens", "prompt_where", "prompt_repeat", "prompt_segments", "prompt_init", "prompt_text"), ("prompt",)
    ),
}


class FormSettings(SelectionSettings):
    """Settings of one run about the selection and the form."""

    if TYPE_CHECKING:  # of the class that inherits
        optimizer: OptimizerName
        rotate: int

    gate_threshold: Annotated[
        float, Field(description="Score from which the gate of a layer is open; scores start at 0.15.", gt=0, le=0.15)
    ] = 0.1
    gate_lr: Annotated[float, Field(description="Peak learning rate of the scores of gates on layers.", gt=0)] = 1e-3
    gate_warmup: Annotated[
        float, Field(description="Share of the steps before the penalty on gates of layers begins.", ge=0, lt=1)
    ] = 0.1
    norms: Annotated[
        Literal["shared", "task"],
        Field(description="With form taps: norms and their running statistics are the base's, or the task's own."),
    ] = "shared"
    product_rate: Annotated[
        float,
        Field(description="Form sparse_plus_low_rank: learning rate of the products, relative to --lr.", gt=0),
    ] = PRODUCT_RATE
    filter: Annotated[
        Literal["cosine", "gate"],
        Field(
            description="What weights the hidden states of form filtered: their cosine to a trained vector, or a gate."
        ),
    ] = "cosine"
    filter_rank: Annotated[int, Field(description="Rank of the filtered product of form filtered.", ge=1)] = 8
    prompt_tokens: Annotated[
        int, Field(description="Form prompt: soft tokens of the task, or of each slot.", ge=0, le=1000)
    ] = 10
    prompt_where: Annotated[
        Literal["before", "after"],
        Field(
            description="Form prompt: soft tokens before the text, or after it, where one pass over a dialogue serves "
            "all slots."
        ),
    ] = "before"
    prompt_repeat: Annotated[
        bool, Field(description="Form prompt: the same soft tokens once more, right before the value.")
    ] = False
    prompt_segments: Annotated[
        bool, Field(description="Form prompt: also train a vector each for prompt, user and system, added to tokens.")
    ] = False
    prompt_init: Annotated[
        Literal["words", "random"],
        Field(
            description="Form prompt: soft tokens start from the words of the slot's name or of --prompt-text, or at "
            "random, which is known to fail."
        ),
    ] = "words"
    prompt_text: Annotated[
        str | None,
        Field(description="Form prompt: words that describe the task.  [default: task and classes, or the slot]"),
    ] = None

    @field_validator(*_FORMS_OF)
    @classmethod
    def _check_form_has_option(cls, value: Any, info: ValidationInfo) -> Any:
        """Check a value that was set; pydantic does not validate defaults."""
        form, forms = info.data.get("form"), _FORMS_OF[str(info.field_name)]
        if form is not None and form not in forms:
            raise ValueError(f"has no effect with form {form!r}, only with {listed(forms)}: leave it out")
        return value

    @property
    def layer_gate_penalty(self) -> float:
        """The penalty of gates on layers."""
        return TAPS_PENALTY if self.gate_penalty is None else self.gate_penalty

    def form_clash(self) -> str:
        """Return why settings of the training cannot be used with the form; ``""`` if all can."""
        if self.form == "prompt":
            return self._prompt_clash()
        if self.form == "sparse_plus_low_rank":
            if self.optimizer == "mezo":
                return f"--optimizer mezo has one rate for all, and form {self.form!r} has two: leave out either"
            if self.regrow:
                return f"--regrow moves the entries of form 'sparse' only, not of {self.form!r}: leave out either"
            if self.rule == "spt":
                return f"--rule spt has products of its own, and form {self.form!r} too: leave out either"
        if self.form in TAPS_FORMS:
            for given, flag, reason in (
                (self.optimizer == "mezo", "--optimizer mezo", "gates have no gradient there"),
                (bool(self.regrow), "--regrow", "entries behind gates stay where they are"),
                (bool(self.rotate), "--rotate", "the penalty moves the gates of all blocks in every step"),
            ):
                if given:
                    return f"{flag} cannot be used with form {self.form!r}, since {reason}: leave out either"
        return ""

    def _prompt_clash(self) -> str:
        for given, flag, reason in (
            (self.optimizer == "mezo", "--optimizer mezo", "its steps are those of entries"),
            (bool(self.regrow), "--regrow", "a soft prompt has no entries"),
            (bool(self.rotate), "--rotate", "its gradient passes through all blocks"),
            (self.depth is not None, "--depth", "its gradient passes through all blocks"),
            (self.memory is not None, "--memory", "the memory of its step is not predicted"),
        ):
            if given:
                return f"{flag} cannot be used with form 'prompt', since {reason}: leave out either"
        if self.prompt_repeat and self.prompt_where == "after":
            return (
                "--prompt-repeat has no effect with --prompt-where after, which is right before the value: leave it out"
            )
        return ""
