"""A whole run in one process: it trains what a central run would, in every mode, and is resumed to the bit."""

import asyncio
import json
import re

import pytest
import tiny
import tiny_fleet
import torch
from plan_files import plan_of

import taskedge as te
from taskedge.cooperation.coordinator.run_setup import RunSetup
from taskedge.cooperation.device.local_training import LocalTraining
from taskedge.cooperation.protocol.device_info import DeviceInfo
from taskedge.cooperation.protocol.message import Message
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.cooperation.scheduling.freezing import FreezingConfig
from taskedge.delta.delta import Delta
from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning.problem import InfeasiblePlan
from taskedge.training.data_order import derive_seed, random_order


def same(one: Delta, other: Delta, tolerance=0.0):
    assert one.linears.keys() == other.linears.keys()
    assert one.full_parameters.keys() == other.full_parameters.keys()
    for name, linear in one.linears.items():
        twin = other.linears[name]
        assert torch.equal(linear.rows, twin.rows)
        assert torch.equal(linear.columns, twin.columns)
        assert linear.base_digest == twin.base_digest
        torch.testing.assert_close(linear.values, twin.values, rtol=tolerance, atol=tolerance)
    for name, whole in one.full_parameters.items():
        torch.testing.assert_close(whole, other.full_parameters[name], rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["taskedge", "magnitude"])
def test_the_support_is_the_one_that_a_central_run_chooses(tmp_path, rule):
    how = tiny_fleet.settings(rounds=1, devices=3, rule=rule, per_neuron=None, budget="2.3%", calibration=9)
    head, result, _ = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(3))
    batches = []
    for place in range(3):
        rows = tiny_fleet.rows(20, place)
        order = random_order(20, derive_seed(0, f"d{place}"))
        batches += [tiny_fleet.collate([rows[p] for p in order[start : start + 4]]) for start in (0, 4, 8)]
    central = te.select(tiny_fleet.model(), batches, budget="2.3%", rule=rule)
    found = head.delta()
    assert found.linears.keys() == central.linears.keys()
    for name, linear in central.linears.items():
        assert torch.equal(found.linears[name].rows, linear.rows)
        assert torch.equal(found.linears[name].columns, linear.columns)
    assert result.entries == central.num_entries


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["deft", "replicate", "fedavg"])
@pytest.mark.parametrize("optimizer_name", ["sgd", "fedadamw"])
def test_one_device_with_all_blocks_is_a_central_run(tmp_path, mode, optimizer_name):
    """The same rows in the same order through a plain loop and torch's own optimizer; float32, 1e-5."""
    how = tiny_fleet.settings(
        mode=mode, rounds=6, server_optimizer=optimizer_name, lr=0.02, head_lr=0.01, clip=1.0, accumulate=2
    )
    head, _, _ = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(1))
    delta = head.delta()

    model = tiny_fleet.model()
    order = random_order(20, derive_seed(0, "d0"))
    rows = tiny_fleet.rows(20, 0)
    calibration = [tiny_fleet.collate([rows[p] for p in order[start : start + 4]]) for start in range(0, 20, 4)]
    te.install(model, te.select(model, calibration, per_neuron=1))
    entries = [p for n, p in model.named_parameters() if n.endswith("offsets")]
    whole = list(model.classifier.parameters())
    groups = [{"params": entries, "lr": 0.02}, {"params": whole, "lr": 0.01}]
    optimizer = torch.optim.SGD(groups) if optimizer_name == "sgd" else torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: how.lr_factor(step + 1))
    seed = derive_seed(0, "d0")
    stream = [p for number in range(3) for p in random_order(20, derive_seed(seed, number))]
    for step in range(6):
        for half in range(2):
            chosen = stream[8 * step + 4 * half :][:4]
            (model(**tiny_fleet.collate([rows[p] for p in chosen])).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_([*entries, *whole], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    same(delta, te.extract(model), tolerance=1e-5)


@pytest.mark.slow
def test_fedavg_is_the_dense_average_of_the_devices_models(tmp_path):
    """Three local steps on each device, one round: the result is the average of whole models, weighted by tokens."""
    how = tiny_fleet.settings(mode="fedavg", rounds=1, local_steps=3, devices=3)
    model = tiny_fleet.model()
    head, _, events = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(3), base=model)
    dense, weights = [], []
    for place in range(3):
        made = LocalTraining(tiny_fleet.model(), tiny_fleet.rows(20, place), tiny_fleet.collate, min_rows=1)
        made.install(_support(head.delta()), "plain", None, head.state.initial_full_parameters())
        task = RoundTask("", (0, 1, 2, 3, 4), seed=derive_seed(0, f"d{place}"))
        recipe = TrainingRecipe(
            round=1, batch_size=4, local_steps=3, optimizer="sgd", lr=0.05, head_lr=0.05, weight_decay=0.0
        )
        trained = made.train(task, recipe)
        made.receive(trained.tensors)
        dense.append(tiny.state(te.fuse(made.model)))
        weights.append(trained.tokens)
    total = sum(weights)
    finished = tiny.state(te.fuse(model))
    for name, value in finished.items():
        mean = sum(w * one[name].double() for w, one in zip(weights, dense, strict=True)) / total
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    assert [e["tokens"] for e in events if e["event"] == "task"] == weights


def _support(delta):
    from taskedge.selection.support import LayerSupport, Support

    linears = {
        name: LayerSupport(linear.shape, linear.rows, linear.columns, name) for name, linear in delta.linears.items()
    }
    return Support(linears, delta.provenance.base_parameters)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["deft", "replicate", "fedavg"])
