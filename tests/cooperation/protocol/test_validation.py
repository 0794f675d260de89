"""Every kind of wrong answer is refused with its reason, and a right one is not."""

from dataclasses import replace

import pytest
import torch

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.quantization import UPLOAD_DTYPES, quantize
from taskedge.cooperation.protocol.validation import (
    MIN_VALUE,
    AnswerRefused,
    ExpectedAnswer,
    NormTracker,
    block_norms,
    block_sizes,
    check_answer,
    check_finite,
    check_update_size,
)

EXPECTED = ExpectedAnswer("gradients", "run", 3, 2, {"x": torch.Size([4]), "y": torch.Size([2, 2])}, max_tokens=100)
HEADER = {"run": "run", "round": 3, "version": 2, "tokens": 50, "loss": 1.5, "seconds": 0.1}


def tensors(**changes):
    return {"x": torch.arange(4.0), "y": torch.ones(2, 2), **changes}


def answer(kind="gradients", of=None, **fields):
    return Message(kind, {**HEADER, **fields}, tensors() if of is None else of)


def test_an_expected_answer_is_accepted():
    found = check_answer(answer(), EXPECTED)
    assert (found.tokens, found.loss, found.seconds) == (50, 1.5, 0.1)
    assert found.tensors.keys() == {"x", "y"}


WRONG = {
    "kind 'values' instead of 'gradients'": answer("values"),
    "kind 'error' instead of 'gradients': no such thing": answer("error", why="no such thing"),
    "stale run": answer(run="other"),
    "stale round: 2": answer(round=2),
    "stale version: 1": answer(version=1),
    "stale version: None": answer(version=None),
    "not assigned: 'z'": answer(of=tensors(z=torch.ones(1))),
    "missing: 'y'": answer(of={"x": torch.arange(4.0)}),
    "oversize: 48 bytes": answer(of=tensors(x=torch.zeros(4, dtype=torch.float64))),
    "wrong dtype: 'x' is torch.int32": answer(of=tensors(x=torch.zeros(4, dtype=torch.int32))),
    r"wrong shape: 'x' is \[2, 2\], not \[4\]": answer(of=tensors(x=torch.zeros(2, 2))),
    "wrong tokens: 101, where at most 100": answer(tokens=101),
    "wrong tokens: 0": answer(tokens=0),
    "wrong tokens: True": answer(tokens=True),
    "wrong tokens: 'many'": answer(tokens="many"),
    "wrong seconds: -1": answer(seconds=-1),
    "wrong seconds: 0, not above 0": answer(seconds=0),
    r"wrong seconds: 1e\+308": answer(seconds=1e308),
    "wrong seconds: 1000": answer(seconds=10**400),
    "wrong seconds: <int: ValueError>": answer(seconds=10**5000),
    "wrong real seconds: 1000": answer(real_seconds=10**400),
    "wrong tokens: 1000": answer(tokens=10**400),
    "not finite: the loss": answer(loss=None),
    "not finite: the loss, or": answer(loss=10**400),
    "not finite: the loss, or beyond 1e": answer(loss=1e308),
    "stale round: 3.0": answer(round=3.0),
    "not finite: 'x'": answer(of=tensors(x=torch.tensor([0.0, 1.0, torch.nan, 0.0]))),
    "not finite: 'y'": answer(of=tensors(y=torch.full((2, 2), torch.inf))),
}


@pytest.mark.parametrize("why", sorted(WRONG))
def test_any_other_answer_is_refused(why):
    with pytest.raises(AnswerRefused, match=why):
        check_answer(WRONG[why], EXPECTED)


def test_a_long_reason_is_cut():
    with pytest.raises(AnswerRefused) as error:
        check_answer(answer(run="x" * 10_000), EXPECTED)
    assert len(str(error.value)) < 120


def test_norms_have_a_running_median_per_block_that_is_saved():
    norms = NormTracker()
    for norm in (1.0, 9.0):
        norms.add({1: norm, 2: 100 * norm})
    assert norms.medians() == {1: 1.0, 2: 100.0}  # of two the lower one: the other may be a liar's
    again = NormTracker()
    again.load_state_dict(norms.state_dict())
    again.add({1: 3.0})
    assert again.medians() == {1: 3.0, 2: 100.0}


def test_an_update_is_bounded_by_the_values_that_it_would_change():
    values = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.zeros(4)}
    sizes = block_sizes(values, {"a": 1, "b": 1, "c": 0})
    assert sizes == {1: 5.0, 0: pytest.approx(2 * MIN_VALUE)}  # values of 0 count as small ones
    check_update_size({1: 50.0, 0: 2.0}, sizes, 10.0)
    for norm in (50.1, float("inf"), float("nan")):
        with pytest.raises(AnswerRefused, match=r"absurd size: a norm of .* in block 1, whose values have one of 5"):
            check_update_size({0: 1.0, 1: norm}, sizes, 10.0)


def test_the_largest_message_of_an_answer_holds_an_honest_one():
    for upload in UPLOAD_DTYPES:
        shapes = {f"layer.{n}.weight" * 5: torch.Size([n]) for n in range(50)}
        expected = replace(EXPECTED, shapes=shapes, upload=upload)
        trained = {name: torch.randn(shape) for name, shape in shapes.items()}
        packed = Message("gradients", HEADER, quantize("gradients", upload, trained, trained)).pack()
        assert Message.unpack(packed, expected.limits).kind == "gradients"
        assert expected.limits.max_bytes < len(packed) + 2**17


def test_norms_are_per_block():
    change = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.tensor([1.0])}
    assert block_norms(change, {"a": 1, "b": 1, "c": 0}) == {1: 5.0, 0: 1.0}


def test_finite_tensors_pass():
    check_finite({"x": torch.ones(2), "y": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(AnswerRefused, match="not finite: 'x'"):
        check_finite({"x": torch.tensor([1.0, torch.inf])})
