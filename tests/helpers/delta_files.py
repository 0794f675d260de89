"""Delta files for tests: made by hand, compared, and damaged with a valid digest."""

import json
import struct

import tiny
import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize

import taskedge as te
from taskedge.delta.apply import applied_to
from taskedge.delta.delta import LinearDelta
from taskedge.errors import DeltaError
from taskedge.io.container import content_digest


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
    assert tiny.same_bits(one.full_parameters if head else {}, other.full_parameters)
    assert one.provenance == other.provenance


def header(content):
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


class Refusals:
    """Loads contents as delta files and counts the refused ones."""

    def __init__(self, folder, good):
        self.path, self.good = folder / "mutated", te.load(good)
        self.model = tiny.mlp()
        self.before = tiny.state(self.model)
        self.refused = 0

    def try_(self, content):
        """Return the DeltaError; or None, if the mutation did not change the content."""
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


def signed(content, change_manifest=None, change_tensors=None):
    """Return the file with other content and a valid digest, as a forger or a bug would make it."""
    manifest = json.loads(header(content)["__metadata__"]["taskedge"])
    tensors = deserialize(content)
    changed = change_manifest(manifest) if change_manifest else None
    manifest = manifest if changed is None else changed
    tensors = change_tensors(tensors) if change_tensors else tensors
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    return serialize(tensors, {"taskedge": text, "digest": content_digest(text, tensors)})


def put(name, change):
    """Return a function that replaces a tensor by ``change`` of it."""
    return lambda tensors: tensors | {name: change(tensors[name].clone())}


def without(*path):
    def change(manifest):
        *front, last = path
        for key in front:
            manifest = manifest[key]
        del manifest[last]

    return change
