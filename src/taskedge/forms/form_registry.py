"""The registered forms of the chosen entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from taskedge.backbone.layers import Linear
from taskedge.forms.entries import MakeEntries
from taskedge.forms.low_rank import Factors
from taskedge.registry import Registry

MakeForm = Callable[[int, Factors], MakeEntries]
"""Takes the rank and the factors of a run and returns a function that makes the entries of one linear."""
AddProduct = Callable[[Linear, int, Factors], None]
"""Gives a linear that trains entries a product of a rank beside them."""


@dataclass(frozen=True)
class Form:
    """One way to parameterize the chosen entries; ``factored`` if it takes a rank.

    ``add_product`` is set if each linear also trains a product beside its entries.
    """

    name: str
    make: MakeForm
    factored: bool
    add_product: AddProduct | None = None


FORMS: Registry[Form] = Registry("form", "taskedge.forms")


def form(name: str, *, factored: bool = False, add_product: AddProduct | None = None) -> Callable[[MakeForm], MakeForm]:
    """Register the decorated function as a form of the chosen entries; the arguments are those of :class:`Form`."""

    def register(make: MakeForm) -> MakeForm:
        FORMS.add(name, Form(name, make, factored, add_product))
        return make

    return register
