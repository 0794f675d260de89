"""Supports and statistics cross the wire unchanged, and unsound ones are refused."""

import dataclasses

import pytest
import tiny_fleet
import torch

import taskedge as te
from taskedge.backbone.candidates import candidates
from taskedge.cooperation.protocol.message import Message, MessageError
from taskedge.cooperation.protocol.payloads import (
    decode_support,
    encode_support,
    read_statistics,
    statistics_limits,
    statistics_message,
    sum_statistics,
    support_digest,
)
from taskedge.selection.statistics import measure


def batches(seed, count=3):
    made = tiny_fleet.rows(4 * count, seed)
    return [tiny_fleet.collate(made[start : start + 4]) for start in range(0, len(made), 4)]


def same(one, other):
    assert one.linears.keys() == other.linears.keys()
    assert dataclasses.replace(one, linears={}) == dataclasses.replace(other, linears={})
    for name, linear in one.linears.items():
        twin = other.linears[name]
        assert (linear.shape, linear.shared_input) == (twin.shape, twin.shared_input)
        assert torch.equal(linear.flat, twin.flat)
        assert (linear.input_rms is None) == (twin.input_rms is None)
        assert linear.input_rms is None or torch.equal(linear.input_rms, twin.input_rms)


@pytest.mark.parametrize("given", [None, "batches"])
def test_a_support_crosses_the_wire(given):
    rule = "taskedge" if given else "magnitude"
    support = te.select(tiny_fleet.model(), batches(0) if given else None, budget="3%", rule=rule)
    header, tensors = encode_support(support)
    message = Message.unpack(Message("install", {"support": header}, tensors).pack())
    same(decode_support(message.header["support"], message.tensors), support)
    if given:  # query, key and value read one tensor, whose norms are sent once
        assert sum(name.startswith("rms/") for name in tensors) == 4 * len(support.linears) // 6


def test_the_keys_of_the_wire_format():
    """Peers of an older version read these keys."""
    header, tensors = encode_support(te.select(tiny_fleet.model(), rule="magnitude", per_neuron=1))
    assert header.keys() == {"about", "shapes"}
    assert header["about"].keys() == {
        "model_parameters", "rule", "allocation", "budget", "settings",
        "low_rank", "low_rank_parameters", "whole", "whole_parameters",
    }  # fmt: skip
    assert {name.partition("/")[0] for name in tensors} == {"flat"}


def test_norms_that_are_not_shared_are_sent_for_each_linear():
    support = te.select(tiny_fleet.model(), batches(0), per_neuron=1)
    name = "bert.encoder.layer.1.attention.self.value"
    other = dataclasses.replace(support.linears[name], input_rms=torch.rand(16))
    support = dataclasses.replace(support, linears=support.linears | {name: other})
    same(decode_support(*encode_support(support)), support)


def test_an_unsound_support_is_refused():
    header, tensors = encode_support(te.select(tiny_fleet.model(), rule="magnitude", per_neuron=1))
    first = next(iter(tensors))
    for wrong in (
        ({}, tensors),
        (header, {}),
        (header | {"about": {"color": 1}}, tensors),
        (header | {"about": header["about"] | {"color": 1}}, tensors),
        (header, tensors | {first: tensors[first].flip(0)}),
        (header, tensors | {first: tensors[first] + 10**6}),
    ):
        with pytest.raises(MessageError, match="without a sound support"):
            decode_support(*wrong)


def test_a_digest_is_that_of_the_content_on_both_sides():
    support = te.select(tiny_fleet.model(), batches(0), budget="3%")
    header, tensors = encode_support(support)
    message = Message.unpack(Message("install", {"support": header}, tensors).pack())
    assert support_digest(decode_support(message.header["support"], message.tensors)) == support_digest(support)
    name, linear = next(iter(support.linears.items()))
    other = dataclasses.replace(linear, input_rms=linear.input_rms.nextafter(torch.tensor(9.0)))
    changed = dataclasses.replace(support, linears=support.linears | {name: other})
    assert support_digest(changed) != support_digest(support)


