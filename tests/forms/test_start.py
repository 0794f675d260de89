"""A support may bring the values that training starts from; wrong ones are refused before the model changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import taskedge as te
from taskedge.errors import InputError
from taskedge.selection.support import load_support, save_support


@pytest.fixture
def started(bert):
    """Return a support whose entries start 0.25 above the base, and whose classifier starts at 0.5."""
    support = te.select(bert, [tiny.batch(bert)], budget="1%")
    start = {name: torch.full((len(linear),), 0.25) for name, linear in support.linears.items()}
    return replace(support, start=start, start_full={"classifier.bias": torch.full((3,), 0.5)})


@pytest.mark.parametrize("step", ["plain", "activation"])
def test_training_starts_from_the_values(bert, started, tmp_path, step):
    save_support(started, tmp_path / "s")
    base = {name: bert.get_submodule(name).weight.detach().clone() for name in started.linears}
    te.install(bert, load_support(tmp_path / "s"), step=step)
    delta = te.extract(bert)
    for name, linear in started.linears.items():
        before = base[name][linear.rows, linear.columns]
        torch.testing.assert_close(delta.linears[name].values - before, started.start[name], atol=1e-6, rtol=0)
    assert delta.full_parameters["classifier.bias"].tolist() == [0.5] * 3


def test_without_a_start_the_base_is_kept_bit_for_bit(bert, started):
    before = tiny.logits(bert.eval(), tiny.batch(bert))
    te.install(bert, replace(started, start={}, start_full={}))
    assert torch.equal(tiny.logits(bert, tiny.batch(bert)), before)


@pytest.mark.parametrize(
    ("change", "form", "message"),
    [
        ({}, "sparse_lora", "form 'sparse_lora' cannot start from the values"),
        ({"start": {"no.such": torch.zeros(2)}}, "sparse", "linear 'no.such' has 0 entries"),
        ({"start_full": {"classifier.bias": torch.zeros(2)}}, "sparse", r"shape \[2\], and it is \[3\] in the model"),
        ({"start_full": {"score.bias": torch.zeros(3)}}, "sparse", "and it is missing in the model"),
        ({"start_full": {"classifier.bias": torch.full((3,), torch.nan)}}, "sparse", "from finite values"),
    ],
    ids=str,
)
def test_a_start_that_does_not_fit_is_refused(bert, started, change, form, message):
    before = tiny.state(bert)
    with pytest.raises(InputError, match=message):
        te.install(bert, replace(started, **change), form=form)
    assert tiny.same_bits(before, tiny.state(bert))
