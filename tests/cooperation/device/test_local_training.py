"""A device computes the gradients of dense autograd, goes no deeper than its blocks, and leaves its model unchanged."""

import pytest
import tiny
import tiny_fleet
import torch

import taskedge as te
from taskedge.cooperation.device.local_training import LocalTraining, TaskExpired, rows_of_round, tokens_in
from taskedge.errors import InputError


def train(made, check=lambda: None, **changes):
    """One round of a task with these changes."""
    return made.train(*tiny_fleet.round_task(**changes), check)


def ready(**about):
    made = tiny_fleet.training(**about)
    support = te.select(made.model, rule="magnitude", per_neuron=1)
    head = {name: p.detach().clone() for name, p in made.model.named_parameters() if name in made.full_parameters}
    made.install(support, "plain", None, head)
    return made, support


def dense(support, made, batches):
    """The same entries of the dense gradient in float64, mean over the batches."""
    model = tiny_fleet.model(seed=100).double()
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    parameters = dict(model.named_parameters())
    entries = {
        f"{name}.entries.offsets": parameters[f"{name}.weight"].grad[linear.rows, linear.columns]
        for name, linear in support.linears.items()
    }
    return entries | {name: parameters[name].grad for name in made.full_parameters}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_those_of_dense_autograd(accumulate):
    made, support = ready()
    trained = train(made, blocks=(0, 1, 2, 3, 4), accumulate=accumulate)
    order = rows_of_round(20, 4 * accumulate, 1, 5)
    parts = [order[start : start + 4] for start in range(0, len(order), 4)]
    batches = [tiny_fleet.collate([made.rows[place] for place in part]) for part in parts]
    expected = dense(support, made, batches)
    assert trained.tensors.keys() == expected.keys()
    for name, gradient in trained.tensors.items():
        torch.testing.assert_close(gradient, expected[name].float(), rtol=1e-4, atol=1e-6)
    assert trained.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)


def test_idle_names_get_no_gradient_and_the_others_theirs():
    made, _ = ready()
    names = made.blocks.names_in((0, 1, 3))
    idle = tuple(place for place, name in enumerate(names) if name in made.blocks.names[3] or place % 2)
    whole = train(made, blocks=(0, 1, 3)).tensors
    some = train(made, blocks=(0, 1, 3), idle=idle).tensors
    assert list(some) == [name for place, name in enumerate(names) if place not in idle]
    assert all(torch.equal(some[name], whole[name]) for name in some)
    for wrong in ((len(names),), (-1,), tuple(range(len(names)))):
        with pytest.raises(InputError, match=r"nothing to train in blocks \[0, 1, 3\] except"):
            train(made, blocks=(0, 1, 3), idle=wrong)


@pytest.mark.parametrize("blocks", [(0, 1), (0, 2), (1, 3), (4,)])
def test_backpropagation_ends_at_the_deepest_block(blocks):
    """Watched at the layers' own outputs: a gradient arrives down to the deepest block's, and at no deeper one."""
    made, _ = ready()
    arrived = set()
    for depth, layer in zip((4, 3, 2, 1), made.model.bert.encoder.layer, strict=True):

        def forward(module, given, output, depth=depth):
            output = output if torch.is_tensor(output) else output[0]
            if output.requires_grad:
                output.register_hook(lambda _: arrived.add(depth))

        layer.register_forward_hook(forward)
    trained = train(made, blocks=blocks)
    assert arrived == set(range(1, max(blocks) + 1))
    assert sorted(trained.tensors) == sorted(made.blocks.names_in(blocks))
    assert all(p.grad is None and not p.requires_grad for p in made.model.parameters())