def test_the_largest_message_of_statistics_holds_honest_ones():
    packed = statistics_message(statistics(0)).pack()
    Message.unpack(packed, statistics_limits(shapes()))
    assert statistics_limits(shapes()).max_bytes < len(packed) + 2**17


def statistics(seed):
    model = tiny_fleet.model()
    return measure(model, candidates(model), batches(seed))


def shapes():
    return {name: linear.shape for name, linear in candidates(tiny_fleet.model()).items()}


def test_the_sum_of_devices_is_that_of_a_central_run_to_the_last_bit():
    model = tiny_fleet.model()
    central = measure(model, candidates(model), [*batches(0), *batches(1), *batches(2)])
    for order in ((0, 1, 2), (2, 0, 1)):
        parts = [
            read_statistics(Message.unpack(statistics_message(statistics(seed)).pack()), shapes()) for seed in order
        ]
        together = sum_statistics(parts)
        assert list(together) == list(central)
        for name, seen in together.items():
            assert (seen.shared_input, seen.tokens) == (central[name].shared_input, central[name].tokens)
            assert torch.equal(seen.input_squares, central[name].input_squares)


def test_impossible_statistics_are_refused():
    sound = statistics_message(statistics(0))
    name = "bert.encoder.layer.0.attention.self.query"
    tensor, linears = f"squares/{name}", sound.header["linears"]

    def wrong(facts=None, **tensors):
        return Message("statistics", {"linears": linears | (facts or {})}, {**sound.tensors, **tensors})

    for message, why in (
        (Message("error", {"why": "no"}), "other linears"),
        (wrong({"another": [name, 3]}), "other linears"),
        (wrong({name: [name, 0]}), "over no tokens"),
        (wrong({name: [name, 2**50]}), "tokens"),
        (wrong({name: "nothing at all"}), "no statistics"),
        (wrong({name: ["elsewhere", 3]}), "no statistics"),
        (wrong(**{tensor: torch.zeros(3, dtype=torch.float64)}), r"float64 \[3\]"),
        (wrong(**{tensor: torch.zeros(16)}), "float32"),
        (wrong(**{tensor: torch.full((16,), torch.nan, dtype=torch.float64)}), "no sums of squares"),
        (wrong(**{tensor: torch.full((16,), -1.0, dtype=torch.float64)}), "no sums of squares"),
        (wrong(**{tensor: torch.full((16,), 1e300, dtype=torch.float64)}), "no sums of squares"),
        (wrong({name: [name, True]}), "over True tokens"),
        (wrong({name: [[name], 3]}), "no statistics|of linear"),
        (wrong(**{"squares/x": torch.zeros(1)}), "a tensor of no linear"),
    ):
        with pytest.raises(MessageError, match=why):
            read_statistics(message, shapes())


def test_devices_that_disagree_about_the_model_are_refused():
    one, other = statistics(0), statistics(1)
    name = "bert.encoder.layer.0.attention.self.key"
    other[name] = dataclasses.replace(other[name], shared_input=name)
    with pytest.raises(MessageError, match="disagree"):
        sum_statistics([one, other])


def test_an_expert_that_no_token_reached_has_sums_of_zero():
    parts = statistics(0)
    name = next(name for name, linear in parts.items() if linear.shared_input == name)
    alone = {other: linear for other, linear in parts.items() if other == name or linear.shared_input != name}
    wanted = {other: shape for other, shape in shapes().items() if other in alone}
    alone[name].tokens, alone[name].input_squares = 0, torch.zeros_like(alone[name].input_squares)
    read = read_statistics(Message.unpack(statistics_message(alone).pack()), wanted)
    assert (read[name].tokens, float(read[name].input_squares.sum())) == (0, 0.0)
    alone[name].input_squares += 1.0
    with pytest.raises(MessageError, match="over no tokens that are not 0"):
        read_statistics(statistics_message(alone), wanted)
