"""Predicted cost of a configuration: peak memory by kind, and seconds of a step. Plain figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MARGIN_SHARE = 0.05
"""Safety margin for the bytes above the idle process, as a share of them."""

MARGIN_BYTES = 8_000_000
"""Safety margin for the idle process."""


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident set of the process, in bytes by kind.

    Attributes:
        process: Python, libraries and the data as read, before the base is loaded.
        base: base weights, all pages read.
        runtime: other resident memory: library code and buffers, encoded rows, the JIT compiler, memory retained by
            malloc.
        entries: trained entries with their positions, gradients and optimizer state; the head is not included.
        head: gradients and optimizer state of fully trained parameters, and their copies if the base has a lower
            precision.
        saved: activations kept for the backward pass, and the inputs of a step.
        temporary: temporaries of the step, or of the part of the run that needs more than the step.
        part: the part of the run that has the peak.
    """

    process: int
    base: int
    runtime: int
    entries: int
    head: int
    saved: int
    temporary: int
    part: str = "step"

    @property
    def peak(self) -> int:
        """Largest resident set of the process, in bytes."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "part")

    @property
    def above_idle(self) -> int:
        """Bytes above the idle process with a loaded base."""
        return self.peak - self.process - self.base


@dataclass(frozen=True)
class ConfigCost:
    """Predicted cost of one configuration.

    Attributes:
        config: name of the configuration (``StepConfig.name``).
        changes: overridden settings by name.
        exact: whether gradients equal those of the run without overrides.
        allowed: whether ``--allow`` permits the configuration.
        memory: predicted peak.
        seconds: wall-clock seconds of a step.
        cpu_seconds: processor seconds of a step.
        steps: optimizer steps of the run.
        threads: CPU threads of torch.
    """

    config: str
    changes: Mapping[str, Any]
    exact: bool
    allowed: bool
    memory: PeakMemory
    seconds: float
    cpu_seconds: float
    steps: int
    threads: int

    @property
    def work(self) -> float:
        """Seconds to compare configurations by.

        With one thread these are processor seconds, which do not depend on other processes.
        """
        return self.cpu_seconds if self.threads == 1 else self.seconds

    @property
    def needed(self) -> int:
        """Smallest sufficient budget in bytes: the predicted peak plus the safety margins."""
        return round(self.memory.peak + MARGIN_BYTES + MARGIN_SHARE * self.memory.above_idle)

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON, derived figures included."""
        memory = asdict(self.memory) | {"peak": self.memory.peak, "above_idle": self.memory.above_idle}
        return asdict(self) | {
            "memory": memory,
            "needed": self.needed,
            "work": self.work,
            "run_seconds": self.seconds * self.steps,
        }
