"""The support: the chosen entries of every linear, as a plain thing that can be printed, counted and stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from taskedge.errors import InputError


@dataclass(frozen=True)
class LinearSupport:
    """The chosen entries of one linear's weight W [out, in].

    Attributes:
        shape: (out, in).
        rows, columns: int64 [n], sorted by row and then column, no entry twice.
        reads: the linear that reads the same input tensor first (itself where none does), so that what training
            must keep of that input is kept once.
        input_rms: float32 [in], the root mean square of each input feature over the calibration tokens, where the
            selection measured it; used to scale step sizes.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    reads: str
    input_rms: Tensor | None = None

    @classmethod
    def from_flat(
        cls, shape: tuple[int, int], flat: Tensor, reads: str, input_rms: Tensor | None = None
    ) -> LinearSupport:
        """From ascending ``row * in + column``."""
        return cls(shape, flat // shape[1], flat % shape[1], reads, input_rms)

    def __post_init__(self) -> None:
        out, inputs = self.shape
        if len(self.rows) != len(self.columns):
            raise InputError(f"a support of {len(self.rows)} rows and {len(self.columns)} columns")
        if not len(self.rows):
            return
        if self.rows.min() < 0 or self.rows.max() >= out or self.columns.min() < 0 or self.columns.max() >= inputs:
            raise InputError(f"a support that reaches outside its [{out}, {inputs}] weight")
        if bool((self.flat.diff() <= 0).any()):
            raise InputError("a support whose entries are not sorted, or that names an entry twice")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def flat(self) -> Tensor:
        """int64 [n]: ``row * in + column``, ascending."""
        return self.rows * self.shape[1] + self.columns

    @property
    def distinct_columns(self) -> Tensor:
        """int64, ascending: the inputs that some entry uses. Training stores these columns of X and no others."""
        distinct: Tensor = self.columns.unique()  # type: ignore[no-untyped-call]
        return distinct


@dataclass(frozen=True)
class Support:
    """What of a whole model trains beside its head, and how it was chosen: entries, and with some rules more."""

    linears: dict[str, LinearSupport]
    model_parameters: int
    """All parameters of the model: what the share is a share of."""
    rule: str = "given"
    allocation: str = "given"
    budget: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    low_rank: dict[str, int] = field(default_factory=dict)
    """Linears that train a low-rank product instead of entries, with its rank; none of them is in ``linears``."""
    low_rank_parameters: int = 0
    """Of these modules: the sum of ``rank·(in + out)``."""
    whole: tuple[str, ...] = ()
    """Names of parameters that train whole, beside the head: biases and norms."""
    whole_parameters: int = 0
    """How many numbers these are."""

    @property
    def entries(self) -> int:
        """How many weights are chosen."""
        return sum(len(linear) for linear in self.linears.values())

    @property
    def stored_columns(self) -> int:
        """Input columns that training keeps for the entries, an input that several linears read counted once."""
        stored: dict[str, set[int]] = {}
        for linear in self.linears.values():
            stored.setdefault(linear.reads, set()).update(linear.columns.tolist())
        return sum(map(len, stored.values()))

    @property
    def parameters(self) -> int:
        """How many numbers train, all but the head's: entries, low-rank modules and whole parameters."""
        return self.entries + self.low_rank_parameters + self.whole_parameters

    @property
    def share(self) -> float:
        """What trains, all but the head, over all the model's parameters."""
        return self.parameters / self.model_parameters

    def __str__(self) -> str:
        columns = [len(linear.distinct_columns) for linear in self.linears.values()]
        used = f"{min(columns)}-{max(columns)}" if columns else "0"
        more = ""
        if self.low_rank:
            more += f" + {self.low_rank_parameters:,} in {len(self.low_rank)} low-rank modules"
        if self.whole:
            more += f" + {self.whole_parameters:,} in {len(self.whole)} whole vectors"
        return (
            f"{self.entries:,} entries{more} ({self.share:.4%} of {self.model_parameters:,} parameters) in "
            f"{len(self.linears)} linears, {used} distinct columns each, by rule {self.rule!r} "
            f"and allocation {self.allocation!r}"
        )
