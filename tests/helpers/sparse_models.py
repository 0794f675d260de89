"""Shared by the tests of sparse and its neighbours."""

import importlib.util

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taskedge.backbone.linears import linears
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import LinearSupport, Support

KERNELS = ["thin", "gather", *(["numba"] if importlib.util.find_spec("numba") else [])]


def support_of(model, entries=9, reads=None, seed=0):
    """Random entries in every linear, unevenly over the rows."""
    draw = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, linear in linears(model).items():
        out, inputs = linear.shape
        flat = torch.randperm(out * inputs, generator=draw)[:entries].sort().values
        chosen[name] = LinearSupport.from_flat((out, inputs), flat, (reads or {}).get(name, name))
    return Support(chosen, sum(parameter.numel() for parameter in model.parameters()))


class Attention(nn.Module):
    """Query, key and value read one tensor."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        return torch.softmax(self.query(x) @ self.key(x).transpose(-1, -2), -1) @ self.value(x)


SHARED = {"query": "query", "key": "query", "value": "query"}


def saved_bytes(model, run):
    """Bytes that autograd saves for backward, each storage once, parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(model)
    return sum(size for size, _ in kept.values()), output


def stored_columns(model):
    return sum(len(shared.columns) for shared in {layer.entries.input for layer in sparse_layers(model).values()})


class Made(TorchDispatchMode):
    """Remembers every tensor that an operation made, views of what was there before left out."""

    def __init__(self, known):
        super().__init__()
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.made = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.storages:
                self.made.append(tensor)
        return result
