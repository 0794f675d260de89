"""The profile file: what ``taskedge measure`` writes on a device and the fleet planner reads.

Only the format lives here, so that planning reads it without torch. Every unit is in the key's name; list entry d
belongs to backpropagation that reaches depth d + 1 (the block nearest the loss has depth 1).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from taskedge.errors import InputError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Row(BaseModel):
    """Strict about types, closed to unknown keys, and without NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Machine(Row):
    """Where the profile was taken."""

    name: str
    accelerator: str
    threads: Annotated[int, Field(ge=1)]
    memory_bytes: Positive
    torch: str


class MeasuredDepth(Row):
    """One depth that was really run: median and quartiles of the steps, and the peak of the memory in use."""

    depth: Annotated[int, Field(ge=1)]
    seconds: Positive
    seconds_quartiles: list[Positive]
    peak_bytes: Positive


class Energy(Row):
    """Joules of one step at the deepest depth. ``source`` says who counted; ``none`` where nobody could."""

    source: Literal["rapl", "jetson", "nvml", "user watts", "none"]
    watts: NotNegative | None = None
    joules_per_step: NotNegative | None = None
    tokens_per_joule: NotNegative | None = None  # the TPS/W of arXiv 2310.03150


class Profile(Row):
    """Cost of one training step of one model on one machine as a function of the depth it reaches."""

    format: Literal["taskedge-profile-1"] = "taskedge-profile-1"
    model: str
    model_digest: str
    trained: str
    clock: Literal["wall", "cpu"] = "wall"
    batch_sequences: Annotated[int, Field(ge=1)]
    sequence_tokens: Annotated[int, Field(ge=1)]
    machine: Machine
    gemm_peak_flops_per_second: Positive
    forward_flops_per_second: Positive
    backward_flops_per_second: Positive
    forward_mfu_ratio: Positive
    backward_mfu_ratio: Positive
    tokens_per_second: Positive
    idle_bytes: NotNegative
    measured: Annotated[list[MeasuredDepth], Field(min_length=1)]
    step_seconds: Annotated[list[Positive], Field(min_length=1)]
    peak_bytes: Annotated[list[Positive], Field(min_length=1)]
    energy: Energy

    @property
    def tokens_per_step(self) -> int:
        return self.batch_sequences * self.sequence_tokens

    @model_validator(mode="after")
    def _monotone(self) -> Profile:
        if len(self.step_seconds) != len(self.peak_bytes):
            raise ValueError("step_seconds and peak_bytes must have one entry per depth each")
        for key in ("step_seconds", "peak_bytes"):
            values = getattr(self, key)
            if any(deeper < shallower for shallower, deeper in pairwise(values)):
                raise ValueError(f"{key} must not fall with depth")
        return self


def read_profile(path: Path) -> Profile:
    """Reads a profile.

    Raises:
        InputError: the file is missing or is no profile; every fault is named.
    """
    try:
        return Profile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"profile {path}: {error.strerror}; `taskedge measure --model M --out {path.name}` on the device makes it"
        ) from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"profile {path} is not a profile that taskedge can use: {faults}") from None
