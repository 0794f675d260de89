import asyncio

import pytest
import tiny_fleet
import torch

pytest.importorskip("opacus.accountants", reason="needs the extra dp")

from taskedge.cooperation.device.device import Device
from taskedge.cooperation.device.privacy_account import BudgetSpent, PrivacyAccount, PrivacyBudget
from taskedge.cooperation.device.private_training import MAX_LOSS, PrivateTraining
from taskedge.cooperation.protocol.message import Message
from taskedge.errors import InputError
from taskedge.forms.row_gradients import clipped_sum


def private(folder, seed=1, count=20, min_rows=1, **budget):
    limits = PrivacyBudget(**{"epsilon": 50.0, "noise": 1.0, "clip": 0.5, **budget})
    account = PrivacyAccount(limits, folder / "privacy.json")
    model = tiny_fleet.model(layers=2, seed=100)
    return PrivateTraining(
        model, tiny_fleet.rows(count), tiny_fleet.collate, account=account, seed=seed, min_rows=min_rows
    )


def installed(training):
    import taskedge as te

    support = te.select(tiny_fleet.model(layers=2), [tiny_fleet.collate(tiny_fleet.rows(8))], per_neuron=1)
    training.install(support, "plain", None, {})
    return training


def test_the_answer_is_the_clipped_sum_of_a_sample_plus_noise_of_the_stated_size(tmp_path):
    """With every row sampled (rate 1) the difference from the clipped mean is Gaussian noise alone."""
    training = installed(private(tmp_path, epsilon=1e6))
    task, recipe = tiny_fleet.round_task(batch_size=20, blocks=(0, 1, 2))
    names = training.blocks.names_in((0, 1, 2))
    parameters = {name: dict(training.model.named_parameters())[name] for name in names}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    training.model.train()
    head = [name for name in names if name in training.full_parameters]
    groups = [head, [name for name in names if name not in head]]
    limit = 0.5 * ((1 - 0.2**2) / 2) ** 0.5  # so that loss, head and entries have a norm of 0.5 together
    exact = clipped_sum(training.model, training.rows, tiny_fleet.collate, parameters, limit, groups)
    training.model.eval()
    results = [training.train(task, recipe) for _ in range(12)]
    noise = torch.cat([20 * r.tensors[name].flatten() - exact.total[name].flatten() for r in results for name in names])
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03)  # noise 1 times clip 0.5
    assert abs(float(noise.mean())) < 4 * 0.5 / len(noise) ** 0.5
    assert {result.tokens for result in results} == {20}  # what is expected, not what was drawn
    spread = 0.5 / (0.2 * 0.5 / MAX_LOSS) / 20
    assert abs(sum(r.loss for r in results) / 12 - float(exact.losses.mean())) < 4 * spread / 12**0.5
    assert training.account.steps == 12


def test_samples_and_noise_do_not_follow_from_what_the_coordinator_knows(tmp_path):
    task, recipe = tiny_fleet.round_task(batch_size=8)
    results = []
    for number, seed in enumerate((None, None, 7, 7)):
        (tmp_path / str(number)).mkdir()
        results.append(installed(private(tmp_path / str(number), seed=seed)).train(task, recipe).tensors)
    name = next(iter(results[0]))
    assert not torch.equal(results[0][name], results[1][name])
    assert torch.equal(results[2][name], results[3][name])


@pytest.mark.parametrize("local_steps", [1, 3])
def test_each_local_step_is_spent_before_the_result_leaves(tmp_path, local_steps):
    training = installed(private(tmp_path))
    training.train(*tiny_fleet.round_task(batch_size=8, local_steps=local_steps))
    assert PrivacyAccount(training.account.budget, tmp_path / "privacy.json").steps == local_steps


def test_a_device_stops_answering_when_its_budget_is_spent_and_after_a_restart(tmp_path):
    training = installed(private(tmp_path, epsilon=4.0))
    task, recipe = tiny_fleet.round_task(batch_size=8)
    training.account.spend(training.rate(8), training.account.steps_left(training.rate(8)))
    before = {name: value.clone() for name, value in training.values.items()}
    for again in (training, installed(private(tmp_path, epsilon=4.0))):
        with pytest.raises(BudgetSpent, match="of 4 at δ = 1e-05"):
            [again.train(task, recipe) for _ in range(20)]
    assert all(torch.equal(before[name], value) for name, value in training.values.items())


def test_an_expired_task_costs_nothing_since_nothing_leaves(tmp_path):
    training = installed(private(tmp_path))

    def expired():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        training.train(*tiny_fleet.round_task(batch_size=20), expired)
    assert training.account.steps == 0


def test_statistics_do_not_depend_on_the_rows(tmp_path):
    found = [private(tmp_path, count=count).statistics(["inputs"], 1, 8, seed=3) for count in (20, 12)]
    assert all(torch.equal(found[0][name].input_squares, found[1][name].input_squares) for name in found[0])


def test_a_delta_that_protects_nobody_is_refused(tmp_path):
    with pytest.raises(InputError, match="protects none of 20 rows"):
        private(tmp_path, delta=0.05)


def test_a_private_device_takes_part_in_a_run_until_its_budget_is_spent(tmp_path):
    trainings = tiny_fleet.devices(2, layers=2)
    trainings["d1"] = private(tmp_path, epsilon=6.0)
    left = trainings["d1"].account.steps_left(trainings["d1"].rate(4))
    how = tiny_fleet.settings(rounds=3, devices=2, mode="fedavg", quarantine_after=1)
    trainings["d1"].account.spend(trainings["d1"].rate(4), left - 1)
    _, _, events = tiny_fleet.run(tmp_path / "run", how, trainings, base=tiny_fleet.model(layers=2))
    results = [event["result"] for event in events if event["event"] == "task" and event["device"] == "d1"]
    assert "accepted" in results or left < 2
    if "refused" in results:
        assert "privacy budget is spent" in next(e["why"] for e in events if e["event"] == "task" and e["why"])


def test_the_device_says_what_it_has_spent(tmp_path):
    training, lines = installed(private(tmp_path)), []
    device = Device(None, training, log=lines.append)
    device._run, device._version = "r", 0
    task, recipe = tiny_fleet.round_task(batch_size=8)
    header = {"run": "r", "round": 1, "version": 0, "since": 0, "expires_in": 60.0, "upload": "float32"}
    answer = asyncio.run(device.answer(Message("task", {**header, "job": task.header(recipe)})))
    assert answer.kind == "gradients"
    assert training.account.steps == 1
    assert lines[-1].endswith(f"; {training.account}")
    assert f"ε = {training.account.epsilon:.3f} of 50" in lines[-1]
