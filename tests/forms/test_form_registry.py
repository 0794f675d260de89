"""Forms are looked up by name; a function and a decorator register another."""

import pytest
import torch

from taskedge.errors import UnknownName
from taskedge.forms.form_registry import FORMS, form
from taskedge.forms.low_rank import Factors
from taskedge.forms.sparse import FreeEntries


def test_the_forms_of_this_package():
    assert {name: FORMS[name].factored for name in FORMS} == {
        "sparse": False,
        "sparse_lora": True,
        "sparse_plus_low_rank": True,
        "sparse_taps": False,
    }
    assert FORMS["sparse"].make(8, Factors(torch.Generator())) is FreeEntries


def test_an_unknown_form_gets_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'sparse_lora'"):
        FORMS["sparse_lore"]


def test_registering_a_form(monkeypatch):
    list(FORMS)
    monkeypatch.setattr(FORMS, "_things", dict(FORMS._things))

    @form("another", factored=True)
    def another(rank, factors):
        return FreeEntries

    assert FORMS["another"].make is another
    with pytest.raises(ValueError, match="registered twice"):
        form("another")(another)
