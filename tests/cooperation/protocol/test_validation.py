"""Every kind of wrong answer is refused with its reason, and a right one is not."""

import pytest
import torch

from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.validation import NORMS_NEEDED, Expected, Norms, Refused, block_norms, checked

EXPECTED = Expected("gradients", "run", 3, 2, {"x": torch.Size([4]), "y": torch.Size([2, 2])}, most_tokens=100)
FACTS = {"run": "run", "round": 3, "version": 2, "tokens": 50, "loss": 1.5, "seconds": 0.1}


def tensors(**changes):
    return {"x": torch.arange(4.0), "y": torch.ones(2, 2), **changes}


def answer(kind="gradients", of=None, **facts):
    return Message(kind, {**FACTS, **facts}, tensors() if of is None else of)


def test_what_was_asked_for_is_accepted():
    found = checked(answer(), EXPECTED)
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
def test_what_was_not_is_refused(why):
    with pytest.raises(Refused, match=why):
        checked(WRONG[why], EXPECTED)


def test_a_long_reason_is_cut():
    with pytest.raises(Refused) as error:
        checked(answer(run="x" * 10_000), EXPECTED)
    assert len(str(error.value)) < 120


def test_a_norm_is_absurd_beside_the_median_of_its_block():
    norms = Norms(10.0)
    for _ in range(NORMS_NEEDED - 1):
        norms.add({1: 2.0, 2: 200.0})
    norms.check({1: 1e9})  # too few to say
    norms.add({1: 2.0, 2: 200.0})
    norms.check({1: 19.0, 2: 1900.0, 3: 1e9})
    with pytest.raises(Refused, match="absurd norm: 21 in block 1, where 2 is the median"):
        norms.check({1: 21.0})
    again = Norms(10.0)
    again.load(norms.state())
    with pytest.raises(Refused, match="absurd norm"):
        again.check({1: 21.0})


def test_norms_are_per_block():
    change = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "c": torch.tensor([1.0])}
    assert block_norms(change, {"a": 1, "b": 1, "c": 0}) == {1: 5.0, 0: 1.0}
