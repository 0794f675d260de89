"""One enrolled device cannot end or ruin a run, whatever it sends: over a real server, with mutual TLS."""

from __future__ import annotations

import json

import pytest
import tiny_fleet
import torch

pytest.importorskip("nats", reason="needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="needs the extra 'fleet'")

from hostile_fleets import RawHeader, of, run_over_nats
from lying_devices import altered

from taskedge.cooperation.coordinator import versions
from taskedge.cooperation.protocol.message import Message


def settings(**changes):
    return tiny_fleet.settings(**{"mode": "fedavg", "devices": 3, "calibrate": True, "quarantine_after": 99, **changes})


def with_text(answer, change):
    """The answer with another text as its header, which no dictionary gives."""
    fields = json.dumps({"kind": answer.kind, **answer.header})
    return RawHeader(answer, change(fields))


def scaled(answer, factor):
    return altered(answer, {name: tensor * factor for name, tensor in answer.tensors.items()})


ANSWERS = {
    "seconds 0": lambda a: altered(a, seconds=0),
    "seconds 1e-320": lambda a: altered(a, seconds=1e-320),
    "seconds 1e308": lambda a: altered(a, seconds=1e308),
    "seconds of 400 digits": lambda a: altered(a, seconds=10**400),
    "loss of 400 digits": lambda a: altered(a, loss=10**400),
    "loss 1e308": lambda a: altered(a, loss=1e308),
    "real seconds of 400 digits": lambda a: altered(a, real_seconds=-(10**400)),
    "tokens of 400 digits": lambda a: altered(a, tokens=10**400),
    "NaN": lambda a: with_text(a, lambda text: text.replace('"seconds": ', '"x": NaN, "seconds": ')),
    "1e999": lambda a: with_text(a, lambda text: text.replace('"seconds": ', '"seconds": 1e999, "x": ')),
    "a key twice": lambda a: with_text(a, lambda text: text.replace('"seconds": ', '"seconds": 0, "seconds": ')),
    "nesting": lambda a: with_text(a, lambda text: text[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}"),
    "nesting without end": lambda a: with_text(a, lambda text: text[:-1] + ', "x": ' + "[" * 10**5),
    "a header that is a list": lambda a: with_text(a, lambda text: f"[{text}]"),
    "types": lambda a: altered(a, seconds=[1.0], loss={"x": 1}, tokens="many"),
    "round 1.0": lambda a: altered(a, round=float(a.header["round"])),
    "1,000 tensors": lambda a: altered(a, {**a.tensors, **{f"x{n}": torch.zeros(0) for n in range(1000)}}),
    "far too large": lambda a: altered(a, {**a.tensors, "x": torch.zeros(2**19)}),
    "gradients times 1e20": lambda a: scaled(a, 1e20),
    "gradients times 1e30": lambda a: scaled(a, 1e30),
}
"""By what the liar changes in its answer to a task."""
ACCEPTED = {"seconds 1e-320"}
"""Bad, and harmless: the calibration keeps its bounds."""


@pytest.mark.slow
def test_no_answer_ends_a_run_and_each_lie_is_refused_by_itself(tmp_path):
    """A lie a round. The honest devices' answers are all taken, and every line of the log is JSON."""

    async def lie(message, answer):
        honest = await answer(message)
        if message.kind != "task":
            return honest
        return list(ANSWERS.values())[message.header["round"] - 1](honest)

    how = settings(rounds=len(ANSWERS), devices=3)
    trainings = tiny_fleet.devices(2) | {"liar": tiny_fleet.training(9)}
    head, result, events = run_over_nats(tmp_path, how, trainings, {"liar": lie})
    assert result.rounds == result.version == len(ANSWERS)
    results = {line["round"]: (line["result"], line["why"]) for line in of(events, "task", "liar")}
    assert set(results) == set(range(1, len(ANSWERS) + 1))
    for (name, _), (outcome, why) in zip(ANSWERS.items(), results.values(), strict=True):
        assert outcome == ("accepted" if name in ACCEPTED else "refused"), (name, why)
        assert len(why) <= 300
    for device in ("d0", "d1"):
        assert {line["result"] for line in of(events, "task", device)} == {"accepted"}
    assert all(torch.isfinite(value).all() for value in head.state.values.values())

    def no_constant(name):
        raise AssertionError(name)

    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constant)


@pytest.mark.slow
@pytest.mark.parametrize("upload", ["float32", "float8"])
def test_unbounded_values_are_refused_from_the_first_answer_on(tmp_path, upload):
    """With several local steps a device sends values, of which none was accepted before the first round."""

    async def lie(message, answer):
        honest = await answer(message)
        if message.kind != "task":
            return honest
        if upload == "float8":
            return altered(honest, {**honest.tensors, "/scales": honest.tensors["/scales"] * 1e20})
        return scaled(honest, 1e20)

    how = settings(rounds=2, devices=2, local_steps=2, upload=upload, quarantine_after=2)
    trainings = {"d0": tiny_fleet.training(0), "liar": tiny_fleet.training(9)}
    head, result, events = run_over_nats(tmp_path, how, trainings, {"liar": lie})
    assert [line["why"][:13] for line in of(events, "task", "liar")] == ["absurd size: "] * 2
    assert of(events, "quarantined", "liar")
    assert max(float(value.abs().max()) for value in head.state.values.values()) < 10
    assert result.version == 2


HELLOS = {
    "memory 1": lambda a: altered(a, memory_bytes=1),
    "memory -1e308": lambda a: altered(a, memory_bytes=-1e308),
    "memory of 400 digits": lambda a: altered(a, memory_bytes=10**400),
    "rows of 400 digits": lambda a: altered(a, rows=10**400),
    "nesting": lambda a: with_text(a, lambda text: text[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}"),
    "long labels": lambda a: altered(a, labels=["x" * 1000] * 500),
    "no profile": lambda a: altered(a, profile={"step_seconds": [1e-320]}),
    "not an object": lambda a: with_text(a, lambda text: "3"),
}


@pytest.mark.slow
def test_no_hello_ends_a_run(tmp_path):
    """As many devices as blocks, or more, would each have to hold one."""

    def liar(lie):
        async def change(message, answer):
            honest = await answer(message)
            return lie(honest) if message.kind == "hello" else honest

        return change

    changes = {f"liar{n}": liar(lie) for n, lie in enumerate(HELLOS.values())}
    trainings = tiny_fleet.devices(2) | {name: tiny_fleet.training(5) for name in changes}
    how = settings(rounds=2, devices=2, mode="deft", wait_seconds=5.0)
    _, result, events = run_over_nats(tmp_path, how, trainings, changes)
    assert result.version == 2
    unfit = {line["device"]: line["why"] for line in of(events, "unfit")}
    assert unfit.keys() == changes.keys()
    assert "holds no block" in unfit["liar0"]
    assert max(map(len, unfit.values())) <= 300
    assert {line["device"] for line in of(events, "task")} == {"d0", "d1"}


def read_another_input(message):
    name, *_ = list(message.header["linears"])[2:]
    other = {**message.header["linears"], name: [name, message.header["linears"][name][1]]}
    tensors = {**message.tensors, f"squares/{name}": torch.ones(16, dtype=torch.float64)}
    return Message("statistics", {"linears": other}, tensors)


STATISTICS = {
    "another shared input": read_another_input,
    "1e300": lambda a: altered(a, {name: torch.full_like(t, 1e300) for name, t in a.tensors.items()}),
    "1.7e308": lambda a: altered(a, {name: torch.full_like(t, 1.7e308) for name, t in a.tensors.items()}),
    "a million times": lambda a: scaled(a, 1e6),
    "eleven times": lambda a: scaled(a, 11.0),
    "tokens of 400 digits": lambda a: altered(
        a, linears={name: [reads, 10**400] for name, (reads, _) in a.header["linears"].items()}
    ),
    "a million tokens": lambda a: altered(
        a, linears={name: [reads, 10**6] for name, (reads, _) in a.header["linears"].items()}
    ),
    "no object": lambda a: altered(a, linears=[1, 2]),
}


@pytest.mark.slow
def test_liars_neither_end_the_choice_of_weights_nor_decide_it(tmp_path):
    """The support is to the last bit the one that the honest devices choose when the others say that they cannot."""

    def liar(lie):
        async def change(message, answer):
            honest = await answer(message)
            return lie(honest) if message.kind == "statistics" else honest

        return change

    changes = {f"liar{n}": liar(lie) for n, lie in enumerate(STATISTICS.values())}
    trainings = tiny_fleet.devices(3) | {name: tiny_fleet.training(5) for name in changes}
    how = settings(rounds=1, devices=len(trainings), step="activation", quarantine_after=1)
    head, result, events = run_over_nats(tmp_path / "lies", how, trainings, changes)
    assert result.version == 1
    assert {line["device"] for line in of(events, "no statistics")} == set(changes)
    assert {line["device"] for line in of(events, "quarantined")} == set(changes)

    none = {name: liar(lambda _: Message("error", {"why": "no rows"})) for name in changes}
    trainings = tiny_fleet.devices(3) | {name: tiny_fleet.training(5) for name in changes}
    expected, _, _ = tiny_fleet.run(tmp_path / "none", how, trainings, changes=none)
    assert head.state.values.keys() == expected.state.values.keys()
    one, other = head.delta(), expected.delta()
    for name, linear in one.linears.items():
        assert torch.equal(linear.rows, other.linears[name].rows)
        assert torch.equal(linear.columns, other.linears[name].columns)


def test_a_run_whose_saved_calibration_is_0_is_resumed(tmp_path):
    """As an earlier revision left it after an answer with 0 seconds: the next plan would divide by it."""
    how = settings(rounds=4, devices=2, mode="deft")
    tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(2))
    fields, tensors = versions.read(versions.latest(tmp_path / "run"))
    fields["round"] = 2
    fields["planner"]["pace"]["d1"] = {"compute": 0.0, "transport": 0.0, "seen": 2}
    fields["planner"]["plan"]["pace"]["d1"] = {"compute": 0.0, "transport": 0.0, "seen": 2}
    for path in (tmp_path / "run").glob("version-*"):
        path.unlink()
    versions.commit(tmp_path / "run", 2, fields, tensors)
    _, result, events = run_over_nats(tmp_path, how, tiny_fleet.devices(2), {}, resume=True)
    assert result.rounds == 4
    assert [line["devices"] for line in of(events, "healed")] == [["d1"]]
    assert {line["result"] for line in of(events, "task")} == {"accepted"}


@pytest.mark.slow
def test_a_device_that_never_answers_a_task_is_left_out(tmp_path):
    async def unready(message, answer):
        return Message("unready", {}) if message.kind == "task" else await answer(message)

    how = settings(rounds=12, devices=2, quarantine_after=2)
    trainings = {"d0": tiny_fleet.training(0), "liar": tiny_fleet.training(9)}
    _, result, events = run_over_nats(tmp_path, how, trainings, {"liar": unready})
    assert result.version == 12
    assert "unready for 8 tasks in a row" in of(events, "quarantined", "liar")[0]["why"]
