"""How a change to the base is parameterised.

A form of the chosen entries is one file and one registration: a function ``(rank, factors) -> make``, where ``make``
builds the :class:`~taskedge.forms.sparse.Entries` of one linear::

    @form("sparse_lora", factored=True)
    def sparse_lora(rank, factors):
        return partial(LowRankEntries, rank=rank, factors=factors)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from taskedge.registry import Registry

if TYPE_CHECKING:
    from taskedge.forms.low_rank import Factors
    from taskedge.forms.sparse import MakeEntries

    Parameterise = Callable[[int, Factors], MakeEntries]


@dataclass(frozen=True)
class Form:
    """One way to parameterise the chosen entries; ``factored`` where it takes a rank."""

    name: str
    parameterise: Parameterise
    factored: bool


FORMS: Registry[Form] = Registry("form", __name__)


def form(name: str, *, factored: bool = False) -> Callable[[Parameterise], Parameterise]:
    """Registers a parameterisation of the chosen entries."""

    def register(parameterise: Parameterise) -> Parameterise:
        FORMS.add(name, Form(name, parameterise, factored))
        return parameterise

    return register
