"""Fixtures of the tests of forms."""

import pytest

from taskedge.forms.kernels import gather


@pytest.fixture
def gather_on_tiny_layers(monkeypatch):
    """Tiny layers have so few columns that the thin product would be chosen instead of a gather."""
    monkeypatch.setattr(gather, "PRODUCT_COST", 0)