def test_a_run_learns_and_every_device_ends_with_its_values(tmp_path, mode):
    how = tiny_fleet.settings(mode=mode, rounds=40, server_optimizer="fedadamw", lr=0.03, devices=4, batch_size=16)
    trainings = tiny_fleet.devices(4)
    head, result, events = tiny_fleet.run(tmp_path / "run", how, trainings)
    losses = [event["loss"] for event in events if event["event"] == "round"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert result.version == result.rounds == 40
    for made in trainings.values():
        same(te.extract(made.model), head.delta())


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "copies"), [("deft", 1), ("replicate", 2), ("fedavg", 4)])
def test_blocks_go_to_as_many_devices_as_the_mode_says(tmp_path, mode, copies):
    _, _, events = tiny_fleet.run(
        tmp_path / "run", tiny_fleet.settings(mode=mode, rounds=2, devices=4), tiny_fleet.devices(4)
    )
    for number in (1, 2):
        tasks = [e for e in events if e["event"] == "task" and e["round"] == number]
        assert all(e["result"] == "accepted" for e in tasks)
        for block in (1, 2, 3, 4):
            assert sum(block in e["blocks"] for e in tasks) == copies


def test_merged_blocks_and_a_head_with_the_first(tmp_path):
    how = tiny_fleet.settings(rounds=2, devices=2, blocks=2, head="first")
    _, _, events = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(2))
    blocks = sorted(tuple(e["blocks"]) for e in events if e["event"] == "task" and e["round"] == 1)
    assert blocks == [(0, 1), (2,)]


