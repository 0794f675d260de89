"""Shared by the tests of file and its neighbours."""

import json
import struct

import pytest
import tiny
import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

import taskedge as te
from taskedge.delta.apply import applied_to
from taskedge.delta.delta import LinearDelta
from taskedge.delta.file import content_digest
from taskedge.errors import DeltaError


def linear(shape, flat, seed=0):
    flat = torch.tensor(sorted(flat), dtype=torch.int64)
    values = torch.randn(len(flat), generator=torch.Generator().manual_seed(seed))
    return LinearDelta(shape, flat // shape[1], flat % shape[1], values, "float32", f"{seed:024x}")


def assert_same(one, other, values=torch.float32, head=True):
    assert list(one.linears) == list(other.linears)
    for name, mine in one.linears.items():
        theirs = other.linears[name]
        assert (mine.shape, mine.base_dtype, mine.base_digest) == (theirs.shape, theirs.base_dtype, theirs.base_digest)
        assert torch.equal(mine.rows, theirs.rows)
        assert torch.equal(mine.columns, theirs.columns)
        assert torch.equal(mine.values.to(values).float(), theirs.values)
        assert theirs.rows.dtype == theirs.columns.dtype == torch.int64
    assert tiny.same_bits(one.whole if head else {}, other.whole)
    assert one.provenance == other.provenance


def header(content):
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


class Refusals:
    """Loads and applies contents, and counts how they were refused."""

    def __init__(self, folder, good):
        self.path, self.good = folder / "mutated", te.load(good)
        self.model = tiny.mlp()
        self.before = tiny.state(self.model)
        self.refused = 0

    def try_(self, content):
        """Returns the error, which must be ours; a mutation may also have left the content as good as it was."""
        self.path.write_bytes(content)
        try:
            delta = te.load(self.path)
        except DeltaError as error:
            self.refused += str(self.path) in str(error)
            return error
        assert_same(delta, self.good)
        return None

    def check_model(self):
        assert applied_to(self.model) is None
        assert tiny.same_bits(self.model.state_dict(), self.before)


@pytest.fixture
def good(tmp_path):
    model = tiny.mlp()
    te.install(model, te.select(model, rule="random", budget=0.1))
    tiny.train(model)
    return te.extract(model).with_provenance(labels=("bad", "gut")).save(tmp_path / "good")


def signed(content, change_manifest=None, change_tensors=None):
    """The file with other content and the right digest: as someone would make it who means harm, or has a bug."""
    manifest = json.loads(header(content)["__metadata__"]["taskedge"])
    tensors = deserialise(content)
    changed = change_manifest(manifest) if change_manifest else None
    manifest = manifest if changed is None else changed
    tensors = change_tensors(tensors) if change_tensors else tensors
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return serialise(tensors, {"taskedge": text, "digest": content_digest(text, tensors)})


def put(name, change):
    """Replaces a tensor by what ``change`` makes of it."""
    return lambda tensors: tensors | {name: change(tensors[name].clone())}


def without(*path):
    def change(manifest):
        *front, last = path
        for key in front:
            manifest = manifest[key]
        del manifest[last]

    return change
