"""LoRA with filters of hidden states: LoRA at its start, dense autograd, what can be fused for φ = 1, and refusals."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.func import functional_call

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.delta.interop.export import export
from taskedge.errors import DeltaError, InputError
from taskedge.forms.filtered import FILTERS, HiddenFilter, add_filters, filtered_layers
from taskedge.selection.support import Support

KINDS = list(FILTERS)


def low_rank(model, rank=2):
    ranks = dict.fromkeys(candidates(model), rank)
    support = Support({}, sum(parameter.numel() for parameter in model.parameters()), low_rank=ranks)
    return te.install(model, support, trainable=[], alpha=3.0)


def filtered(model, kind="cosine", rank=3):
    add_filters(low_rank(model), kind, rank, seed=1)
    return model


def randomized(model, dtype=torch.float32):
    """Give all factors values other than 0."""
    generator = torch.Generator().manual_seed(2)
    for layer in filtered_layers(model).values():
        for parameter in layer.product.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_is_low_rank_bit_for_bit(kind):
    plain, model = low_rank(tiny.bert()), filtered(tiny.bert(), kind)
    for one in (plain, model):
        for layer in te.forms.low_rank.low_rank_layers(one).values():
            layer.product.b.data.fill_(0.05)
    batch = tiny.batch(plain)
    assert torch.equal(tiny.logits(plain, batch), tiny.logits(model, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_filter_gets_a_gradient_once_d_is_not_0(kind):
    model = filtered(tiny.bert(), kind)
    tiny.loss(model, tiny.batch(model)).backward()
    filters = [layer.product.filter for layer in filtered_layers(model).values()]
    if kind == "cosine":  # where v is opposed to every state, a filter is closed
        filters = [each for each in filters if bool(each.d.grad.any())]
        assert filters
    assert all(bool(each.d.grad.any()) for each in filters)
    assert not any(bool(p.grad.any()) for each in filters for name, p in each.named_parameters() if name != "d")
    tiny.train(model, steps=2)
    assert all(bool(parameter.grad.any()) for parameter in filters[0].parameters())


def formula(h, x, product):
    """Return what the layer computes for the output h of the base and the input x, as it is written down."""
    one = product.filter
    if one.kind == "cosine":
        share = (h @ one.v / (h.norm(dim=-1) * one.v.norm())).clamp(0, 1)[..., None]
    else:
        share = 1 / (1 + torch.exp(-((h @ one.w1.t()).clamp_min(0) @ one.w2.t())))
    return h + product.scale * x @ product.a.t() @ product.b.t() + (share * h) @ one.c.t() @ one.d.t()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_gradients_are_those_of_dense_autograd(kind, make):
    model, plain = randomized(filtered(make().double(), kind), torch.float64), make().double()
    products = {name: layer.product for name, layer in filtered_layers(model).items()}
    hooks = [
        plain.get_submodule(name).register_forward_hook(lambda _m, args, out, p=product: formula(out, args[0], p))
        for name, product in products.items()
    ]
    batch = tiny.batch(model)
    expected = functional_call(plain, {}, (), batch).logits
    found = tiny.logits(model, batch)
    assert float((found - expected).detach().abs().max()) <= 1e-9
    own = [parameter for product in products.values() for parameter in product.parameters()]
    gradients = torch.autograd.grad(expected.square().sum(), own)
    for one, other in zip(torch.autograd.grad(found.square().sum(), own), gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-9
    for hook in hooks:
        hook.remove()


def test_a_filter_that_lets_all_through_is_an_edit_of_the_weight(monkeypatch):
    """For φ = 1 and no bias, the layer is ``(I + DC)W + scale·BA``: the one case that a weight can represent."""
    monkeypatch.setattr(HiddenFilter, "share", lambda _self, hidden: torch.ones_like(hidden))
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(6, 5, bias=False).double(), "head": torch.nn.Linear(5, 2)})
    te.install(model, Support({}, 40, low_rank={"first": 2}), trainable=[])
    add_filters(model, "cosine", 3)
    product = randomized(model, torch.float64)["first"].product
    base = te.backbone.layers.stored_weight(model["first"]).detach()
    edit = torch.eye(5, dtype=torch.float64) + product.filter.d @ product.filter.c
    x = torch.randn(7, 6, dtype=torch.float64)
    expected = x @ (edit @ base + product.scale * product.b @ product.a).t()
    assert float((model["first"](x) - expected).detach().abs().max()) <= 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_other_token(kind):
    hidden_filter = HiddenFilter.draw(kind, 8, 3, torch.Generator().manual_seed(0), torch.device("cpu"))
    hidden_filter.d.data.normal_()
    hidden = torch.randn(2, 5, 8)
    padded = torch.cat([hidden, torch.zeros(2, 3, 8)], dim=1)
    torch.testing.assert_close(hidden_filter(padded)[:, :5], hidden_filter(hidden))
    assert not hidden_filter(padded)[:, 5:].any()
    padded.requires_grad_(True)
    (gradient,) = torch.autograd.grad(hidden_filter(padded).sum(), padded)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny.bert, tiny.gpt2])
def test_the_delta_gives_the_model_that_trained_and_is_reverted(kind, make, tmp_path):
    model = tiny.train(filtered(make(), kind))
    batch = tiny.batch(model, seed=4)
    expected = tiny.logits(model.eval(), batch)
    delta = te.load(te.save(te.extract(model), tmp_path / "task.safetensors"))
    assert {one.kind for one in delta.filters.values()} == {kind}
    base = make()
    te.apply(base, delta)
    assert torch.equal(tiny.logits(base, batch), expected)
    te.apply(base, delta)
    assert torch.equal(tiny.logits(base, batch), expected)
    te.revert(base)
    assert tiny.same_bits(tiny.state(base), tiny.state(make()))
    assert [type(one) for one in base.modules()] == [type(one) for one in make().modules()]


def test_what_cannot_be_fused_says_so(tmp_path):
    model = filtered(tiny.bert())
    delta = te.extract(model)
    with pytest.raises(InputError, match="cannot be fused into the base"):
        te.fuse(model)
    for to in ("merged", "peft", "patch"):
        with pytest.raises(InputError, match=rf"export to '{to}' is not possible: 12 linears have filters .* cannot"):
            export(tiny.bert(), delta, tmp_path / to, to=to)
    with pytest.raises(InputError, match="combining task1 is not possible"):
        te.combine([delta, delta], tiny.bert())
    assert not list(tmp_path.iterdir())


def test_a_delta_of_filters_is_checked(tmp_path):
    delta = te.extract(filtered(tiny.bert()))
    name, one = next(iter(delta.filters.items()))
    with pytest.raises(DeltaError, match="no low-rank product"):
        te.Delta({}, filters={name: one})
    one.tensors["v"][0] = float("nan")
    with pytest.raises(DeltaError, match="not a finite float32"):
        te.Delta({}, low_rank=delta.low_rank, filters={name: one})
    other = tiny.bert()
    linears(other)[name].module.weight.data[0, 0] += 1
    with pytest.raises(te.errors.BaseMismatch):
        te.apply(other, te.extract(filtered(tiny.bert())))


def test_what_cannot_be_is_refused(bert):
    with pytest.raises(InputError, match="trains no low-rank product"):
        add_filters(bert, "cosine", 2)
    low_rank(bert)
    with pytest.raises(InputError, match="unknown filter 'cosin'; did you mean"):
        add_filters(bert, "cosin", 2)
    with pytest.raises(InputError, match="rank"):
        add_filters(bert, "gate", 0)
    assert not filtered_layers(bert)