@pytest.mark.slow
def test_the_log_has_every_event(tmp_path):
    _, result, events = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(devices=2), tiny_fleet.devices(2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == events
    assert [e["event"] for e in lines if e["event"] not in ("task", "round")] == [
        *["joined"] * 2,
        "support",
        *["ready"] * 2,
        "planned",
        "done",
    ]
    task = next(e for e in lines if e["event"] == "task")
    assert task["bytes_up"] > 0 < task["predicted_seconds"]
    assert 0 < task["compute_seconds"] <= task["observed_seconds"]
    for name in ("d0", "d1"):
        assert (
            sum(e["bytes_down"] for e in lines if e.get("device") == name and e["event"] == "task")
            == (result.bytes_down[name]["task"])
        )
        assert set(result.bytes_up[name]) == {"hello", "statistics", "installed", "gradients", "bye"}


@pytest.mark.slow
def test_idle_modules_are_neither_computed_nor_sent(tmp_path):
    how = tiny_fleet.settings(rounds=16, devices=2, mode="fedavg", active_share=0.25)
    freezing = FreezingConfig(0.25, stage=1, window=2, every=6)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(2), freezing=freezing)
    rounds = {e["round"]: e for e in events if e["event"] == "round"}
    sizes = {name: value.numel() for name, value in head.state.values.items()}
    blocks, own = head.state.blocks, sum(sizes[name] for name in head.state.blocks.names_in([0]))
    modules = blocks.names_in(range(1, 5))
    stay = -(-len(modules) // 4)
    said = [e["decided"] for e in events if e["event"] == "revival" and "stay active" in e["decided"]][-1]
    kept = said.partition(": ")[2].split(", ")
    assert len(kept) == stay < len(modules)
    for number, line in rounds.items():
        tasks = [e for e in events if e["event"] == "task" and e["round"] == number]
        assert all(e["result"] == "accepted" and e["blocks"] == [0, *line["active"]] for e in tasks)
        assert line["upload_bytes"] == 2 * 4 * (own + line["active_values"])
        assert line["upload_bytes_all_active"] == 2 * 4 * sum(sizes.values())
        assert line["device_flops"] <= line["device_flops_all_active"]
    for number in range(5, 9):  # between the first two windows in which idle ones are tried
        assert rounds[number]["active_values"] <= max(rounds[n]["active_values"] for n in (3, 4))
    down = {e["round"]: e["bytes_down"] for e in events if e["event"] == "task" and e["device"] == "d0"}
    assert down[7] < down[2] / 2  # idle modules' values did not change, so nobody is sent them


@pytest.mark.slow
def test_missing_devices_and_a_used_folder_are_named(tmp_path):
    def run(trainings=None, **more):
        changes = more.pop("changes", None)
        how = tiny_fleet.settings(rounds=1, wait_seconds=0.3, **more.pop("how", {}))
        return tiny_fleet.run(tmp_path / "other", how, trainings or tiny_fleet.devices(1), changes=changes, **more)

    with pytest.raises(InputError, match="looks at gradients"):
        run(how={"rule": "gradient"})
    with pytest.raises(TaskEdgeError, match=r"2 are needed, there: d0\)"):
        run(how={"devices": 2})
    tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), tiny_fleet.devices(1))
    with pytest.raises(InputError, match="holds a run"):
        tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), tiny_fleet.devices(1))


def test_devices_with_another_base_or_other_labels_take_no_part(tmp_path):
    other = tiny_fleet.model()
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    trainings = {"d0": tiny_fleet.training(), "d1": tiny_fleet.training(1, made=other)}
    _, _, events = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), trainings)
    assert [(e["device"], "another base" in e["why"]) for e in events if e["event"] == "unfit"] == [("d1", True)]
    assert {e["device"] for e in events if e["event"] == "task"} == {"d0"}
    with pytest.raises(TaskEdgeError, match=r"d0: its labels are \[\], not \['no', 'yes'\]"):
        tiny_fleet.run(
            tmp_path / "b", tiny_fleet.settings(wait_seconds=0.3), tiny_fleet.devices(1), labels=["no", "yes"]
        )


@pytest.mark.parametrize(
    ("spare", "error", "why"),
    [(-1e6, TaskEdgeError, "d1: its memory of .* holds no block"), (1.0, InfeasiblePlan, "no device can take block")],
)
def test_a_block_that_no_device_can_hold_is_named(tmp_path, spare, error, why):
    """Devices that hold no block at all take no part; others may hold some of the blocks only."""
    setup = RunSetup(tiny_fleet.model(), tiny_fleet.settings())
    info = DeviceInfo(setup.base_digest, (), 1, 1.0, None, "", None)
    needed = float(re.search(r"([\d,]+) are needed", setup.unfit_reason("d0", info))[1].replace(",", ""))

    async def small():
        async with tiny_fleet.fleet(tiny_fleet.devices(2), memory_bytes=needed + spare) as made:
            await tiny_fleet.coordinator(made, tmp_path / "run", tiny_fleet.settings(wait_seconds=0.3)).run()

    with pytest.raises(error, match=why):
        asyncio.run(small())


