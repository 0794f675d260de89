"""Answers in half the bytes are off by 2^-8 of a gradient or a change at most, and in full ones not at all."""

import pytest
import tiny_fleet
import torch
from hypothesis import given
from hypothesis import strategies as some

from taskedge.cooperation.checks import Expected, Refused, checked
from taskedge.cooperation.coding import UPLOADS, answer_kind, bytes_per_value, coded, decoded
from taskedge.cooperation.messages import Message
from taskedge.errors import InputError

numbers = some.lists(some.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8)


def bound(of, least=2.0**-126):
    """bfloat16 keeps 8 bits of the significand; below float32's least normal number the error is absolute."""
    return of.double().abs() * 2.0**-8 + least * 2.0**-8


@given(numbers)
def test_a_gradient_is_off_by_a_relative_error(given_numbers):
    gradient = {"x": torch.tensor(given_numbers)}
    sent = coded("gradients", "bfloat16", gradient, {})
    assert sent["x"].dtype == torch.bfloat16
    found = decoded("gradients", sent, {})["x"]
    assert found.dtype == torch.float32
    assert bool(((found.double() - gradient["x"].double()).abs() <= bound(gradient["x"])).all())


@given(
    some.lists(some.tuples(some.floats(-10, 10, width=32), some.floats(-(2.0**-10), 2.0**-10, width=32)), min_size=1)
)
def test_of_new_values_the_change_is_coded_and_so_as_precise_as_a_step(pairs):
    held = {"x": torch.tensor([value for value, _ in pairs])}
    new = {"x": held["x"] + torch.tensor([step for _, step in pairs])}
    kind = answer_kind("bfloat16", 2)
    found = decoded(kind, coded(kind, "bfloat16", new, held), held)["x"]
    change = new["x"].double() - held["x"].double()
    rounded = new["x"].double().abs() * 2.0**-24 + 2.0**-126  # to float32 in the end
    assert bool(((found.double() - new["x"].double()).abs() <= bound(change) + rounded).all())


@given(numbers)
def test_float32_is_exact_for_gradients_and_values(given_numbers):
    tensors, held = {"x": torch.tensor(given_numbers)}, {"x": torch.ones(len(given_numbers))}
    for steps, kind in ((1, "gradients"), (3, "values")):
        assert answer_kind("float32", steps) == kind
        assert torch.equal(decoded(kind, coded(kind, "float32", tensors, held), held)["x"], tensors["x"])


def test_an_answer_that_is_coded_otherwise_is_refused():
    expected = Expected("gradients", "run", 1, 0, {"x": torch.Size([4])}, most_tokens=9, upload="bfloat16")
    facts = {"run": "run", "round": 1, "version": 0, "tokens": 9, "loss": 1.0, "seconds": 0.1}
    half = torch.ones(4, dtype=torch.bfloat16)
    assert checked(Message("gradients", facts, {"x": half}), expected).tensors["x"].dtype == torch.bfloat16
    with pytest.raises(Refused, match="oversize: 16 bytes of values, where 8 were asked for"):
        checked(Message("gradients", facts, {"x": half.float()}), expected)
    with pytest.raises(Refused, match="wrong dtype"):
        checked(Message("gradients", facts, {"x": half.half()}), expected)


def test_there_are_no_other_codings():
    assert {name: bytes_per_value(name) for name in UPLOADS} == {"bfloat16": 2, "float32": 4}
    with pytest.raises(InputError, match=r"upload='float16' is unknown.*bfloat16"):
        tiny_fleet.settings(upload="float16")


@pytest.mark.parametrize(("steps", "kind"), [(1, "gradients"), (3, "changes")])
def test_a_run_sends_half_the_bytes_and_learns_the_same(tmp_path, steps, kind):
    """The log's bytes are those on the link, and the values stay within the coding's error of those of float32."""

    def run(upload):
        trainings = {f"d{place}": tiny_fleet.training(place) for place in range(2)}
        how = tiny_fleet.settings(devices=2, rounds=6, local_steps=steps, upload=upload)
        return tiny_fleet.run(tmp_path / upload, how, trainings)

    (whole, _, whole_events), (half, result, events) = run("float32"), run("bfloat16")
    assert all(set(up) == {"hello", "statistics", "installed", kind, "bye"} for up in result.bytes_up.values())
    for one, other in zip(whole_events, events, strict=True):
        if one["event"] == "round":
            assert one["upload_bytes"] == 2 * other["upload_bytes"] > 0
        if one["event"] == "task":
            values = sum(whole.state.values[n].numel() for n in whole.state.blocks.of(one["blocks"]))
            assert one["bytes_up"] - other["bytes_up"] == pytest.approx(2 * values, abs=100)  # and lengths of facts
    for name, value in whole.state.values.items():
        moved = (value - whole.state.start[name]).abs().max()
        assert float((half.state.values[name] - value).abs().max()) <= 0.02 * float(moved)
        assert not torch.equal(half.state.values[name], value)
