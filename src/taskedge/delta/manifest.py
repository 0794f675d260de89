"""What a delta file says of itself in JSON, checked key by key when it is read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from taskedge.delta.delta import Delta

FORMAT = "taskedge-delta/1"

_Size = Annotated[int, Field(ge=1, lt=2**31)]  # so that row * inputs + column fits 64 bits


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LinearEntry(NamedTuple):
    """One linear in the manifest: a bare row, since its keys would cost more bytes than what they name."""

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


class _Provenance(_Strict):
    rule: str
    allocation: str
    budget: str
    base: str
    base_parameters: int
    task: str
    labels: tuple[str, ...] = Field(strict=False)
    training: dict[str, Any]


class Manifest(_Strict):
    """What a delta file says of itself."""

    format: Literal["taskedge-delta/1"]
    form: Literal["sparse", "sparse+low_rank"]
    linears: list[LinearEntry] = Field(strict=False)
    low_rank: list[LowRankEntry] = Field(default=[], strict=False, min_length=1)
    provenance: _Provenance

    @model_validator(mode="after")
    def _form_says_what_is_there(self) -> Self:
        """Readers that know no low-rank products refuse a file by its form, so it must not lie."""
        if bool(self.low_rank) != (self.form == "sparse+low_rank"):
            raise ValueError(f"form {self.form!r} does not fit its low-rank linears")
        return self


def manifest_of(delta: Delta) -> dict[str, Any]:
    """What the file says of ``delta``, as JSON will hold it."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "form": "sparse+low_rank" if delta.low_rank else "sparse",
        "linears": [
            LinearEntry(name, *linear.shape, len(linear), linear.base_dtype, linear.base_digest)
            for name, linear in delta.linears.items()
        ],
    }
    if delta.low_rank:
        manifest["low_rank"] = [
            LowRankEntry(name, *each.shape, each.rank, each.scale, each.base_dtype, each.base_digest)
            for name, each in delta.low_rank.items()
        ]
    return manifest | {"provenance": asdict(delta.provenance)}