@pytest.mark.parametrize("how", ["silent", "refuses"])
def test_a_device_that_never_becomes_ready_does_not_end_the_run(tmp_path, how):
    """It answered ``hello`` and gave statistics, and then never installs the support."""

    async def stuck(message, answer):
        if message.kind != "install":
            return await answer(message)
        return Message("error", {"why": "full"}) if how == "refuses" else await asyncio.Event().wait()

    settings = tiny_fleet.settings(rounds=2, devices=2, wait_seconds=0.5)
    _, result, events = tiny_fleet.run(tmp_path / "run", settings, tiny_fleet.devices(2), changes={"d1": stuck})
    assert result.version == 2
    (fewer,) = [event for event in events if event["event"] == "fewer"]
    assert fewer["ready"] == ["d0"]
    assert fewer["why"] == "1 of 2 devices are ready after 0.5 s"


class Stopped(Exception):
    """Ends a coordinator the hard way, at an exact point."""


def stop_after(number):
    def on_event(event):
        if event["event"] == "round" and event["round"] == number:
            raise Stopped

    return on_event


def base(seed=7, **about):
    """The coordinator's model; its head's seed must not matter after a resumption."""
    return tiny_fleet.model(seed=seed, **about)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        "deft",
        "replicate",
        "fedavg",
        "local",
        "revive",
        "dropout",
        "half",
        "quarter",
        "local half",
        "rotation",
        "traversal",
    ],
)
def test_a_resumed_run_ends_with_the_values_of_one_that_was_not_stopped(tmp_path, how):
    more = {
        "local": {"mode": "fedavg", "local_steps": 2, "server_optimizer": "fedavgm"},
        "revive": {"mode": "deft", "active_share": 0.25},
        "dropout": {"mode": "deft"},
        "half": {"mode": "deft", "upload": "bfloat16"},
        "quarter": {"mode": "deft", "upload": "float8"},
        "rotation": {"mode": "deft", "rotation_slack": 0.1, "blocks": 2},
        "traversal": {"mode": "deft", "rotation_slack": 0.1, "traversal_slack": 0.5, "upload": "float8"},
        "local half": {"mode": "fedavg", "local_steps": 2, "upload": "bfloat16"},
    }.get(how, {"mode": how})
    count = 1 if how == "dropout" else 2  # dropout draws from the process's generator, and threads share it
    about = {"dropout": 0.2} if how == "dropout" else {}
    settings = tiny_fleet.settings(**{"rounds": 16, "devices": count, "server_optimizer": "fedadamw", **more})
    whole, result, _ = tiny_fleet.run(
        tmp_path / "whole", settings, tiny_fleet.devices(count, **about), base=base(**about)
    )

    async def killed_and_resumed():
        async with tiny_fleet.fleet(tiny_fleet.devices(count, **about)) as made:
            for number in (3, 11):
                head = tiny_fleet.coordinator(
                    made, tmp_path / "run", settings, on_event=stop_after(number), base=base(**about)
                )
                with pytest.raises(Stopped):
                    await head.run(resume=number > 3)
            events = []
            again = tiny_fleet.coordinator(
                made, tmp_path / "run", settings, on_event=events.append, base=base(seed=55, **about)
            )
            return again, await again.run(resume=True), events

    head, again, events = asyncio.run(killed_and_resumed())
    assert [e["round"] for e in events if e["event"] == "resumed"] == [11]
    assert [e["round"] for e in events if e["event"] == "round"] == list(range(12, 17))
    assert [e["holds"] for e in events if e["event"] == "ready"] == [10] * count  # the devices stayed warm
    assert again.version == result.version
    for name, value in whole.state.values.items():
        assert torch.equal(value, head.state.values[name]), name
    one, other = te.save(whole.delta(), tmp_path / "a"), te.save(head.delta(), tmp_path / "b")
    assert one.read_bytes() == other.read_bytes()


