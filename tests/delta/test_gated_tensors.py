"""Gates and own entries go through the file; older formats stay as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from delta_files import linear
from hypothesis import given
from hypothesis import strategies as st

import taskedge as te
from taskedge.delta.delta import Delta, Head, Provenance
from taskedge.delta.gated_rows import GatedRows
from taskedge.delta.gated_tensors import gated_from_tensors, gated_tensors
from taskedge.errors import DeltaError


def random_rows(out: int, inputs: int, seed: int) -> GatedRows:
    generator = torch.Generator().manual_seed(seed)
    gates = torch.rand(out, generator=generator) < 0.5
    chosen = torch.rand(out, inputs, generator=generator) < 0.2
    rows, columns = (chosen & gates[:, None]).nonzero(as_tuple=True)
    return GatedRows(
        (out, inputs), gates, rows, columns, torch.randn(len(rows), generator=generator), "float32", "d" * 24
    )


def gated(seed: int) -> Delta:
    heads = {
        name: Head(
            {"head.weight": torch.ones(2, 2)}, Provenance(labels=("x",)), {"second": random_rows(9, 7, seed + at)}
        )
        for at, name in enumerate(("a", "b"))
    }
    plain = Head({"head.weight": torch.ones(2, 2)}, Provenance(labels=("y",)))
    return Delta({"first": linear((10, 12), [3, 40])}, heads=heads | {"c": plain})


@given(st.integers(0, 1000))
def test_gates_go_round(tmp_path, seed):
    delta = gated(seed)
    loaded = te.load(te.save(delta, tmp_path / "x"))
    for name, head in delta.heads.items():
        assert loaded.heads[name].provenance == head.provenance
        assert loaded.heads[name].gated.keys() == head.gated.keys()
        for key, rows in head.gated.items():
            found = loaded.heads[name].gated[key]
            assert (found.shape, found.base_dtype, found.base_digest) == (rows.shape, rows.base_dtype, rows.base_digest)
            for one in ("gates", "rows", "columns", "values"):
                assert torch.equal(getattr(found, one), getattr(rows, one))


def test_format_and_form_tell_older_readers(tmp_path):
    content = te.save(gated(0), tmp_path / "x").read_bytes()
    assert b"taskedge-delta/3" in content
    assert b"sparse+heads+gates" in content
    without = replace(gated(0), heads={"c": gated(0).heads["c"]})
    content = te.save(without, tmp_path / "y").read_bytes()
    assert b"taskedge-delta/1" in content
    assert b"gates" not in content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"own_counts/h": t["own_counts/h"] + 1}, "rows of head 'h' hold"),
        (lambda t: t | {"gates/h": t["gates/h"] | 1}, "beyond its 9 rows"),
        (lambda t: {name: tensor for name, tensor in t.items() if name != "own_values/h"}, "'own_values/h' is missing"),
        (lambda t: t | {"own_columns/h": t["own_columns/h"].float()}, "expected"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    from taskedge.delta.file import _tensor
    from taskedge.delta.manifest import LinearEntry

    rows = random_rows(9, 7, 3)
    tensors = gated_tensors("h", {"l": rows}, lambda indices: indices.to(torch.uint8), torch.float32)
    entry = LinearEntry("l", 9, 7, len(rows), "float32", "d" * 24)
    floats = (torch.float32,)
    assert len(gated_from_tensors("h", [entry], tensors, _tensor, (torch.uint8,), floats)["l"]) == len(rows)
    with pytest.raises(DeltaError, match=message):
        gated_from_tensors("h", [entry], change(tensors), _tensor, (torch.uint8,), floats)
