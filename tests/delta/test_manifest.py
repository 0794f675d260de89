"""The manifest refuses a format or a form that is not that of its content."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from taskedge.delta.manifest import Manifest, form_of

ABOUT = {
    "rule": "r", "allocation": "a", "budget": "", "base": "", "base_parameters": 0, "task": "", "labels": [],
    "training": {},
}  # fmt: skip
LINE = ["l", 4, 5, 2, "float32", "d"]


def manifest(**more: object) -> dict[str, object]:
    return {"format": "taskedge-delta/1", "form": "sparse", "linears": [LINE], "provenance": ABOUT} | more


def test_the_form_names_what_a_reader_must_know() -> None:
    assert form_of([], [], False) == "sparse"
    assert form_of([1], [1], True) == "sparse+low_rank+heads+gates"


@pytest.mark.parametrize(
    "given",
    [
        manifest(),
        manifest(format="taskedge-delta/2", column_lists=[3], list_of=[0]),
        manifest(form="sparse+heads", heads=[["a", ABOUT]]),
        manifest(format="taskedge-delta/3", form="sparse+heads+gates", heads=[["a", ABOUT, [LINE]]]),
    ],
)
def test_every_format_is_read(given) -> None:
    Manifest.model_validate_json(json.dumps(given))


@pytest.mark.parametrize(
    "given",
    [
        manifest(format="taskedge-delta/3"),
        manifest(form="sparse+heads+gates", heads=[["a", ABOUT, [LINE]]]),
        manifest(format="taskedge-delta/3", form="sparse+heads", heads=[["a", ABOUT, [LINE]]]),
        manifest(format="taskedge-delta/2"),
        manifest(form="sparse+heads"),
    ],
)
def test_a_format_that_does_not_fit_is_refused(given) -> None:
    with pytest.raises(ValidationError, match="fit"):
        Manifest.model_validate_json(json.dumps(given))
