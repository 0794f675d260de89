"""What a machine does with models of three kinds: every figure follows from what was measured."""

from __future__ import annotations

import pytest
import tiny_task
import transformers

from taskedge.backbone.cost_model import block_table, dummy_inputs
from taskedge.backbone.shapes import shape_of
from taskedge.errors import InputError
from taskedge.profiling.device_benchmark import DeviceReport, RoundLink, bench_device
from taskedge.profiling.energy import EnergyMeter
from taskedge.profiling.profile_file import Energy
from taskedge.profiling.step_profile import Effort

LINK = RoundLink(uplink_bits_per_second=1e4, downlink_bits_per_second=4e4, bytes_per_value=4.0, local_steps=3)


def t5(folder):
    transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    made = [tiny_task.bert(folder / "bert"), tiny_task.llama(folder / "llama"), t5(folder / "t5")]
    return [shape_of(str(one)) for one in made]


@pytest.fixture(scope="module")
def report(shapes):
    said = []
    made = bench_device(
        shapes, LINK, Effort(warmup_steps=2, timed_steps=3), sequences=2, length=8, watts=5.0, log=said.append
    )
    assert [line for line in said if line.startswith("running")] == [
        f"running {shape.name} ({shape.kind})" for shape in shapes
    ]
    return made


@pytest.mark.slow
def test_one_of_each_kind(report):
    assert [(model.kind, model.weights) for model in report.models] == [
        ("encoder", "its own"),
        ("causal LM", "its own"),
        ("seq2seq", "random"),
    ]
    assert DeviceReport.model_validate_json(report.model_dump_json()) == report


def test_the_figures_belong_together(report, shapes):
    for model, shape in zip(report.models, shapes, strict=True):
        source = 2 * 8
        assert model.tokens_per_step == (2 * source if model.kind == "seq2seq" else source)
        assert model.forward_tokens_per_second == pytest.approx(model.tokens_per_step / model.forward_seconds)
        assert model.training_tokens_per_second == pytest.approx(model.tokens_per_step / model.step_seconds)
        skeleton = shape.skeleton()
        assert model.parameters == sum(p.numel() for p in skeleton.parameters())
        table = block_table(skeleton, dummy_inputs(skeleton, 1, 8), 0.01, "it")
        forward = (table.forward_flops.sum() + table.other_forward_flops) * source
        peak = model.gemm_peak_flops_per_second
        assert model.forward_mfu_ratio == pytest.approx(forward / model.forward_seconds / peak)
        whole = forward + table.backward_flops.sum() * source
        assert model.training_mfu_ratio == pytest.approx(whole / model.step_seconds / peak)
        assert model.energy.tokens_per_joule == pytest.approx(model.tokens_per_step / model.energy.joules_per_step)


def test_a_round(report):
    """Granularity: seconds of computing for one of sending, both ways."""
    for model in report.models:
        assert model.full_round.values == model.parameters
        assert model.sparse_round.values < model.parameters
        for one in (model.sparse_round, model.full_round):
            assert one.compute_seconds == pytest.approx(3 * model.step_seconds)
            assert one.communication_seconds == pytest.approx(one.values * 32 / 1e4 + one.values * 32 / 4e4)
            assert one.granularity_ratio == pytest.approx(one.compute_seconds / one.communication_seconds)


@pytest.mark.slow
def test_a_machine_without_a_counter(shapes, monkeypatch, tmp_path):
    nothing = tmp_path / "nothing"
    monkeypatch.setattr(
        "taskedge.profiling.step_profile.EnergyMeter", lambda watts: EnergyMeter(watts, rapl=nothing, rails=nothing)
    )
    made = bench_device(shapes[:1], LINK, Effort(warmup_steps=2, timed_steps=3), sequences=2, length=8)
    assert made.models[0].energy == Energy(source="none")


def test_a_model_that_takes_no_tokens(tmp_path):
    with pytest.raises(InputError, match=r"has no form as|takes no token ids"):
        bench_device([shape_of(str(tiny_task.vit(tmp_path / "vit")))], LINK, Effort(), sequences=1, length=8)
