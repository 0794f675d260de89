"""The support: the chosen entries of every linear, and how it is stored in a file.

The file (format ``taskedge-support/3``) is a container with the tensors ``flat/NAME``, int64 [n], the entries of a
linear as ascending ``row * in + column``, and ``rms/NAME``, float32 [in], the root mean squares of its inputs. A linear
with entries in the same columns in every row has no ``flat/NAME``: the header's ``columns_of`` gives the name of its
tensor ``columns/FIRST``, int64 [C], which it may share with others. Values from which training starts are in
``start/NAME``, float32 [n], and ``start_full/PARAMETER``. The header has the shapes of the linears and the
other attributes of :class:`Support`. Format 2 has no ``columns_of``; files of format 1 also state no format and have no
digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskedge.errors import InputError
from taskedge.io.container import ContainerKind

SUPPORT = ContainerKind(
    name="support",
    key="support",
    error=InputError,
    format="taskedge-support/3",
    older_formats=("taskedge-support/2", ""),
    without_digest=("",),
    remedy="start the run anew with --force",
)

_ATTRIBUTES = {
    "model_parameters": "model_parameters",
    "rule": "rule",
    "allocation": "allocation",
    "budget": "budget",
    "settings": "settings",
    "low_rank": "low_rank",
    "low_rank_parameters": "num_low_rank_parameters",
    "whole": "full_parameters",
    "whole_parameters": "num_full_parameters",
}
"""Key in files and messages -> attribute of ``Support``."""
NEURON_SHARE = "neuron_share"
"""Name among the settings."""
_START, _START_FULL = "start/", "start_full/"


@dataclass(frozen=True)
class LayerSupport:
    """The chosen entries of one linear's weight W [out, in].

    Attributes:
        shape: (out, in).
        rows, columns: int64 [n], sorted by row and then column, no entry twice.
        shared_input: the first linear that reads the same input tensor (this one, if it is the first). Training stores
            columns of a shared input once.
        input_rms: root mean square of each input feature over the calibration tokens, float32 [in], or None if the
            selection did not measure it; used to scale step sizes.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    shared_input: str
    input_rms: Tensor | None = None

    @classmethod
    def from_flat(
        cls, shape: tuple[int, int], flat: Tensor, shared_input: str, input_rms: Tensor | None = None
    ) -> LayerSupport:
        """Return the support of entries given as ascending ``row * in + column``, int64 [n]."""
        return cls(shape, flat // shape[1], flat % shape[1], shared_input, input_rms)

    def __post_init__(self) -> None:
        out, inputs = self.shape
        if len(self.rows) != len(self.columns):
            raise InputError(f"the support has {len(self.rows)} rows and {len(self.columns)} columns")
        if not len(self.rows):
            return
        if self.rows.min() < 0 or self.rows.max() >= out or self.columns.min() < 0 or self.columns.max() >= inputs:
            raise InputError(f"the support has an entry outside its [{out}, {inputs}] weight")
        if bool((self.flat.diff() <= 0).any()):
            raise InputError("the entries of the support are not sorted, or one occurs twice")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def flat(self) -> Tensor:
        """Entries as ``row * in + column``, int64 [n], ascending."""
        return self.rows * self.shape[1] + self.columns

    @property
    def distinct_columns(self) -> Tensor:
        """Inputs that some entry uses, int64, ascending: the columns of X that training stores."""
        distinct: Tensor = self.columns.unique()  # type: ignore[no-untyped-call]
        return distinct

    @property
    def distinct_rows(self) -> Tensor:
        """Neurons that have some entry, int64, ascending: the rows of the output gradient that training reads."""
        distinct: Tensor = self.rows.unique()  # type: ignore[no-untyped-call]
        return distinct

    @property
    def columns_of_every_row(self) -> Tensor | None:
        """The columns int64 [C] if every row has entries in the same ones, else None."""
        return columns_of_every_row(self.shape[0], self.rows, self.columns)


def columns_of_every_row(out: int, rows: Tensor, columns: Tensor) -> Tensor | None:
    """Return the columns int64 [C] that each of ``out`` rows has entries in; None if rows differ or there is one row.

    Args:
        out: number of rows.
        rows, columns: int64 [n], sorted by row and then column.
    """
    per_row, remainder = divmod(len(rows), out)
    if out < 2 or not per_row or remainder:
        return None
    rows, columns = rows.view(out, per_row), columns.view(out, per_row)
    if not torch.equal(rows, torch.arange(out)[:, None].expand_as(rows)):
        return None
    return columns[0] if torch.equal(columns, columns[:1].expand_as(columns)) else None


@dataclass(frozen=True)
class Support:
    """The parameters of a model that are trained beside its head, and how they were selected.

    Attributes:
        linears: chosen entries, by linear.
        model_parameters: number of parameters of the model, the denominator of ``share``.
        rule, allocation, budget, settings: how they were selected.
        low_rank: rank of the low-rank product, by linear; such linears have no entries.
        num_low_rank_parameters: numbers in these products, the sum of ``rank·(in + out)``.
        full_parameters: names of biases and norms that are trained in full.
        num_full_parameters: numbers in these.
        start: change of the base's values from which training starts, float32 [n] by linear; 0 where there is none.
        start_full: values from which fully trained parameters start, by name; the model's where there are none.
    """

    linears: dict[str, LayerSupport]
    model_parameters: int
    rule: str = "given"
    allocation: str = "given"
    budget: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    low_rank: dict[str, int] = field(default_factory=dict)
    num_low_rank_parameters: int = 0
    full_parameters: tuple[str, ...] = ()
    num_full_parameters: int = 0
    start: Mapping[str, Tensor] = field(default_factory=dict)
    start_full: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_entries(self) -> int:
        """Number of chosen entries."""
        return sum(len(linear) for linear in self.linears.values())

    @property
    def stored_columns(self) -> int:
        """Number of input columns that training stores at once; a column of a shared input counts once.

        Of columns that are drawn several times, one draw is stored at a time, and the largest counts.
        """
        draws = self.settings.get("drawn_columns") or {}
        counts = []
        for draw in range(max(map(len, draws.values()), default=1)):
            stored: dict[str, set[int]] = {}
            for name, linear in self.linears.items():
                used = set(linear.columns.tolist())
                at_once = used.intersection(draws[name][draw]) if draws else used
                stored.setdefault(linear.shared_input, set()).update(at_once)
            counts.append(sum(map(len, stored.values())))
        return max(counts)

    @property
    def neuron_share(self) -> float:
        """Share of the neurons to choose from that have an entry; 1 where none is recorded.

        Raises:
            InputError: the recorded one is no share.
        """
        share = self.settings.get(NEURON_SHARE, 1.0)
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InputError(f"a support with entries in {str(share)[:40]} of its neurons: select it again")
        return float(share)

    @property
    def parameters(self) -> int:
        """Number of trained parameters without the head: entries, low-rank products, biases and norms."""
        return self.num_entries + self.num_low_rank_parameters + self.num_full_parameters

    @property
    def share(self) -> float:
        """Trained parameters without the head over all parameters of the model."""
        return self.parameters / self.model_parameters

    def __str__(self) -> str:
        columns = [len(linear.distinct_columns) for linear in self.linears.values()]
        used = "-".join(map(str, sorted({min(columns, default=0), max(columns, default=0)})))
        more = ""
        if self.low_rank:
            more += f" + {self.num_low_rank_parameters:,} in {_count(len(self.low_rank), 'low-rank module')}"
        if self.full_parameters:
            more += f" + {self.num_full_parameters:,} in {len(self.full_parameters)} biases and norms"
        draws = self.settings.get("drawn_columns") or {}
        kept = max((len(draw) for of_linear in draws.values() for draw in of_linear), default=0)
        used = f"{used} distinct {'column' if used == '1' else 'columns'} each" + (
            f" ({kept} at a time)" if kept else ""
        )
        if (limit := self.settings.get("max_rows")) is not None:
            used += f" in at most {_count(limit, 'row')}"
        idle = self.settings.get("never_ran") or ()
        left_out = f"; left out: {_count(len(idle), 'linear')} that never ran on the calibration data" if idle else ""
        return (
            f"{_count(self.num_entries, 'entry', 'entries')}{more} "
            f"({self.share:.4%} of {self.model_parameters:,} parameters) in {_count(len(self.linears), 'linear')}, "
            f"{used}, by rule {self.rule!r} "
            f"and allocation {self.allocation!r}{left_out}"
        )


def neuron_share_of(linears: Mapping[str, LayerSupport], neurons: int) -> dict[str, float]:
    """Return the setting that says in which share of the neurons to choose from there are entries."""
    used = sum(len(torch.unique(linear.rows)) for linear in linears.values())
    return {NEURON_SHARE: min(1.0, used / neurons)}


def _count(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def support_content(support: Support) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a support as a JSON-able header and tensors; see the module docstring."""
    tensors = {}
    for name, linear in support.linears.items():
        tensors[f"flat/{name}"] = linear.flat
        if linear.input_rms is not None:
            tensors[f"rms/{name}"] = linear.input_rms
    tensors |= {f"{_START}{name}": change for name, change in support.start.items()}
    tensors |= {f"{_START_FULL}{name}": value for name, value in support.start_full.items()}
    about = {key: getattr(support, attribute) for key, attribute in _ATTRIBUTES.items()}
    shapes = {name: [*linear.shape, linear.shared_input] for name, linear in support.linears.items()}
    return {"about": about, "shapes": shapes}, tensors


def support_from_content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Support:
    """Return the support that a header and tensors describe.

    A shape may have a fourth item: the linear under whose name the root mean squares are stored, or None. The header
    may have ``columns_of``; see the module docstring.

    Raises:
        InputError: the content is incomplete, or the entries contradict themselves.
    """
    try:
        linears = {}
        columns_of = header.get("columns_of", {})
        for name, (out, inputs, shared_input, *rms_name) in header["shapes"].items():
            rms = tensors.get(f"rms/{name}") if not rms_name else None
            if rms_name and rms_name[0] is not None:
                rms = tensors[f"rms/{rms_name[0]}"]
            if name in columns_of:
                columns = tensors[f"columns/{columns_of[name]}"].to(torch.int64)
                flat = (torch.arange(int(out))[:, None] * int(inputs) + columns).flatten()
            else:
                flat = tensors[f"flat/{name}"].to(torch.int64)
            linears[name] = LayerSupport.from_flat((int(out), int(inputs)), flat, str(shared_input), rms)
        attributes = {_ATTRIBUTES[key]: value for key, value in header["about"].items()}
        attributes["full_parameters"] = tuple(attributes.get("full_parameters", ()))
        starts = [{n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)} for p in (_START, _START_FULL)]
        return Support(linears=linears, **attributes, start=starts[0], start_full=starts[1])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"not a whole support ({type(error).__name__}: {error})") from None


def save_support(support: Support, path: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write a support to one file, atomically, so that an interrupted run can resume with the same entries.

    Args:
        support: the support.
        path: the file to write.
        more: further items of the header, JSON-able.

    Raises:
        WriteError: the file cannot be written.
    """
    header, tensors = support_content(support)
    names: dict[tuple[int, ...], str] = {}  # of the first linear with these columns
    columns_of = {}
    for name, linear in support.linears.items():
        columns = linear.columns_of_every_row
        if columns is not None:
            columns_of[name] = names.setdefault(tuple(columns.tolist()), name)
            del tensors[f"flat/{name}"]
            tensors[f"columns/{columns_of[name]}"] = columns
    SUPPORT.write(path, header | {"columns_of": columns_of} | dict(more or {}), tensors)


def load_support(path: Path, kind: ContainerKind = SUPPORT) -> Support:
    """Read a support file of format 1, 2 or 3 and validate it; messages have the remedy of ``kind``.

    Raises:
        InputError: the file is missing, damaged, or holds no sound support.
    """
    container = kind.read(path)
    try:
        return support_from_content(container.header, container.tensors)
    except InputError as error:
        raise kind.damaged(error, path) from None
