"""Every kind of wrong answer is refused with its reason, and a right one is not."""

import pytest
import torch

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.validation import (
    NORMS_NEEDED,
    AnswerRefused,
    ExpectedAnswer,
    NormTracker,
    block_norms,
    check_answer,
    check_finite,
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
    "not finite: the loss": answer(loss=None),
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


def test_a_norm_is_absurd_beside_the_median_of_its_block():
    norms = NormTracker(10.0)
    for _ in range(NORMS_NEEDED - 1):
        norms.add({1: 2.0, 2: 200.0})
    norms.check({1: 1e9})  # too few to say
    norms.add({1: 2.0, 2: 200.0})
    norms.check({1: 19.0, 2: 1900.0, 3: 1e9})
    with pytest.raises(AnswerRefused, match="absurd norm: 21 in block 1, where 2 is the median"):
        norms.check({1: 21.0})
    again = NormTracker(10.0)
    again.load_state_dict(norms.state_dict())
    with pytest.raises(AnswerRefused, match="absurd norm"):
        again.check({1: 21.0})


def test_norms_are_per_block():
    change = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.tensor([1.0])}
    assert block_norms(change, {"a": 1, "b": 1, "c": 0}) == {1: 5.0, 0: 1.0}


def test_finite_tensors_pass():
    check_finite({"x": torch.ones(2), "y": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(AnswerRefused, match="not finite: 'x'"):
        check_finite({"x": torch.tensor([1.0, torch.inf])})
