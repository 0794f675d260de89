"""A whole run in one process: it trains what a central run would, in every mode, and its log says what happened."""

import json

import pytest
import tiny
import tiny_fleet
import torch

import taskedge as te
from taskedge.cooperation.device.local_training import Job, LocalTraining
from taskedge.cooperation.device.sampling import permutation
from taskedge.cooperation.scheduling.freezing import ReviveSettings
from taskedge.delta.delta import Delta
from taskedge.errors import InputError, TaskEdgeError
from taskedge.planning.problem import InfeasiblePlan
from taskedge.training.seeds import derive


def devices(count, **about):
    return {f"d{place}": tiny_fleet.training(place, **about) for place in range(count)}


def same(one: Delta, other: Delta, tolerance=0.0):
    assert one.linears.keys() == other.linears.keys()
    assert one.whole.keys() == other.whole.keys()
    for name, linear in one.linears.items():
        twin = other.linears[name]
        assert torch.equal(linear.rows, twin.rows)
        assert torch.equal(linear.columns, twin.columns)
        assert linear.base_digest == twin.base_digest
        torch.testing.assert_close(linear.values, twin.values, rtol=tolerance, atol=tolerance)
    for name, whole in one.whole.items():
        torch.testing.assert_close(whole, other.whole[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", ["taskedge", "magnitude"])
def test_the_support_is_the_one_that_a_central_run_chooses(tmp_path, rule):
    how = tiny_fleet.settings(rounds=1, devices=3, rule=rule, per_neuron=None, budget="2.3%", calibration=9)
    head, result, _ = tiny_fleet.run(tmp_path / "run", how, devices(3))
    batches = []
    for place in range(3):
        rows = tiny_fleet.rows(20, place)
        order = permutation(20, derive(0, f"d{place}"))
        batches += [tiny_fleet.collate([rows[p] for p in order[start : start + 4]]) for start in (0, 4, 8)]
    central = te.select(tiny_fleet.model(), batches, budget="2.3%", rule=rule)
    found = head.delta()
    assert found.linears.keys() == central.linears.keys()
    for name, linear in central.linears.items():
        assert torch.equal(found.linears[name].rows, linear.rows)
        assert torch.equal(found.linears[name].columns, linear.columns)
    assert result.entries == central.entries


@pytest.mark.parametrize("mode", ["deft", "replicate", "fedavg"])
@pytest.mark.parametrize("optimiser", ["sgd", "fedadamw"])
def test_one_device_with_all_blocks_is_a_central_run(tmp_path, mode, optimiser):
    """The same rows in the same order through a plain loop and torch's own optimiser; float32, 1e-5."""
    how = tiny_fleet.settings(mode=mode, rounds=6, optimiser=optimiser, lr=0.02, head_lr=0.01, clip=1.0, accumulate=2)
    head, _, _ = tiny_fleet.run(tmp_path / "run", how, devices(1))
    delta = head.delta()

    model = tiny_fleet.model()
    order = permutation(20, derive(0, "d0"))
    rows = tiny_fleet.rows(20, 0)
    calibration = [tiny_fleet.collate([rows[p] for p in order[start : start + 4]]) for start in range(0, 20, 4)]
    te.install(model, te.select(model, calibration, per_neuron=1))
    entries = [p for n, p in model.named_parameters() if n.endswith("offsets")]
    whole = list(model.classifier.parameters())
    groups = [{"params": entries, "lr": 0.02}, {"params": whole, "lr": 0.01}]
    optimizer = torch.optim.SGD(groups) if optimiser == "sgd" else torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: how.rate(step + 1))
    seed = derive(0, "d0")
    stream = [p for number in range(3) for p in permutation(20, derive(seed, number))]
    for step in range(6):
        for half in range(2):
            chosen = stream[8 * step + 4 * half :][:4]
            (model(**tiny_fleet.collate([rows[p] for p in chosen])).loss / 2).backward()
        torch.nn.utils.clip_grad_norm_([*entries, *whole], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    same(delta, te.extract(model), tolerance=1e-5)


def test_fedavg_is_the_dense_average_of_the_devices_models(tmp_path):
    """Three local steps on each device, one round: the result is the average of whole models, weighted by tokens."""
    how = tiny_fleet.settings(mode="fedavg", rounds=1, local_steps=3, devices=3)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, devices(3))
    dense, weights = [], []
    for place in range(3):
        made = LocalTraining(tiny_fleet.model(), tiny_fleet.rows(20, place), tiny_fleet.collate)
        made.install(_support(head.delta()), "plain", None, head.state.head_start())
        trained = made.train(Job((0, 1, 2, 3, 4), 1, derive(0, f"d{place}"), 4, 1, 3, "sgd", 0.05, 0.05, 0.0))
        made.receive(trained.tensors)
        dense.append(tiny.state(te.fuse(made.model)))
        weights.append(trained.tokens)
    total = sum(weights)
    finished = tiny.state(te.fuse(head._model))
    for name, value in finished.items():
        mean = sum(w * one[name].double() for w, one in zip(weights, dense, strict=True)) / total
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    assert [e["tokens"] for e in events if e["event"] == "task"] == weights


def _support(delta):
    from taskedge.selection.support import LinearSupport, Support

    linears = {
        name: LinearSupport(linear.shape, linear.rows, linear.columns, name) for name, linear in delta.linears.items()
    }
    return Support(linears, delta.provenance.base_parameters)


@pytest.mark.parametrize("mode", ["deft", "replicate", "fedavg"])
def test_a_run_learns_and_every_device_ends_with_its_values(tmp_path, mode):
    how = tiny_fleet.settings(mode=mode, rounds=40, optimiser="fedadamw", lr=0.03, devices=4, batch_size=16)
    trainings = devices(4)
    head, result, events = tiny_fleet.run(tmp_path / "run", how, trainings)
    losses = [event["loss"] for event in events if event["event"] == "round"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert result.version == result.rounds == 40
    for made in trainings.values():
        same(te.extract(made.model), head.delta())


@pytest.mark.parametrize(("mode", "copies"), [("deft", 1), ("replicate", 2), ("fedavg", 4)])
def test_blocks_go_to_as_many_devices_as_the_mode_says(tmp_path, mode, copies):
    _, _, events = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(mode=mode, rounds=2, devices=4), devices(4))
    for number in (1, 2):
        tasks = [e for e in events if e["event"] == "task" and e["round"] == number]
        assert all(e["result"] == "accepted" for e in tasks)
        for block in (1, 2, 3, 4):
            assert sum(block in e["blocks"] for e in tasks) == copies


def test_merged_blocks_and_a_head_with_the_first(tmp_path):
    how = tiny_fleet.settings(rounds=2, devices=2, blocks=2, head="first")
    _, _, events = tiny_fleet.run(tmp_path / "run", how, devices(2))
    blocks = sorted(tuple(e["blocks"]) for e in events if e["event"] == "task" and e["round"] == 1)
    assert blocks == [(0, 1), (2,)]


def test_the_log_says_what_happened(tmp_path):
    _, result, events = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(devices=2), devices(2))
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