def test_a_blocks_gradient_does_not_depend_on_which_others_are_trained():
    made, _ = ready()
    alone, together = train(made, blocks=(3,)), train(made, blocks=(0, 1, 2, 3, 4))
    for name, gradient in alone.tensors.items():
        torch.testing.assert_close(gradient, together.tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_local_steps_are_torchs_own_and_leave_no_trace(kind):
    made, support = ready()
    task, recipe = tiny_fleet.round_task(blocks=(0, 2), local_steps=3, accumulate=2, optimizer=kind, weight_decay=0.1)
    before = tiny.state(made.model)
    trained = made.train(task, recipe)
    assert tiny.same_bits(before, tiny.state(made.model))

    model = te.install(tiny_fleet.model(seed=100), support, step="plain")
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained.tensors)
    groups = [
        {"params": [parameters[n] for n in trained.tensors if n not in made.full_parameters], "lr": recipe.lr},
        {"params": [parameters[n] for n in made.full_parameters], "lr": recipe.head_lr},
    ]
    optimizer_class = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    optimizer = optimizer_class(groups, weight_decay=0.1)
    order = rows_of_round(20, 24, 1, 5)
    for step in range(3):
        for half in range(2):
            start = 8 * step + 4 * half
            batch = tiny_fleet.collate([made.rows[place] for place in order[start : start + 4]])
            (model(**batch).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in trained.tensors.items():
        torch.testing.assert_close(value, parameters[name].detach(), rtol=0, atol=0)


def test_dropout_and_order_depend_on_seed_and_round_only():
    made, _ = ready(dropout=0.3)
    first = train(made)
    train(made, round=2)
    torch.manual_seed(99)
    again = train(made)
    assert first.loss == again.loss
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert train(made, seed=6).loss != first.loss
    assert not made.model.training


def test_a_new_support_begins_at_the_base():
    made, support = ready()
    plain = tiny_fleet.model(seed=100)
    made.receive({name: torch.full_like(p, 0.5) for name, p in made.values.items()})
    made.statistics(("inputs",), 1, 4, 0)
    without_head = {k: v for k, v in tiny.state(made.model).items() if not k.startswith("classifier")}
    assert tiny.same_bits(without_head, {k: v for k, v in tiny.state(plain).items() if not k.startswith("classifier")})
    made.install(support, "plain", None, {})
    assert all(not layer.any() for name, layer in made.values.items() if name.endswith("offsets"))


def test_what_does_not_fit_is_refused():
    made, _ = ready()
    with pytest.raises(InputError, match="does not train"):
        made.receive({"bert.pooler.dense.weight": torch.zeros(16, 16)})
    with pytest.raises(InputError, match="does not train"):
        made.receive({"classifier.bias": torch.zeros(4)})
    with pytest.raises(InputError, match=r"nothing to train in blocks \[9\] except 0 idle names: the model has 4"):
        train(made, blocks=(9,))
    with pytest.raises(InputError, match="no rows"):
        LocalTraining(tiny_fleet.model(), [], tiny_fleet.collate)


def test_a_training_whose_time_is_over_ends_at_the_next_batch():
    made, _ = ready()
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise TaskExpired

    with pytest.raises(TaskExpired):
        train(made, check, local_steps=5)
    assert len(calls) == 3
    assert train(made).loss > 0


def test_tokens_are_what_the_mask_keeps():
    batch = tiny_fleet.collate(tiny_fleet.rows(3))
    assert tokens_in(batch) == 3 + 4 + 5
    assert tokens_in({"input_ids": torch.zeros(2, 7)}) == 14
    assert tokens_in({"pixel_values": torch.zeros(5, 3, 8, 8)}) == 5


def test_every_row_is_seen_once_before_any_is_seen_twice():
    seen = [index for number in range(1, 6) for index in rows_of_round(20, 8, number, seed=3)]
    assert sorted(seen[:20]) == list(range(20))
    assert sorted(seen[20:40]) == list(range(20))
    assert seen[:20] != seen[20:40]


def test_a_round_does_not_depend_on_the_rounds_before():
    seen = [index for number in range(1, 6) for index in rows_of_round(20, 8, number, seed=3)]
    assert rows_of_round(20, 8, 4, seed=3) == seen[24:32]
    assert rows_of_round(20, 8, 4, seed=4) != seen[24:32]


def test_a_round_may_take_several_passes():
    assert sorted(rows_of_round(3, 9, 1, seed=0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
