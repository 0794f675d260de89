"""The profile file: ``taskedge measure`` writes it on a device, and the planner reads it.

This module has only the format, so that planning reads it without torch. Every key names its unit. List entry d
belongs to backpropagation that reaches depth d + 1 (the block nearest the loss has depth 1).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from taskedge.errors import InputError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class StrictRecord(BaseModel):
    """Base class of file contents: strict types, no unknown keys, no NaN or infinity, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Machine(StrictRecord):
    """The machine of a measurement."""

    name: str
    accelerator: str
    threads: Annotated[int, Field(ge=1)]
    memory_bytes: Positive
    torch: str


class MeasuredDepth(StrictRecord):
    """One measured depth: median and quartiles of the step time, and the peak memory."""

    depth: Annotated[int, Field(ge=1)]
    seconds: Positive
    seconds_quartiles: list[Positive]
    peak_bytes: Positive


class Energy(StrictRecord):
    """Energy of one step at the deepest depth. ``source`` is the counter, ``none`` without one."""

    source: Literal["rapl", "jetson", "nvml", "user watts", "none"]
    watts: NonNegative | None = None
    joules_per_step: NonNegative | None = None
    tokens_per_joule: NonNegative | None = None  # the TPS/W of arXiv 2310.03150


class Profile(StrictRecord):
    """Cost of a training step of one model on one machine, by the depth that it reaches."""

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
    idle_bytes: NonNegative
    measured: Annotated[list[MeasuredDepth], Field(min_length=1)]
    step_seconds: Annotated[list[Positive], Field(min_length=1)]
    peak_bytes: Annotated[list[Positive], Field(min_length=1)]
    energy: Energy

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one batch."""
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
    """Read and check a profile.

    Raises:
        InputError: the file is missing or is not a profile. The message names every fault.
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
