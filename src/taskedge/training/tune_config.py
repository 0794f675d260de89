"""Settings of ``taskedge tune``: those of the data, the selection and the training, and what they need together.

Must not import torch or transformers: help texts and faults in flags are printed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from taskedge.errors import InputError, UnknownName
from taskedge.profiling.byte_size import parse_bytes
from taskedge.training.data_settings import DataSettings
from taskedge.training.form_settings import FormSettings
from taskedge.training.held_out_rows import parse_validation
from taskedge.training.selection_settings import SELECTION_FIELDS
from taskedge.training.training_settings import TrainingSettings


class TuneConfig(TrainingSettings, FormSettings, DataSettings):
    """Settings of one run. Flags and the keys of a settings file have the names of these fields."""

    model_config = ConfigDict(coerce_numbers_to_str=True)
    old_names: ClassVar[dict[str, str]] = {"base": "weight_storage"}

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
            description="With --memory: also consider an option that changes what is learned: bf16, int8, int4 or "
            "depth. May be repeated.",
            min_length=1,
        ),
    ] = None

    # output
    values: Annotated[Literal["fp32", "bf16"], Field(description="Data type of the values in the delta file.")] = "fp32"
    tensorboard: Annotated[bool, Field(description="Write TensorBoard logs to the folder of the run.")] = False
    log: Annotated[
        Path | None,
        Field(description="Folder for curves and figures of the run (run.json), which `taskedge report --log` shows."),
    ] = None
    out: Annotated[Path, Field(description="The delta file to write.")] = Path("task.safetensors")

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget in bytes, if there is one."""
        return None if self.memory is None else parse_bytes(self.memory)

    # --- checks of one setting ---

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
        if clash := self.support_clash() or self.draws_clash() or self.change_clash() or self.form_clash():
            raise ValueError(clash)
        if not self.model_fields_set & {"rule", "allocation", "columns", "column_score"}:
            return self
        from taskedge.selection.select import refuse_clashes

        names = ("budget", "per_neuron", "columns", "max_columns", "max_rows", "column_score", "allocation")
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
    def _check_held_out(self) -> TuneConfig:
        if self.validation is not None:
            try:
                parse_validation(self.validation)
            except InputError as error:
                raise ValueError(f"--validation: {error}") from None
        if self.eval_every is None:
            given = ["--early-stop"] if self.early_stop is not None else []
            given += ["--keep best"] if self.keep == "best" else []
            if given:
                raise ValueError(f"{' and '.join(given)} needs the held-out loss while it trains: give --eval-every")
        elif self.validation is None and self.eval is None:
            raise ValueError(
                "--eval-every needs held-out data: give --validation 10%, --validation FILE or --eval FILE"
            )
        if self.from_delta is not None:
            for name, free in (("form", "sparse"), ("support", "rule"), ("support_file", None), ("head_warmup", False)):
                if getattr(self, name) != free:
                    raise ValueError(
                        f"--from-delta brings entries, values and a head: leave out --{name.replace('_', '-')}"
                    )
            given = [name for name in SELECTION_FIELDS if name in self.model_fields_set and name != "calibration"]
            if given:
                raise ValueError(
                    f"--{given[0].replace('_', '-')} has no effect with --from-delta, whose entries are chosen: "
                    "leave it out"
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
