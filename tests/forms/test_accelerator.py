"""A CUDA device selects, trains and writes the same as the CPU, and multiplies 2:4 on sparse tensor cores."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn

import taskedge as te
from taskedge.forms import semi_structured
from taskedge.forms.semi_structured import beside, has_sparse_tensor_cores
from taskedge.training.data.text_data import outputs
from taskedge.training.trainer import train
from taskedge.training.trainer_config import TrainerConfig

CUDA = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def both(model, seeds=range(4)):
    """Return the model on the CPU and on the device in fp64, and batches for either."""
    given = [tiny.batch(model, seed=seed) for seed in seeds]
    given = [
        {key: value.double() if value.is_floating_point() else value for key, value in one.items()}
        if isinstance(one, dict)
        else one.double()
        for one in given
    ]
    return model.double(), copy.deepcopy(model).to(CUDA), given


def there(given):
    return {key: value.to(CUDA) for key, value in given.items()} if isinstance(given, dict) else given.to(CUDA)


@pytest.mark.parametrize("rule", ["taskedge", "random", "gradient", "fisher", "spt", "mean_activation"])
def test_the_support_is_that_of_the_cpu(rule):
    here, moved, given = both(tiny.bert())
    chosen = [te.select(model, given, budget="10%", rule=rule, seed=3) for model in (here, moved)]
    assert chosen[0].linears.keys() == chosen[1].linears.keys()
    assert chosen[0].low_rank == chosen[1].low_rank
    for name, linear in chosen[0].linears.items():
        assert torch.equal(linear.flat, chosen[1].linears[name].flat.cpu())


@pytest.mark.parametrize("form", ["sparse", "sparse_lora", "sparse_plus_low_rank"])
def test_training_and_the_file_are_those_of_the_cpu(model, form, tmp_path):
    here, moved, given = both(model)
    support = te.select(here, given, per_neuron=1)
    for one in (here, moved):
        te.install(one, support, step="activation", form=form, seed=1)
    optimizers = [torch.optim.SGD(tiny.trained(one), lr=0.1) for one in (here, moved)]
    for batch in given:
        for one, optimizer, device_batch in zip((here, moved), optimizers, (batch, there(batch)), strict=True):
            optimizer.zero_grad()
            tiny.loss(one, device_batch).backward()
            optimizer.step()
    deltas = [te.extract(one) for one in (here, moved)]
    for name, linear in deltas[0].linears.items():
        torch.testing.assert_close(deltas[1].linears[name].values.cpu(), linear.values, rtol=1e-5, atol=1e-7)

    read = te.load(te.save(deltas[1], tmp_path / "task.safetensors"))
    for name, linear in deltas[1].linears.items():
        assert torch.equal(read.linears[name].values, linear.values.cpu())
        assert torch.equal(read.linears[name].rows, linear.rows.cpu())
        assert torch.equal(read.linears[name].columns, linear.columns.cpu())


def test_a_delta_is_applied_and_reverted_bit_for_bit(bert):
    there_model = bert.to(CUDA)
    before = tiny.state(there_model)
    twin = copy.deepcopy(there_model)
    te.install(twin, te.select(twin, rule="magnitude", per_neuron=1))
    for parameter in tiny.trained(twin):
        nn.init.normal_(parameter, std=0.1)
    delta = te.extract(twin)
    te.apply(there_model, delta)
    device_batch = there(tiny.batch(bert))
    assert torch.equal(tiny.logits(there_model, device_batch), tiny.logits(te.fuse(twin), device_batch))
    te.revert(there_model, delta)
    assert tiny.same_bits(there_model.state_dict(), before)


def test_the_training_loop_stays_on_the_device(bert, tmp_path):
    model = bert.to(CUDA)
    rows = [{key: value[0] for key, value in tiny.batch(bert, rows=1, seed=seed).items()} for seed in range(12)]

    def collate(chosen):
        return {key: torch.stack([torch.as_tensor(row[key]) for row in chosen]) for key in chosen[0]}

    te.install(model, te.select(model, [collate(rows[:4])], per_neuron=1))
    done = train(
        model, rows, collate, TrainerConfig(epochs=2, batch_size=4, lr=1e-2, regrow=2), tmp_path, progress=False
    )
    assert done.steps == 6
    assert all(parameter.device.type == CUDA.type for parameter in model.parameters())
    assert outputs(model, rows, collate).shape == (12, tiny.LABELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_runs_through_sparse_tensor_cores(dtype, monkeypatch):
    if not has_sparse_tensor_cores(CUDA):
        pytest.skip("this GPU has no sparse tensor cores")
    torch.manual_seed(0)
    layers = nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, tiny.LABELS)
    model = nn.Sequential(*layers).to(CUDA, dtype)  # the last is the head, which carries no entries
    twin = copy.deepcopy(model)
    te.install(twin, te.select(twin, rule="magnitude", allocation="2:4"), trainable=[])
    for parameter in tiny.trained(twin):
        nn.init.normal_(parameter, std=0.1)
    delta = te.extract(twin)
    kinds = []
    made = semi_structured._adding

    def noted(operand):
        kinds.append(type(operand).__name__)
        return made(operand)

    monkeypatch.setattr(semi_structured, "_adding", noted)
    x = torch.randn(3, 5, 128, device=CUDA, dtype=dtype)
    with torch.no_grad(), beside(model, delta.linears):
        found = model(x)
    assert all("SparseSemiStructured" in kind for kind in kinds)
    assert len(kinds) == 2
    te.apply(model, delta)
    expected = model(x)
    assert float((found - expected).abs().max()) <= 2e-2 * float(expected.abs().max())
