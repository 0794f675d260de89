"""What is settled before the first round: fit devices, requests, the support, and the initial state."""

import dataclasses

import pytest
import tiny_fleet
import torch

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.device.device import Device
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import decode_support, sum_statistics
from taskedge.errors import InputError
from taskedge.selection.statistics import measure


def setup_of(labels=("no", "yes"), **settings):
    return RunSetup(tiny_fleet.model(), tiny_fleet.settings(**settings), labels=labels)


def test_a_device_needs_the_same_base_and_labels_and_no_more():
    setup = setup_of()
    info = DeviceInfo(setup.base_digest, ("no", "yes"), 3, 1e9, None, "", None)
    assert setup.unfit_reason("d0", info) == ""
    assert "another base (x, not" in setup.unfit_reason("d0", dataclasses.replace(info, base="x"))
    assert setup.unfit_reason("d0", dataclasses.replace(info, labels=("yes", "no"))) == (
        "its labels are ['yes', 'no'], not ['no', 'yes']"
    )


def test_the_head_is_not_part_of_the_base():
    assert setup_of().base_digest == RunSetup(tiny_fleet.model(seed=9), tiny_fleet.settings()).base_digest
    assert setup_of().full_parameters == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(("calibration", "devices", "batches"), [(8, 4, 2), (8, 3, 3), (1, 5, 1)])
def test_devices_share_the_calibration_batches(calibration, devices, batches):
    setup = setup_of(calibration=calibration)
    request = setup.statistics_request("d0", devices)
    assert (request.kind, request.header["batches"], request.header["batch_size"]) == ("statistics", batches, 4)
    assert request.header["seed"] != setup.statistics_request("d1", devices).header["seed"]


def test_a_rule_that_needs_gradients_is_refused():
    said = "'gradient' looks at gradients, and devices send sums over inputs only: choose activation or magnitude or"
    with pytest.raises(InputError, match=said):
        setup_of(rule="gradient")


@pytest.mark.parametrize(
    ("rule", "looked_at"),
    [
        ("pursuit", "gradients"),
        ("pursuit_t", "gradients, squared gradients"),
        ("snip", "gradients"),
        ("ratio", "gradients"),
        ("fisher_bottom", "squared gradients"),
        ("first_batch", "gradients of the first batch"),
        ("change", "changes"),
    ],
)
def test_rules_that_need_more_than_sums_over_inputs_are_refused(rule, looked_at):
    with pytest.raises(InputError, match=f"'{rule}' looks at {looked_at}, and devices send sums over inputs only"):
        setup_of(rule=rule)


@pytest.mark.parametrize("rule", ["principal", "principal:2"])
def test_statistics_of_several_devices_choose_as_those_of_one_where_the_rule_reads_weights(rule):
    model = tiny_fleet.model()
    assert setup_of(rule=rule).config.rule == rule
    linears = candidates(model)
    parts = [measure(model, linears, [tiny_fleet.collate(tiny_fleet.rows(8, seed))]) for seed in (0, 1)]
    from_devices = te.select(model, statistics=sum_statistics(parts), rule=rule, per_neuron=2)
    alone = te.select(model, rule=rule, per_neuron=2)
    assert all(torch.equal(from_devices.linears[name].flat, alone.linears[name].flat) for name in alone.linears)


def block_setup(**settings):
    return setup_of(per_neuron=None, allocation="block", max_rows=3, max_columns=5, **settings)


def parts_of(model):
    linears = candidates(model)
    return [measure(model, linears, [tiny_fleet.collate(tiny_fleet.rows(8, seed))]) for seed in (0, 1)]


def test_a_block_of_rows_and_columns_trains_whole_instead_of_a_budget():
    setup = block_setup()
    support = setup.choose_support(parts_of(tiny_fleet.model()))
    assert {(len(one.rows.unique()), len(one.columns.unique()), len(one.flat)) for one in support.linears.values()} == {
        (3, 5, 15)
    }
    assert support.settings["max_rows"] == 3
    both = sum_statistics(parts_of(tiny_fleet.model()))
    alone = te.select(tiny_fleet.model(), statistics=both, allocation="block", max_rows=3, max_columns=5)
    assert all(torch.equal(support.linears[name].flat, alone.linears[name].flat) for name in alone.linears)


def test_rows_are_limited_beside_a_budget():
    support = setup_of(per_neuron=None, budget="2%", max_rows=3).choose_support(parts_of(tiny_fleet.model()))
    assert max(len(one.rows.unique()) for one in support.linears.values()) == 3


def test_a_pattern_needs_no_budget():
    """The default budget is not among the settings, since the pattern is one."""
    support = setup_of(per_neuron=None, allocation="2:4").choose_support(parts_of(tiny_fleet.model()))
    assert support.budget == "2:4"


def test_devices_train_a_block(tmp_path):
    how = tiny_fleet.settings(per_neuron=None, allocation="block", max_rows=3, max_columns=5, rounds=2)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(2))
    answers = [event for event in events if event.get("event") == "round"]
    assert len(answers) == 2
    assert {value.numel() for name, value in head.state.values.items() if "classifier" not in name} == {15}


def test_statistics_of_another_model_are_refused():
    with pytest.raises(MessageError):
        setup_of().read_statistics_answer(Message("statistics", {"linears": {"x": ["x", 1]}}))


def test_the_install_message_brings_a_device_to_the_initial_state():
    import asyncio

    setup = setup_of(labels=(), blocks=2)
    support = te.select(setup.model, rule="magnitude", per_neuron=1)
    state, planner = setup.install_support(support)
    assert setup.install_support(support)[0].values.keys() == state.values.keys()  # a second time changes nothing
    assert planner.table.payload_values.tolist() == [
        sum(state.values[name].numel() for name in names) for names in state.blocks.names[1:]
    ]
    message = setup.install_message("r", support, state)
    assert (message.header["run"], message.header["step"], message.header["sizes"]) == ("r", "plain", [2, 2])
    assert decode_support(message.header["support"], message.tensors).num_entries == support.num_entries
    training = tiny_fleet.training()
    assert asyncio.run(Device(None, training).answer(message, arrived=0.0)).kind == "installed"
    assert training.blocks == state.blocks
    assert all(torch.equal(training.values[name], value) for name, value in state.values.items())


def test_a_device_says_by_how_much_steps_are_larger():
    import asyncio

    lines = []
    setup = setup_of(labels=(), blocks=2, step="activation")
    batch = tiny_fleet.training().collate(tiny_fleet.training().rows[:8])
    support = te.select(setup.model, [batch], budget="0.5%")
    message = setup.install_message("r", support, setup.install_support(support)[0])
    device = Device(None, tiny_fleet.training(), log=lines.append)
    assert asyncio.run(device.answer(message, arrived=0.0)).kind == "installed"
    assert f"installed {support}; steps times " in lines[-1]
    assert lines[-1].endswith(" of the neurons")


def test_rows_hold_as_many_tokens_as_the_model_has_positions():
    assert setup_of().max_tokens == 24
    assert RunSetup(tiny_fleet.model(), tiny_fleet.settings(), max_tokens=7).max_tokens == 7
