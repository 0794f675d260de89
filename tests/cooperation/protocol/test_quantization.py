"""The relative error of a quantized gradient is at most 2^-8 (bfloat16) or 2^-4 (float8); float32 is exact."""

import pytest
import tiny_fleet
import torch
from hypothesis import given
from hypothesis import strategies as some

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.quantization import (
    SCALES,
    UPLOAD_DTYPES,
    answer_kind,
    answer_layout,
    bytes_per_value,
    dequantize,
    quantize,
)
from taskedge.cooperation.protocol.validation import AnswerRefused, ExpectedAnswer, check_answer
from taskedge.errors import InputError

numbers = some.lists(some.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8)


def bound(of, least=2.0**-126):
    """bfloat16 keeps 8 bits of the significand; below float32's least normal number the error is absolute."""
    return of.double().abs() * 2.0**-8 + least * 2.0**-8


@given(numbers)
def test_a_gradient_is_off_by_a_relative_error(given_numbers):
    gradient = {"x": torch.tensor(given_numbers)}
    sent = quantize("gradients", "bfloat16", gradient, {})
    assert sent["x"].dtype == torch.bfloat16
    found = dequantize("gradients", sent, {})["x"]
    assert found.dtype == torch.float32
    assert bool(((found.double() - gradient["x"].double()).abs() <= bound(gradient["x"])).all())


@given(
    some.lists(some.tuples(some.floats(-10, 10, width=32), some.floats(-(2.0**-10), 2.0**-10, width=32)), min_size=1)
)
def test_new_values_are_quantized_as_changes(pairs):
    held = {"x": torch.tensor([value for value, _ in pairs])}
    new = {"x": held["x"] + torch.tensor([step for _, step in pairs])}
    kind = answer_kind("bfloat16", 2)
    found = dequantize(kind, quantize(kind, "bfloat16", new, held), held)["x"]
    change = new["x"].double() - held["x"].double()
    rounded = new["x"].double().abs() * 2.0**-24 + 2.0**-126  # to float32 in the end
    assert bool(((found.double() - new["x"].double()).abs() <= bound(change) + rounded).all())


@given(some.dictionaries(some.text("abc.", min_size=1), numbers, min_size=1, max_size=3))
def test_a_quarter_of_the_bytes_keeps_every_number_to_a_sixteenth(given_numbers):
    gradient = {name: torch.tensor(values) for name, values in given_numbers.items()}
    sent = quantize("gradients", "float8", gradient, {})
    assert {name: tensor.dtype for name, tensor in sent.items() if name != SCALES} == dict.fromkeys(
        gradient, torch.float8_e4m3fn
    )
    assert sent[SCALES].shape == (len(gradient),)
    found = dequantize("gradients", sent, {})
    assert found.keys() == gradient.keys()
    for name, tensor in gradient.items():
        assert found[name].dtype == torch.float32
        largest = float(tensor.double().abs().max())
        scale = max(largest / 448, 2.0**-126) * (1 + 2.0**-20)
        error = (found[name].double() - tensor.double()).abs()
        assert bool((error <= torch.maximum(tensor.double().abs() * 2.0**-4, torch.tensor(scale * 2.0**-10))).all())
        if largest > 2.0**-100:
            place = int(tensor.abs().argmax())
            assert float(found[name][place]) == pytest.approx(float(tensor[place]), rel=1e-6)


