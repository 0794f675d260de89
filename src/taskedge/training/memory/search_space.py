"""Search space of memory-saving configurations, as overrides of :class:`~taskedge.training.tune_config.TuneConfig`.

A setting that the user gave is never overridden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from taskedge.training.memory.options import LOAD_OPTIONS, MEZO_OPTION, RECOMPUTE_OPTIONS, MemoryOption
from taskedge.training.selection_settings import TAPS_FORMS
from taskedge.training.tune_config import TuneConfig

UNCHANGED = "as configured"
"""Name of the configuration without overrides."""


@dataclass(frozen=True)
class LoadConfig:
    """Options that need a new base or a new selection: weight storage and training depth."""

    options: tuple[MemoryOption, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """Overridden settings by name."""
        return {option.setting: option.value for option in self.options}

    def is_allowed(self, allow: Collection[str] | None) -> bool:
        """Return whether ``--allow`` lists everything that the options need."""
        return StepConfig(self.options, None).is_allowed(allow)


@dataclass(frozen=True)
class StepConfig:
    """A full combination: options, and the rows of one pass (None: the whole batch)."""

    options: tuple[MemoryOption, ...]
    micro_batch: int | None

    @property
    def changes(self) -> dict[str, Any]:
        """Overridden settings by name."""
        changes = {option.setting: option.value for option in self.options}
        if self.micro_batch is not None:
            changes["micro_batch"] = self.micro_batch
        return changes

    @property
    def name(self) -> str:
        """Text for tables and messages."""
        parts = [option.name for option in self.options]
        if self.micro_batch is not None:
            parts.append(f"micro-batch {self.micro_batch}")
        return ", ".join(parts) or UNCHANGED

    @property
    def is_exact(self) -> bool:
        """Whether gradients equal those of the run without overrides."""
        return not any(option.allowed_by for option in self.options)

    def is_allowed(self, allow: Collection[str] | None) -> bool:
        """Return whether ``--allow`` lists everything that the options need."""
        return all(option.allowed_by in (allow or []) for option in self.options if option.allowed_by)


def iter_load_configs(config: TuneConfig, num_blocks: int) -> Iterator[LoadConfig]:
    """Yield load configurations in the order of their cost to the result.

    The order is: no override, decreasing depth, MeZO, then each way to store the base, alone and with each depth.
    """
    given = config.model_fields_set
    storages = []
    for option in LOAD_OPTIONS:
        is_supported = option.setting != "weight_storage" or not config.unsupported_by(option.value)
        if option.setting not in given and is_supported:
            storages.append(option)
    depths = []
    if "depth" not in given and not config.rotate and config.rule != "spt":
        depths = [MemoryOption("depth", depth, "depth") for depth in _halved_depths(num_blocks)]
    yield LoadConfig()
    for depth in depths:
        yield LoadConfig((depth,))
    if MEZO_OPTION.setting not in given and config.form not in (*TAPS_FORMS, "sparse_plus_low_rank"):
        yield LoadConfig((MEZO_OPTION,))
    for storage in storages:
        yield LoadConfig((storage,))
    for storage in storages:
        for depth in depths:
            yield LoadConfig((storage, depth))


def iter_recompute_options(config: TuneConfig, num_blocks: int) -> Iterator[tuple[MemoryOption, ...]]:
    """Yield the options of a step, no recomputation first."""
    yield ()
    if num_blocks and "recompute" not in config.model_fields_set and config.optimizer == "adamw":
        for option in RECOMPUTE_OPTIONS:
            yield (option,)


def micro_batch_sizes(config: TuneConfig, options: tuple[MemoryOption, ...]) -> list[int | None]:
    """Return rows per pass, most first; each divides the batch.

    None keeps the setting as given. The full batch is listed as a micro-batch only where it saves memory, which is
    where nothing else switches the run to its low-memory mode.
    """
    if config.micro_batch is not None:
        return [config.micro_batch]
    sizes = [rows for rows in range(config.batch_size, 0, -1) if config.batch_size % rows == 0]
    is_low_memory = bool(options) or config.trainer_config().low_memory
    return [None, *sizes[1:]] if is_low_memory else [None, *sizes]


def _halved_depths(num_blocks: int) -> list[int]:
    """Return half of the blocks, a quarter, and so on down to 1: for 12 blocks 6, 3, 1."""
    depths = []
    while num_blocks > 1:
        num_blocks //= 2
        depths.append(num_blocks)
    return depths
