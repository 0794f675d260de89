"""Statistics equal a direct computation, and the model is not changed."""

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from taskedge.backbone.candidates import candidates
from taskedge.backbone.layers import linears
from taskedge.errors import InputError
from taskedge.selection.statistics import ABSOLUTE_INPUTS, GRADIENTS, INPUTS, measure


def seen_inputs(model, name, batches):
    """Return the input of the linear, [tokens, in] in fp64, and which tokens are not padding."""
    inputs, kept = [], []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, given: inputs.append(given[0].detach().double().flatten(0, -2))
    )
    for batch in batches:
        with torch.no_grad():
            tiny.logits(model, batch)
        if isinstance(batch, dict) and "attention_mask" in batch:
            kept.append(batch["attention_mask"].flatten().bool())
        else:
            kept.append(torch.ones(len(inputs[-1]), dtype=torch.bool))
    handle.remove()
    return torch.cat(inputs), torch.cat(kept)


def test_norms_are_those_of_a_direct_computation_without_padding(model):
    batches = [tiny.batch(model, seed=seed) for seed in range(3)]
    layers = candidates(model)
    found = measure(model, layers, batches)
    assert list(found) == list(layers)
    for name, statistics in found.items():
        x, kept = seen_inputs(model, name, batches)
        assert statistics.input_squares.dtype == torch.float64
        torch.testing.assert_close(statistics.input_squares, x[kept].square().sum(0), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(statistics.input_norm, x[kept].norm(dim=0).float(), rtol=1e-5, atol=1e-7)
        assert statistics.tokens == int(kept.sum())


def test_means_are_those_of_a_direct_computation_without_padding(model):
    batches = [tiny.batch(model, seed=seed) for seed in range(3)]
    layers = candidates(model)
    found = measure(model, layers, batches, {ABSOLUTE_INPUTS})
    for name, statistics in found.items():
        x, kept = seen_inputs(model, name, batches)
        assert statistics.input_absolutes.dtype == torch.float64
        torch.testing.assert_close(statistics.input_absolutes, x[kept].abs().sum(0), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(statistics.input_mean, x[kept].abs().mean(0).float(), rtol=1e-5, atol=1e-7)
        assert statistics.tokens == int(kept.sum())
        assert statistics.input_squares is None


def test_padding_changes_nothing(bert):
    given = tiny.batch(bert, rows=1, tokens=5)
    given["attention_mask"][:] = 1
    name = "bert.encoder.layer.0.attention.self.query"
    layers = candidates(bert, [name])
    alone = measure(bert, layers, [given])[name]
    padded = {
        "input_ids": F.pad(given["input_ids"], (0, 4), value=7),
        "attention_mask": F.pad(given["attention_mask"], (0, 4)),
    }
    found = measure(bert, layers, [padded])[name]
    assert found.tokens == alone.tokens == 5
    torch.testing.assert_close(found.input_squares, alone.input_squares, rtol=1e-5, atol=1e-9)


def test_sums_over_split_data_add_up(bert):
    batches = [tiny.batch(bert, seed=seed) for seed in range(4)]
    layers = candidates(bert)
    whole, one, other = (
        measure(bert, layers, part, {INPUTS, ABSOLUTE_INPUTS, GRADIENTS})
        for part in (batches, batches[:1], batches[1:])
    )
    for name in layers:
        torch.testing.assert_close(
            whole[name].input_squares, one[name].input_squares + other[name].input_squares, rtol=1e-12, atol=0
        )
        torch.testing.assert_close(
            whole[name].input_absolutes, one[name].input_absolutes + other[name].input_absolutes, rtol=1e-12, atol=0
        )
        torch.testing.assert_close(whole[name].gradient, one[name].gradient + other[name].gradient)
        assert whole[name].tokens == one[name].tokens + other[name].tokens


def test_more_tokens_than_one_chunk_are_summed_in_fp64():
    layer = nn.Linear(2, 2)
    x = torch.full((5000, 2), 0.1)
    x[0] = 3000.0  # a large square first, so that fp32 would lose the small ones
    found = measure(layer, linears(layer), [x])[""].input_squares
    direct = x.double().square().sum(0)
    assert float((found - direct).abs().max()) < 5.0  # fp32 all the way misses all 50 of the small ones


def test_linears_with_a_shared_input():
    bert = tiny.bert()
    measured = measure(bert, candidates(bert), [tiny.batch(bert)], ())
    first_reader = {name: linear.shared_input for name, linear in measured.items()}
    prefix = "bert.encoder.layer.0."
    for part in ("query", "key", "value"):
        assert first_reader[f"{prefix}attention.self.{part}"] == f"{prefix}attention.self.query"
    for part in ("attention.output.dense", "intermediate.dense", "output.dense"):
        assert first_reader[prefix + part] == prefix + part


class Twice(nn.Module):
    """Two linears that read the same input, and one that reads it after a change in place."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.late, self.head = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, a, b):
        first = self.one(a), self.one(b)
        second = self.two(a), self.two(b)
        a = a.clone()
        kept = self.head(a)
        return sum((*first, *second)) + kept + self.late(a.mul_(2))


def test_a_second_run_or_a_change_in_place_makes_another_input():
    model = Twice()
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    found = measure(model, linears(model), [(a, b)])
    both = (a.square().sum(0) + b.square().sum(0)).double()
    for name, direct in (("one", both), ("two", both), ("late", 4 * a.square().sum(0).double())):
        torch.testing.assert_close(found[name].input_squares, direct, rtol=1e-5, atol=1e-9)
    assert found["one"].tokens == found["two"].tokens == 8


def test_gradients_are_those_of_dense_autograd(model):
    if isinstance(model, tiny.Mlp):
        pytest.skip("gives no loss")
    batches = [tiny.batch(model, seed=seed) for seed in range(3)]
    layers = candidates(model)
    found = measure(model, layers, batches, {GRADIENTS})
    twin = copy.deepcopy(model)
    for batch in batches:
        twin(**batch).loss.backward()
    for name, linear in linears(twin).items():
        if name in layers:
            dense = linear.module.weight.grad
            dense = linear.adapter.matrix(dense)
            torch.testing.assert_close(found[name].gradient, dense, rtol=1e-4, atol=1e-7)
            assert found[name].input_squares is None


def test_a_model_that_returns_its_loss_alone():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x):
            return self.inner(x).square().mean()

    model = Loss()
    x = torch.randn(5, 3)
    found = measure(model, linears(model), [x], {GRADIENTS})["inner"].gradient
    model(x).backward()
    torch.testing.assert_close(found, model.inner.weight.grad)


def test_a_linear_that_the_loss_does_not_depend_on_has_a_gradient_of_zero():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x):
            self.unused(x)
            return self.used(x).mean()

    model = Part()
    found = measure(model, linears(model), [torch.randn(2, 3)], {GRADIENTS})
    assert torch.equal(found["unused"].gradient, torch.zeros(1, 3))
    assert found["used"].gradient.any()


def test_batches_of_every_kind(mlp):
    x = tiny.batch(mlp)
    layers = candidates(mlp)
    given = [x], [(x,)], [[x]], [{"x": x}], iter([x]), (x for _ in range(1))
    found = [measure(mlp, layers, batches)["first"].input_squares for batches in given]
    assert all(torch.equal(found[0], other) for other in found)


def test_a_lone_vector_and_an_input_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(input=x)

    x = torch.tensor([1.0, 2.0, 3.0])
    model = ByName()
    found = measure(model, linears(model), [x])["inner"]
    assert found.input_squares.tolist() == [1.0, 4.0, 9.0]
    assert found.tokens == 1


def test_features_made_in_inference_mode(mlp):
    with torch.inference_mode():
        x = torch.randn(4, 12)
    found = measure(mlp, candidates(mlp), [x])["first"].input_squares
    torch.testing.assert_close(found, x.double().square().sum(0))


def everything(model):
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: parameter.grad for name, parameter in model.named_parameters()},
        {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()},
        {name: parameter._post_accumulate_grad_hooks or {} for name, parameter in model.named_parameters()},
    )


@pytest.mark.parametrize("needs", [(), (INPUTS,), (GRADIENTS,), (INPUTS, GRADIENTS)])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_even_after_an_exception(bert, needs, fails):
    bert.train()
    bert.bert.encoder.layer[0].eval()
    bert.classifier.bias.requires_grad_(False)
    gradient = torch.ones_like(bert.classifier.weight)
    bert.classifier.weight.grad = gradient
    before, values = everything(bert), tiny.state(bert)

    def batches():
        yield tiny.batch(bert)
        if fails:
            raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            measure(bert, candidates(bert), batches(), needs)
    else:
        measure(bert, candidates(bert), batches(), needs)
    assert everything(bert) == before
    assert bert.classifier.weight.grad is gradient
    assert tiny.same_bits(bert.state_dict(), values)
    assert torch.is_grad_enabled()


def test_dropout_plays_no_part(mlp):
    mlp.train()
    layers = candidates(mlp)
    one, other = (measure(mlp, layers, [tiny.batch(mlp)])["second"].input_squares for _ in range(2))
    assert torch.equal(one, other)


def test_no_batches(mlp):
    with pytest.raises(InputError, match="no calibration batches"):
        measure(mlp, candidates(mlp), [])


def test_a_linear_that_never_runs_has_sums_of_zero_and_is_named():
    model = tiny.mlp()
    model.spare = nn.Linear(2, 3)
    found = measure(model, candidates(model), [tiny.batch(model)], (INPUTS, ABSOLUTE_INPUTS))
    assert found.idle == ("spare",)
    assert (found["spare"].tokens, found["spare"].shared_input) == (0, "spare")
    assert found["spare"].input_squares.tolist() == found["spare"].input_absolutes.tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match=r"none of the 1 linears .* 'spare' first"):
        measure(model, {"spare": candidates(model)["spare"]}, [tiny.batch(model)])


def test_gradients_need_a_finite_loss(bert, mlp):
    with pytest.raises(InputError, match="put labels into the batches"):
        measure(mlp, candidates(mlp), [tiny.batch(mlp)], {GRADIENTS})
    unlabelled = {key: value for key, value in tiny.batch(bert).items() if key != "labels"}
    with pytest.raises(InputError, match="put labels into the batches"):
        measure(bert, candidates(bert), [unlabelled], {GRADIENTS})
    bert.classifier.bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match="loss of calibration batch 1 is nan"):
        measure(bert, candidates(bert), [tiny.batch(bert)], {GRADIENTS})


def test_progress_is_reported(mlp):
    told = []
    measure(mlp, candidates(mlp), [tiny.batch(mlp)] * 3, on_batch=told.append)
    assert told == [1, 2, 3]
