"""Settings of ``taskedge tune`` that only forms with gates or filters have.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from taskedge.training.selection_settings import TAPS_FORMS, TAPS_PENALTY, SelectionSettings, listed
from taskedge.training.trainer_config import OptimizerName

_FORMS_OF = {
    **dict.fromkeys(("gate_threshold", "gate_lr", "gate_warmup"), TAPS_FORMS),
    "norms": ("taps",),
    **dict.fromkeys(("filter", "filter_rank"), ("filtered",)),
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
    filter: Annotated[
        Literal["cosine", "gate"],
        Field(
            description="What weights the hidden states of form filtered: their cosine to a trained vector, or a gate."
        ),
    ] = "cosine"
    filter_rank: Annotated[int, Field(description="Rank of the filtered product of form filtered.", ge=1)] = 8

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
        if self.form in TAPS_FORMS:
            for given, flag, reason in (
                (self.optimizer == "mezo", "--optimizer mezo", "gates have no gradient there"),
                (bool(self.regrow), "--regrow", "entries behind gates stay where they are"),
                (bool(self.rotate), "--rotate", "the penalty moves the gates of all blocks in every step"),
            ):
                if given:
                    return f"{flag} cannot be used with form {self.form!r}, since {reason}: leave out either"
        return ""