def test_a_run_that_was_stopped_at_its_start_can_be_resumed(tmp_path):
    how = tiny_fleet.settings(rounds=2)

    def at(event_name):
        def on_event(event):
            if event["event"] == event_name:
                raise Stopped

        return on_event

    async def whole():
        async with tiny_fleet.fleet(tiny_fleet.devices(1)) as made:
            for number, name in enumerate(("support", "planned", "task")):
                head = tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=at(name))
                with pytest.raises(Stopped):
                    await head.run(resume=number > 0)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how)
            return await head.run(resume=True)

    assert asyncio.run(whole()).version == 2


LAYERS = [[f"encoder.layer.{number}"] for number in (3, 2, 1, 0)]


def test_a_plan_file_is_followed_while_its_devices_are_there(tmp_path):
    """d1 leaves after the first round and comes back: rounds without it are planned anew."""
    plan = plan_of({"d0": [1, 4], "d1": [2, 3]}, LAYERS)
    events = []

    async def whole():
        is_back, leaving, fresh = asyncio.Event(), [], tiny_fleet.training(1)

        async def patient(message, answer):
            if message.kind == "task" and message.header["round"] == 4:
                await is_back.wait()
            return await answer(message)

        async with tiny_fleet.fleet(tiny_fleet.devices(2), {"d0": patient}) as made:

            def on_event(event):
                events.append(event)
                if event["event"] == "round" and event["round"] == 1:
                    leaving.append(asyncio.ensure_future(made.lose("d1")))
                if event["event"] == "round" and event["round"] == 3:
                    made.trainings["d1"] = fresh
                    made.join("d1")
                if [e["event"] for e in events if e.get("device") == "d1"].count("ready") == 2:
                    is_back.set()

            how = tiny_fleet.settings(rounds=6, devices=2, rotation_slack=0.5, traversal_slack=0.5)
            head = tiny_fleet.coordinator(made, tmp_path / "run", how, on_event=on_event, plan=plan)
            await head.run()

    asyncio.run(whole())
    reasons = [event["why"] for event in events if event["event"] == "planned"]
    assert reasons == [
        "first round; by the plan file",
        "left: d1; not by the plan file (not ready: d1)",
        "joined: d1; by the plan file",
    ]
    tasks = {}
    for event in events:
        if event["event"] == "task" and event["result"] == "accepted":
            tasks.setdefault(event["round"], {})[event["device"]] = event["blocks"]
    by_file = {"d0": [0, 1, 4], "d1": [0, 2, 3]}
    assert tasks[1] == tasks[5] == tasks[6] == by_file
    assert tasks[3] == {"d0": [0, 1, 2, 3, 4]}


def test_a_plan_file_is_part_of_the_run(tmp_path):
    how = tiny_fleet.settings(rounds=1)
    tiny_fleet.run(tmp_path / "run", how, tiny_fleet.devices(1), plan=plan_of({"d0": [1, 2, 3, 4]}, LAYERS))

    async def again(plan):
        async with tiny_fleet.fleet(tiny_fleet.devices(1)) as made:
            return await tiny_fleet.coordinator(made, tmp_path / "run", how, plan=plan).run(resume=True)

    with pytest.raises(InputError, match="another plan"):
        asyncio.run(again(None))
    assert asyncio.run(again(plan_of({"d0": [1, 2, 3, 4]}, LAYERS))).rounds == 1
    with pytest.raises(InputError, match="or other layers"):
        tiny_fleet.run(tmp_path / "other", how, tiny_fleet.devices(1), plan=plan_of({"d0": [1, 2, 3, 4]}, LAYERS[::-1]))
