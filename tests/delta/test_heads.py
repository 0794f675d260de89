"""Deltas for several tasks: one support, a head for each task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from delta_files import assert_same, linear, put, signed
from hypothesis import given
from hypothesis import strategies as st

import taskedge as te
from taskedge.delta.apply import applied_to
from taskedge.delta.delta import Delta, Head, Provenance, check_name
from taskedge.errors import DeltaError, InputError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def head(seed=0, **about):
    return Head({"head.weight": torch.full((3, 8), float(seed))}, Provenance(task="text-classification", **about))


def both():
    return Delta({"first": linear((10, 12), [3, 40])}, heads={"a": head(1, labels=("x",)), "b": head(2)})


@given(st.lists(NAMES, unique=True, min_size=1, max_size=4))
def test_heads_go_round(tmp_path, names):
    delta = replace(both(), heads={name: head(seed, labels=(name,)) for seed, name in enumerate(names)})
    loaded = te.load(te.save(delta, tmp_path / "x"))
    assert_same(delta, loaded)
    assert list(loaded.heads) == names
    for name in names:
        assert loaded.heads[name].provenance == delta.heads[name].provenance
        assert tiny.same_bits(loaded.heads[name].full_parameters, delta.heads[name].full_parameters)


def test_the_form_tells_older_readers(tmp_path):
    content = te.save(both(), tmp_path / "x").read_bytes()
    assert b"sparse+heads" in content
    assert b"+heads" not in te.save(replace(both(), heads={}), tmp_path / "y").read_bytes()


def test_one_head_is_chosen():
    delta = both()
    one = delta.with_head("a")
    assert (one.provenance.labels, one.heads) == (("x",), {})
    assert float(one.full_parameters["head.weight"][0, 0]) == 1
    assert replace(delta, heads={"a": delta.heads["a"]}).with_head(None).provenance.labels == ("x",)
    with pytest.raises(InputError, match="has the heads a, b: name one"):
        delta.with_head(None)
    with pytest.raises(InputError, match="no head 'c': its heads are a, b"):
        delta.with_head("c")
    with pytest.raises(InputError, match="it has no named heads"):
        one.with_head("a")


def test_a_single_head_is_applied_and_reverted(mlp):
    values = mlp.first.weight.detach().flatten()[[3, 40]]
    from taskedge.backbone.fingerprint import digest

    entries = replace(linear((10, 12), [3, 40]), base_digest=digest(values))
    delta = Delta({"first": entries}, heads={"a": head(1)})
    te.apply(mlp, delta)
    assert float(mlp.head.weight[0, 0].detach()) == 1
    te.revert(mlp, delta)
    assert applied_to(mlp) is None
    with pytest.raises(InputError, match="has the heads"):
        te.apply(mlp, replace(delta, heads={"a": head(1), "b": head(2)}))


def test_heads_that_contradict_the_delta():
    with pytest.raises(DeltaError, match=r"'head.weight' belongs to all tasks and to head 'a'"):
        Delta({}, {"head.weight": torch.zeros(3, 8)}, heads={"a": head()})
    with pytest.raises(DeltaError, match=r"head '\.\./a': a name has 1 to 64"):
        Delta({}, heads={"../a": head()})
    with pytest.raises(DeltaError, match="not a finite number"):
        Delta({}, heads={"a": Head({"w": torch.tensor([float("nan")])}, Provenance())})
    check_name("task", "a" * 64)


@pytest.mark.parametrize(
    ("manifest", "tensors"),
    [
        (lambda m: m | {"form": "sparse"}, None),
        (lambda m: m | {"heads": []}, None),
        (lambda m: m | {"heads": m["heads"] * 2}, None),
        (lambda m: m | {"heads": [["a"]]}, None),
        (lambda m: m | {"heads": [["a", {}]]}, None),
        (lambda m: m | {"heads": m["heads"][:1]}, None),
        (None, put("head/a/head.weight", lambda tensor: tensor.int())),
        (None, lambda tensors: tensors | {"head/c/w": torch.zeros(1)}),
        (None, lambda tensors: tensors | {"head/a": torch.zeros(1)}),
    ],
)
def test_bad_heads_under_a_right_digest_are_refused(tmp_path, manifest, tensors):
    path = te.save(both(), tmp_path / "x")
    path.write_bytes(signed(path.read_bytes(), manifest, tensors))
    with pytest.raises(DeltaError, match=str(path)):
        te.load(path)
