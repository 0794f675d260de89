"""Errors have the documented exit codes, and a wrong name is answered with the nearest right one."""

import re

import pytest
from pages import ROOT

from taskedge import errors
from taskedge.errors import DoesNotFit, Interrupted, TaskEdgeError, UnknownName, did_you_mean

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, TaskEdgeError)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_exit_code_is_documented(error):
    assert re.search(rf"\| *`?{error.exit_code}`? *\|", (ROOT / "docs" / "exit-codes.md").read_text())


def test_exit_codes():
    assert (TaskEdgeError.exit_code, DoesNotFit.exit_code, Interrupted.exit_code) == (2, 3, 130)
    assert DoesNotFit(2**20, "too small").needed == 2**20


def test_the_nearest_name_is_suggested():
    assert did_you_mean("magnitud", ["random", "magnitude"]) == "; did you mean 'magnitude'?"
    assert did_you_mean("zzz", ["random", "magnitude"]) == ""
    error = UnknownName("rule", "magnitud", {"random", "magnitude"})
    assert str(error) == "unknown rule 'magnitud'; did you mean 'magnitude'? (known: magnitude, random)"
