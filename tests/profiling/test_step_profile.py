from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

import taskedge as te
from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.errors import InputError
from taskedge.profiling.process_memory import machine_bytes, peak_bytes, reset_peak
from taskedge.profiling.profile_file import Profile, read_profile
from taskedge.profiling.step_profile import Effort, default_depths, gemm_peak, measure
from taskedge.profiling.training_steps import Training

CPU = torch.device("cpu")


def tiny(layers: int = 4):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return transformers.AutoModel.from_config(config)


def sparse():
    model = tiny()
    inputs = dummy_inputs(model, 2, 16)
    te.install(model, te.select(model, [inputs], per_neuron=1), trainable=[])
    return model, inputs


@pytest.fixture(scope="module")
def profile() -> Profile:
    shape = tiny()
    table = block_table(shape, dummy_inputs(shape, 1, 16), 0.01, "tiny")
    model, inputs = sparse()
    return measure(Training(model, "1 entries per neuron"), table, inputs, effort=Effort(warm=2, steps=3), watts=5.0)


def test_a_profile_covers_every_depth(profile) -> None:
    assert [row.depth for row in profile.measured] == [1, 2, 4]
    assert len(profile.step_seconds) == len(profile.peak_bytes) == 4
    assert (np.diff(profile.step_seconds) >= 0).all()
    assert (np.diff(profile.peak_bytes) >= 0).all()
    assert profile.tokens_per_step == 32
    assert profile.energy.source in ("user watts", "rapl", "nvml", "jetson")
    assert profile.tokens_per_second == pytest.approx(32 / profile.step_seconds[-1])


def test_a_profile_is_a_file(profile, tmp_path) -> None:
    path = tmp_path / "p.json"
    path.write_text(profile.model_dump_json())
    assert read_profile(path) == profile


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": "taskedge-profile-9"}, "format"),
        ({"step_seconds": [-1.0, 1.0, 1.0, 1.0]}, "greater than 0"),
        ({"step_seconds": [2.0, 1.0, 1.0, 1.0]}, "must not fall with depth"),
        ({"peak_bytes": [1.0]}, "one entry per depth"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_tampered_profile_is_refused(profile, tmp_path, change, part) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile.model_dump() | change))
    with pytest.raises(InputError, match=part):
        read_profile(path)


def test_only_the_blocks_down_to_the_depth_train() -> None:
    model, inputs = sparse()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "offsets" in name}
    training = Training(model, "x")
    with training.reaching(2) as step:
        step(inputs)
    changed = {
        name.split(".")[2]
        for name, p in model.named_parameters()
        if name in before and not torch.equal(p, before[name])
    }
    assert changed == {"3", "2"}
    assert not any(p.requires_grad for p in model.parameters())


def test_a_plain_model_trains_too() -> None:
    model = tiny(2)
    training = Training(model, "all weights")
    with training.reaching(1) as step:
        step(dummy_inputs(model, 1, 8))
        assert not model.encoder.layer[0].attention.self.query.weight.requires_grad
        assert model.encoder.layer[1].attention.self.query.weight.requires_grad


def test_what_cannot_be_measured() -> None:
    with pytest.raises(InputError, match="no repeated blocks"):
        Training(torch.nn.Linear(2, 2), "x")
    with pytest.raises(InputError, match=r"nothing is trainable in the blocks at depth \[2, 1\]"):
        Training(tiny(2).requires_grad_(False), "x")
    model, inputs = sparse()
    table = block_table(tiny(), inputs, 0.01, "tiny")
    with pytest.raises(InputError, match="the model has 4 layers"):
        measure(Training(model, "x"), table, inputs, [5])


def test_processor_seconds_need_one_thread(monkeypatch) -> None:
    model, inputs = sparse()
    table = block_table(tiny(), inputs, 0.01, "tiny")
    effort = Effort(steps=3, clock="cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(InputError, match="OMP_NUM_THREADS=1"):
        measure(Training(model, "x"), table, inputs, effort=effort)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, inputs = sparse()
    assert measure(Training(model, "x"), table, inputs, effort=effort).clock == "cpu"


def test_default_depths() -> None:
    assert default_depths(12) == [1, 6, 12]
    assert default_depths(2) == [1, 2]


def test_the_machine_has_speed_and_memory() -> None:
    assert gemm_peak(CPU, torch.float32) > 0
    assert machine_bytes(CPU) > 1e8


def test_the_peak_is_seen_after_it_has_passed() -> None:
    reset_peak(CPU)
    before = peak_bytes(CPU)
    held = torch.ones(50_000_000)
    del held
    assert peak_bytes(CPU) - before > 150e6
