"""A sound delta file for the tests of reading."""

import pytest
import tiny

import taskedge as te


@pytest.fixture
def good(tmp_path):
    model = tiny.mlp()
    te.install(model, te.select(model, rule="random", budget=0.1))
    tiny.train(model)
    return te.save(te.extract(model).with_provenance(labels=("bad", "gut")), tmp_path / "good")