@pytest.mark.parametrize("upload", sorted(UPLOAD_DTYPES))
def test_the_layout_is_that_of_a_quantized_answer(upload):
    gradient = {"y": torch.ones(2, 3), "x": torch.ones(4)}
    layout = answer_layout(upload, {name: tensor.shape for name, tensor in gradient.items()})
    quantized = quantize("gradients", upload, gradient, {})
    assert layout == {name: (tensor.dtype, tensor.shape) for name, tensor in quantized.items()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_in_every_dtype(bad):
    gradient, header = {"x": torch.tensor([1.0, bad])}, {"run": "run", "round": 1, "version": 0}
    for upload in UPLOAD_DTYPES:
        expected = ExpectedAnswer("gradients", "run", 1, 0, {"x": torch.Size([2])}, max_tokens=9, upload=upload)
        answer = Message(
            "gradients",
            header | {"tokens": 9, "loss": 1.0, "seconds": 0.1},
            quantize("gradients", upload, gradient, {}),
        )
        with pytest.raises(AnswerRefused, match="not finite"):
            check_answer(Message.unpack(answer.pack()), expected)


def test_scales_are_checked_like_other_tensors():
    expected = ExpectedAnswer("gradients", "run", 1, 0, {"x": torch.Size([2])}, max_tokens=9, upload="float8")
    header = {"run": "run", "round": 1, "version": 0, "tokens": 9, "loss": 1.0, "seconds": 0.1}
    sound = quantize("gradients", "float8", {"x": torch.tensor([1.0, -3.0])}, {})
    assert check_answer(Message("gradients", header, sound), expected).tensors.keys() == {"x", SCALES}
    for scales, why in (
        (None, "missing: '/scales'"),
        (torch.ones(2), "oversize|wrong shape"),
        (torch.ones(1, dtype=torch.float16), "wrong dtype"),
        (torch.tensor([float("inf")]), "not finite"),
    ):
        changed = {name: tensor for name, tensor in (sound | {SCALES: scales}).items() if tensor is not None}
        with pytest.raises(AnswerRefused, match=why):
            check_answer(Message("gradients", header, changed), expected)


@given(numbers)
def test_float32_is_exact_for_gradients_and_values(given_numbers):
    tensors, held = {"x": torch.tensor(given_numbers)}, {"x": torch.ones(len(given_numbers))}
    for steps, kind in ((1, "gradients"), (3, "values")):
        assert answer_kind("float32", steps) == kind
        assert torch.equal(dequantize(kind, quantize(kind, "float32", tensors, held), held)["x"], tensors["x"])


def test_an_answer_in_another_dtype_is_refused():
    expected = ExpectedAnswer("gradients", "run", 1, 0, {"x": torch.Size([4])}, max_tokens=9, upload="bfloat16")
    header = {"run": "run", "round": 1, "version": 0, "tokens": 9, "loss": 1.0, "seconds": 0.1}
    half = torch.ones(4, dtype=torch.bfloat16)
    assert check_answer(Message("gradients", header, {"x": half}), expected).tensors["x"].dtype == torch.bfloat16
    with pytest.raises(AnswerRefused, match="oversize: 16 bytes of values instead of 8"):
        check_answer(Message("gradients", header, {"x": half.float()}), expected)
    with pytest.raises(AnswerRefused, match="wrong dtype"):
        check_answer(Message("gradients", header, {"x": half.half()}), expected)


def test_there_are_no_other_dtypes():
    assert {name: bytes_per_value(name) for name in UPLOAD_DTYPES} == {"float8": 1, "bfloat16": 2, "float32": 4}
    with pytest.raises(InputError, match=r"upload='float16' must be 'float8', 'bfloat16' or 'float32'"):
        tiny_fleet.settings(upload="float16")


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "kind"), [(1, "gradients"), (3, "changes")])
@pytest.mark.parametrize(("upload", "part", "error"), [("bfloat16", 2, 0.02), ("float8", 4, 0.1)])
def test_a_run_sends_fewer_bytes_and_learns_the_same(tmp_path, steps, kind, upload, part, error):
    """The log's bytes are those on the link, and the values stay within the quantization error of those of float32."""

    def run(upload):
        trainings = {f"d{place}": tiny_fleet.training(place) for place in range(2)}
        how = tiny_fleet.settings(devices=2, mode="fedavg", rounds=6, local_steps=steps, upload=upload)
        return tiny_fleet.run(tmp_path / upload, how, trainings)

    (whole, _, whole_events), (less, result, events) = run("float32"), run(upload)
    assert all(set(up) == {"hello", "statistics", "installed", kind, "bye"} for up in result.bytes_up.values())
    for one, other in zip(whole_events, events, strict=True):
        if one["event"] == "round":
            assert one["upload_bytes"] == part * other["upload_bytes"] > 0

    def sent(events):
        return sum(event["bytes_up"] for event in events if event["event"] == "task")

    values = 12 * sum(value.numel() for value in whole.state.values.values())
    scales = 12 * (64 + 8 * len(whole.state.values)) if upload == "float8" else 0  # with their names
    assert sent(whole_events) - sent(events) == pytest.approx((4 - 4 // part) * values - scales, rel=0.03)
    for name, value in whole.state.values.items():
        moved = (value - whole.state.initial_values[name]).abs().max()
        assert float((less.state.values[name] - value).abs().max()) <= error * float(moved)
        assert not torch.equal(less.state.values[name], value)
