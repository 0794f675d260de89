"""Small layers with random entries, their dense twins and the comparison of the two."""

import copy
import importlib.util

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import taskedge as te
from taskedge.backbone.layers import linears
from taskedge.forms.sparse import sparse_layers
from taskedge.selection.support import LayerSupport, Support

KERNELS = ["thin", "gather", *(["numba"] if importlib.util.find_spec("numba") else [])]


def support_of(model, entries=9, shared_inputs=None, seed=0):
    """Return random entries in every linear, unevenly over the rows."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, linear in linears(model).items():
        out, inputs = linear.shape
        flat = torch.randperm(out * inputs, generator=generator)[:entries].sort().values
        chosen[name] = LayerSupport.from_flat((out, inputs), flat, (shared_inputs or {}).get(name, name))
    return Support(chosen, sum(parameter.numel() for parameter in model.parameters()))


class Attention(nn.Module):
    """Query, key and value that read one tensor."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        return torch.softmax(self.query(x) @ self.key(x).transpose(-1, -2), -1) @ self.value(x)


SHARED = {"query": "query", "key": "query", "value": "query"}


def saved_bytes(model, run):
    """Return the bytes that autograd saves for backward, each storage once, parameters not counted, and the output."""
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
    """Return how many columns of inputs training keeps."""
    shared_inputs = {layer.entries.shared_input for layer in sparse_layers(model).values()}
    return sum(len(shared_input.columns) for shared_input in shared_inputs)


def installed(model, trainable=(), **options):
    """Install :func:`support_of` the model on it."""
    return te.install(model, support_of(model, **options), trainable=list(trainable))


def dense_twin(model):
    """Return a copy of the model whose weights all require gradients."""
    return copy.deepcopy(model).requires_grad_(True)


def compare(model, twin, rtol=1e-5, atol=1e-6):
    """Check that the gradient of every entry is that of the twin's dense weight there."""
    layers = sparse_layers(model)
    assert layers
    dense = linears(twin)
    for name, layer in layers.items():
        gradient = dense[name].adapter.matrix(dense[name].module.weight.grad)
        expected = gradient[layer.entries.rows, layer.entries.columns].float()
        torch.testing.assert_close(
            layer.entries.offsets.grad, expected, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def backward(model, twin, run):
    """Run a loss through both, forward and backward."""
    for each in (model, twin):
        run(each).square().sum().backward()


class Made(TorchDispatchMode):
    """Records every tensor that an operation makes, except views of ``known`` tensors."""

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
