"""The registered forms of the chosen entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskedge.forms.entries import MakeEntries
from taskedge.forms.low_rank import Factors
from taskedge.registry import Registry

MakeForm = Callable[[int, Factors], MakeEntries]
"""Takes the rank and the factors of a run and returns a function that makes the entries of one linear."""


@dataclass(frozen=True)
class Form:
    """One way to parameterize the chosen entries; ``factored`` if it takes a rank."""

    name: str
    make: MakeForm
    factored: bool


FORMS: Registry[Form] = Registry("form", "taskedge.forms")


def form(name: str, *, factored: bool = False) -> Callable[[MakeForm], MakeForm]:
    """Register the decorated function as a form of the chosen entries."""

    def register(make: MakeForm) -> MakeForm:
        FORMS.add(name, Form(name, make, factored))
        return make

    return register
