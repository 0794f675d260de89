"""The manifest of a delta file: its format, linears, heads and provenance, as strict models."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT, FORMAT_WITH_LISTS, FORMAT_WITH_GATES = "taskedge-delta/1", "taskedge-delta/2", "taskedge-delta/3"
"""A file whose heads have gates is of format 3, else one with column lists of format 2, and all others of format 1."""

_Size = Annotated[int, Field(ge=1, lt=2**31)]  # so that row * inputs + column fits 64 bits


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LinearEntry(NamedTuple):
    """One linear in the manifest; a bare row, because keys would take more bytes than the values."""

    name: str
    out: _Size
    inputs: _Size
    entries: Annotated[int, Field(ge=0)]
    dtype: str
    digest: str


class LowRankEntry(NamedTuple):
    """One low-rank linear in the manifest."""

    name: str
    out: _Size
    inputs: _Size
    rank: _Size
    scale: Annotated[float, Field(allow_inf_nan=False)]
    dtype: str
    digest: str


class FilterEntry(NamedTuple):
    """The filter of one low-rank linear in the manifest."""

    name: str
    kind: Literal["cosine", "gate"]
    rank: _Size


class PromptEntry(NamedTuple):
    """The soft prompt of a delta in the manifest."""

    slots: tuple[str, ...]
    length: Annotated[int, Field(ge=0, lt=2**16)]
    vocabulary: _Size
    width: _Size
    where: Literal["before", "after"]
    repeat: bool
    segments: bool
    dtype: str
    digest: str


class _Provenance(_Strict):
    rule: str
    allocation: str
    budget: str
    base: str
    base_parameters: int
    task: str
    labels: tuple[str, ...] = Field(strict=False)
    training: dict[str, Any]


class HeadEntry(NamedTuple):
    """One head of a delta for several tasks in the manifest."""

    name: str
    provenance: _Provenance
    gated: tuple[LinearEntry, ...] = ()
    """Linears with own rows; ``entries`` counts its own, and ``digest`` is of all that it has there."""


class Manifest(_Strict):
    """The header of a delta file."""

    format: Literal["taskedge-delta/1", "taskedge-delta/2", "taskedge-delta/3"]
    form: Literal[
        "sparse", "sparse+low_rank", "sparse+heads", "sparse+low_rank+heads", "sparse+heads+gates",
        "sparse+low_rank+heads+gates", "sparse+low_rank+filters", "sparse+prompt", "sparse+low_rank+overlap",
    ]  # fmt: skip
    linears: list[LinearEntry] = Field(strict=False)
    column_lists: list[_Size] = Field(default=[], min_length=1)
    """Length of each list of columns."""
    list_of: list[int] = Field(default=[], min_length=1)
    """Index of the list of each linear, -1 for a linear whose entries have columns of their own."""
    low_rank: list[LowRankEntry] = Field(default=[], strict=False, min_length=1)
    heads: list[HeadEntry] = Field(default=[], strict=False, min_length=1)
    filters: list[FilterEntry] = Field(default=[], strict=False, min_length=1)
    prompts: list[PromptEntry] = Field(default=[], strict=False, min_length=1, max_length=1)
    provenance: _Provenance

    @model_validator(mode="after")
    def _lists_fit_linears(self) -> Self:
        """Check that the format is that of the content, and that column lists are those of its linears."""
        if any(head.gated for head in self.heads) != (self.format == FORMAT_WITH_GATES):
            raise ValueError(f"format {self.format!r} does not fit the gates of its heads")
        if self.format != FORMAT_WITH_GATES and bool(self.column_lists) != (self.format == FORMAT_WITH_LISTS):
            raise ValueError(f"format {self.format!r} does not fit its {len(self.column_lists)} column lists")
        if len(self.list_of) != (len(self.linears) if self.column_lists else 0):
            raise ValueError(f"column lists of {len(self.list_of)} linears, of {len(self.linears)}")
        if {*self.list_of} - {-1} != {*range(len(self.column_lists))}:
            raise ValueError("a linear has a column list that is not there, or a list belongs to no linear")
        return self

    @model_validator(mode="after")
    def _form_fits_content(self) -> Self:
        """Check ``form``: readers without support for low-rank products or heads refuse a file by its form."""
        overlap = {entry.name for entry in self.linears} & {entry.name for entry in self.low_rank}
        has_gates = any(head.gated for head in self.heads)
        if self.form != form_of(self.low_rank, self.heads, has_gates, self.filters, self.prompts, overlap):
            raise ValueError(f"form {self.form!r} does not fit its low-rank linears, heads, filters and soft prompt")
        return self


def form_of(
    low_rank: Collection[Any],
    heads: Collection[Any],
    has_gates: bool,
    filters: Collection[Any] = (),
    prompts: Collection[Any] = (),
    overlap: Collection[str] = (),
) -> str:
    """Return the form of a delta: what a reader must know of to use it."""
    parts = {"+low_rank": low_rank, "+heads": heads, "+gates": has_gates, "+filters": filters, "+prompt": prompts}
    parts["+overlap"] = overlap
    return "sparse" + "".join(name for name, present in parts.items() if present)
