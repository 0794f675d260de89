"""A model with an unmerged 2:4 delta beside it computes what the merged model does, and is restored."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.errors import InputError
from taskedge.forms import semi_structured
from taskedge.forms.semi_structured import beside, has_sparse_tensor_cores


def trained_delta(model, pattern="2:4"):
    """Return a 2:4 delta of the model whose values differ from the base by about 0.1."""
    twin = copy.deepcopy(model)
    te.install(twin, te.select(twin, rule="magnitude", allocation=pattern), trainable=[])
    for parameter in tiny.trained(twin):
        nn.init.normal_(parameter, std=0.1)
    return te.extract(twin)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_the_output_is_that_of_the_merged_model(model, dtype, tolerance):
    model = model.to(dtype)
    delta = trained_delta(model)
    given = tiny.batch(model)
    given = (
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
        if isinstance(given, dict)
        else given.to(dtype)
    )
    merged = copy.deepcopy(model)
    te.apply(merged, delta)
    before = tiny.state(model)
    with torch.no_grad():
        expected, plain = tiny.logits(merged, given), tiny.logits(model, given)
        with beside(model, delta.linears) as same:
            assert same is model
            found = tiny.logits(model, given)
        after = tiny.logits(model, given)
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert float((plain - expected).abs().max()) > 2 * tolerance * float(expected.abs().max())
    assert torch.equal(after, plain)
    assert tiny.same_bits(model.state_dict(), before)


def test_widths_that_are_no_multiple_of_four_vectors_and_inputs_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(7, 3)

        def forward(self, x):
            return self.inner(input=x)

    model = ByName().double()
    delta, x = trained_delta(model), torch.randn(7, dtype=torch.float64)
    merged = copy.deepcopy(model)
    te.apply(merged, delta)
    with beside(model, delta.linears):
        torch.testing.assert_close(model(x), merged(x), rtol=1e-12, atol=1e-12)


def test_hooks_are_removed_after_an_error(mlp):
    delta = trained_delta(mlp)
    with pytest.raises(ZeroDivisionError), beside(mlp, delta.linears):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in mlp.modules())


def test_deltas_that_are_not_2_of_4_or_do_not_fit_are_refused(mlp):
    delta = trained_delta(mlp)
    for changes, told in (
        ({"frst": delta.linears["first"]}, "no linear 'frst'; did you mean 'first'"),
        ({"second": delta.linears["first"]}, r"'second' is \[8, 10\]; the delta was made for \[10, 12\]"),
        (trained_delta(mlp, "1:4").linears, "the entries of linear 'first' are not 2:4: apply the delta instead"),
    ):
        with pytest.raises(InputError, match=told), beside(mlp, changes):
            pass
    assert not any(module._forward_hooks for module in mlp.modules())


class Sizes(nn.Module):
    """One linear that sparse tensor cores support, and two of other shapes."""

    def __init__(self):
        super().__init__()
        self.fits, self.short, self.narrow = nn.Linear(64, 32), nn.Linear(64, 16), nn.Linear(32, 32)

    def forward(self, x):
        return self.fits(x) + self.short(x).repeat(1, 2) + self.narrow(x[:, :32])


@pytest.mark.parametrize(("dtype", "sparse"), [(torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 0)])
def test_sparse_tensor_cores_get_what_fits_them_through_the_same_path(monkeypatch, dtype, sparse):
    """Torch computes their product; this checks that it gets the right matrices, and that others stay dense."""
    model = Sizes().to(dtype)
    delta, x = trained_delta(model), torch.randn(5, 64).to(dtype)
    with torch.no_grad(), beside(model, delta.linears):
        dense = model(x)
    handed = []
    monkeypatch.setattr(semi_structured, "has_sparse_tensor_cores", lambda device: True)
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda matrix: handed.append(matrix) or matrix)
    with torch.no_grad(), beside(model, delta.linears):
        assert torch.equal(model(x), dense)
    assert [matrix.shape for matrix in handed] == [(32, 64)] * sparse
    for matrix in handed:
        assert bool((matrix.view(32, 16, 4).count_nonzero(dim=2) <= 2).all())


def test_devices_with_sparse_tensor_cores(monkeypatch):
    assert not has_sparse_tensor_cores(torch.device("cpu"))
    for version, capability, has in (("12.8", (8, 0), True), ("12.8", (7, 5), False), (None, (9, 0), False)):
        monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=version))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        assert has_sparse_tensor_cores(torch.device("cuda")) is has


@pytest.mark.skipif(
    not torch.cuda.is_available() or not has_sparse_tensor_cores(torch.device("cuda")), reason="no sparse tensor cores"
)
def test_on_sparse_tensor_cores():
    model = Sizes().to("cuda", torch.bfloat16)
    delta, x = trained_delta(model), torch.randn(8, 64, device="cuda", dtype=torch.bfloat16)
    merged = copy.deepcopy(model)
    te.apply(merged, delta)
    with torch.no_grad(), beside(model, delta.linears):
        torch.testing.assert_close(model(x), merged(x), rtol=4e-2, atol=4e-2)