def test_idle_modules_are_neither_computed_nor_sent(tmp_path):
    how = tiny_fleet.settings(rounds=16, devices=2, mode="fedavg", active_share=0.25)
    revive = ReviveSettings(0.25, stage=1, window=2, every=6)
    head, _, events = tiny_fleet.run(tmp_path / "run", how, devices(2), revive=revive)
    rounds = {e["round"]: e for e in events if e["event"] == "round"}
    sizes = {name: value.numel() for name, value in head.state.values.items()}
    blocks, own = head.state.blocks, sum(sizes[name] for name in head.state.blocks.of([0]))
    modules = blocks.of(range(1, 5))
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


def test_what_cannot_be_is_said(tmp_path):
    def run(trainings=None, **more):
        changes = more.pop("changes", None)
        how = tiny_fleet.settings(rounds=1, wait_seconds=0.3, **more.pop("how", {}))
        return tiny_fleet.run(tmp_path / "other", how, trainings or devices(1), changes=changes, **more)

    with pytest.raises(InputError, match="looks at gradients"):
        run(how={"rule": "gradient"})
    with pytest.raises(TaskEdgeError, match=r"2 are needed, there: d0\)"):
        run(how={"devices": 2})
    tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), devices(1))
    with pytest.raises(InputError, match="holds a run"):
        tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), devices(1))


def test_devices_with_another_base_or_other_labels_take_no_part(tmp_path):
    other = tiny_fleet.model()
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-3
    trainings = {"d0": tiny_fleet.training(), "d1": tiny_fleet.training(1, made=other)}
    _, _, events = tiny_fleet.run(tmp_path / "run", tiny_fleet.settings(rounds=1), trainings)
    assert [(e["device"], "another base" in e["why"]) for e in events if e["event"] == "unfit"] == [("d1", True)]
    assert {e["device"] for e in events if e["event"] == "task"} == {"d0"}
    with pytest.raises(TaskEdgeError, match=r"d0: its labels are \[\], not \['no', 'yes'\]"):
        tiny_fleet.run(tmp_path / "b", tiny_fleet.settings(wait_seconds=0.3), devices(1), labels=["no", "yes"])


def test_a_block_that_no_device_can_hold_is_said(tmp_path):
    import asyncio

    async def small():
        async with tiny_fleet.fleet(devices(2), memory_bytes=1e6) as made:
            await tiny_fleet.coordinator(made, tmp_path / "run", tiny_fleet.settings(wait_seconds=0.3)).run()

    with pytest.raises(InfeasiblePlan, match="no device can take block"):
        asyncio.run(small())
