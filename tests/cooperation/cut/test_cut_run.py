"""A run over the cut that is interrupted, refused, or loses its cloud."""

from __future__ import annotations

import cut_runs
import pytest
import torch

from taskedge.cooperation.cut import cut_run
from taskedge.cooperation.cut.cut_messages import CutRefused
from taskedge.cooperation.transport.links import NoAnswer
from taskedge.delta.file import load
from taskedge.errors import InputError, TaskEdgeError
from taskedge.training.callbacks import Callback


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return cut_runs.files(tmp_path_factory.mktemp("cut"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def same(first, second) -> bool:
    values = [(linear.values, second.linears[name].values) for name, linear in first.linears.items()]
    values += [(value, second.full_parameters[name]) for name, value in first.full_parameters.items()]
    return all(torch.equal(one, other) for one, other in values)


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("cut", [{}, {"active_share": 0.3}], ids=["all", "share"])
def test_a_killed_run_is_resumed_to_the_same_bits(files, monkeypatch, cut):
    settings = {"max_columns": 4, "epochs": 4, "checkpoint_every": 4}
    whole, _ = files.run("whole.safetensors", cut, **settings)

    class Kill(Callback):
        def on_step_begin(self, state):
            if state.step == 14:
                raise Killed

    with monkeypatch.context() as patch:
        train = cut_run.train
        patch.setattr(
            cut_run, "train", lambda *args, callbacks, **rest: train(*args, callbacks=[*callbacks, Kill()], **rest)
        )
        with pytest.raises(Killed):
            files.run("killed.safetensors", cut, **settings)
    with pytest.raises(InputError, match="other settings"):
        files.run("killed.safetensors", cut, force=False, resume=True, **settings | {"lr": 0.5})
    again, _ = files.run("killed.safetensors", cut, force=False, resume=True, **settings)
    assert again.result.counted.training_passes == 8
    assert same(load(whole.result.out), load(again.result.out))
    assert not again.result.out.with_name("killed.safetensors.run").exists()


@pytest.mark.slow
def test_an_idle_module_keeps_what_it_has_learned(files):
    """Its values cross once, and the cloud adds them: the loss of a step is that of all values."""
    held_out = {"eval": files.folder / "eval.csv", "eval_every": 20, "lr": 0.3}
    done, recorded = files.run(cut={"active_share": 0.2}, max_columns=4, epochs=8, **held_out)
    parked = [
        name for _, answer in recorded.messages if answer.kind == "pass" for name in answer.tensors if "parked" in name
    ]
    assert parked
    delta = load(done.result.out)
    assert len(delta.linears) == 12
    assert all(bool(linear.values.any()) for linear in delta.linears.values())
    idle_parked, all_active = delta.provenance.training["held_out_loss"], done.result.measures["loss"]
    assert idle_parked == pytest.approx(all_active, abs=1e-6)


def test_a_cloud_that_loses_the_step_changes_no_bit(files):
    """The cloud drops a pass in its forward and in its backward part; the device runs it again."""
    plain, _ = files.run("plain.safetensors", max_columns=4)
    lost = []

    def lose(device, request, answer):
        wanted = request.kind in ("columns", "gradients", "states") and request.header["pass"] in (2, 4, 6)
        if wanted and request.kind not in lost:
            lost.append(request.kind)
            raise NoAnswer(f"{device!r} did not answer a {request.kind!r} message")
        return answer

    lines = []
    again, _ = files.run("again.safetensors", max_columns=4, change=lose, log=lines.append)
    assert set(lost) == {"columns", "states", "gradients"}
    assert again.result.counted.repeated == 3
    assert any("its step is dropped" in line for line in lines)
    assert same(load(plain.result.out), load(again.result.out))


def test_the_device_is_told_why_it_is_refused(files):
    with pytest.raises(TaskEdgeError, match="a batch that is none"):
        files.run(max_columns=4, change=_refusing)


def _refusing(device, request, answer):
    if answer.kind == "calibrate":
        raise CutRefused("a batch that is none")
    return answer


def test_a_run_that_cannot_be_made_leaves_the_output_alone(files):
    done, _ = files.run("kept.safetensors", max_columns=4)
    before = done.result.out.read_bytes()
    with pytest.raises(InputError, match="exists"):
        files.run("kept.safetensors", force=False, max_columns=4)
    assert done.result.out.read_bytes() == before


@pytest.mark.slow
def test_noise_is_accounted(files):
    pytest.importorskip("opacus")
    lines = []
    files.run(cut={"noise": 1.0, "clip_inputs": 5.0, "clip_gradient": 0.1}, max_columns=4, clip=0, log=lines.append)
    before, after = (line for line in lines if "ε = " in line)
    assert before.startswith("with this noise ε = ")
    assert after.endswith(before.removeprefix("with this noise "))  # as planned: no pass ran again


def test_nothing_leaves_if_no_epsilon_can_be_stated(files, monkeypatch):
    """The accountant is an extra: that it is missing is no news for the end of the run."""

    def missing(releases, delta):
        raise InputError("Opacus is not installed")

    monkeypatch.setattr("taskedge.cooperation.cut.noise.spent_epsilon", missing)
    seen = []

    def see(device, request, answer):
        seen.append(answer.kind)
        return answer

    noise = {"noise": 1.0, "clip_inputs": 5.0, "clip_gradient": 0.1}
    with pytest.raises(InputError, match="Opacus is not installed"):
        files.run("none.safetensors", noise, max_columns=4, clip=0, change=see)
    assert not {"calibrate", "pass"} & {*seen}
