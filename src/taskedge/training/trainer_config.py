"""How to train: what the loop is told. The one place for these defaults; others take them from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from taskedge.errors import InputError


@dataclass(frozen=True)
class FitSettings:
    """How to train."""

    epochs: float = 3.0
    lr: float = 3e-2
    """Peak learning rate, for sparse values with scaled steps; these want far more than LoRA (some 1e-3) or full
    fine-tuning (some 1e-4)."""
    head_lr: float | None = None
    """Peak learning rate of what trains whole (the head); None: the same, or with MeZO, which another rate suits, the
    default of ``lr``."""
    batch_size: int = 16
    accumulate: int = 1
    """Batches per optimiser step."""
    micro_batch: int | None = None
    """Rows that pass through the model at once; they divide ``batch_size``, whose gradient it still is. None: all."""
    weight_decay: float = 0.0
    """Pulls offsets towards 0, that is, weights towards the base."""
    warmup: float = 0.06
    """Share of the steps over which the learning rate rises; it falls linearly after."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    group_by_length: bool = False
    """Batches of texts of like length: less padding, less random."""
    bf16: bool = False
    """Autocast to bfloat16."""
    seed: int = 0
    checkpoint_every: int = 0
    """Optimiser steps between checkpoints; 0 for none."""
    recompute: Literal["none", "blocks", "inputs"] = "none"
    """What the backward pass computes again rather than keep (:mod:`taskedge.forms.recompute`)."""
    rotate: int = 0
    """Optimizer steps each block trains in its turn (:mod:`taskedge.training.memory.rotate`); 0 for all at once."""
    optimizer: Literal["adamw", "mezo"] = "adamw"
    """``"mezo"``: without gradients but the head's (:mod:`taskedge.training.memory.mezo`)."""
    perturbation: float = 1e-3
    """How far MeZO moves parameters to find a slope."""

    regrow: int = 0
    """Optimiser steps between moves of the support (:mod:`taskedge.forms.regrow`); 0 for none."""
    regrow_share: float = 0.2
    """Share of each linear's entries that the first move would take; it falls linearly to 0 over the run."""

    @property
    def sparing(self) -> bool:
        """Whether memory is to be saved at the price of time: freed memory goes back to the system at once, and entries
        do without the kernel of numba, whose compiler takes memory too."""
        return bool(self.recompute != "none" or self.micro_batch or self.rotate or self.optimizer == "mezo")

    @property
    def passes(self) -> tuple[int, int]:
        """(rows that pass through the model at once, such passes in an optimiser step).

        Raises:
            InputError: the parts of a batch would not be of one size.
        """
        rows = self.batch_size if self.micro_batch is None else self.micro_batch
        if rows < 1 or self.batch_size % rows:
            raise InputError(
                f"micro_batch={rows} does not divide batch_size={self.batch_size}: give one of "
                + ", ".join(str(part) for part in range(1, self.batch_size + 1) if self.batch_size % part == 0)
            )
        return rows, self.batch_size // rows * self.accumulate
