"""What a run says of its training."""

from __future__ import annotations

from tiny_task import tune_config

from taskedge.profiling.arithmetic_speed import GemmSpeeds
from taskedge.training import run_provenance
from taskedge.training.run import prepare_run
from taskedge.training.run_provenance import training_provenance, training_text


def test_provenance_states_the_settings_and_the_data(task, tmp_path):
    run = prepare_run(tune_config(task, tmp_path / "o", lr=0.5, head_warmup=True, step_exponent=0.0), str)
    run.load()
    support = run.select()
    training = training_provenance(run, support, 12)
    assert training | {"lr": 0.5, "head_warmup": True, "steps": 12, "rows": 96, "label": "label"} == training
    assert training["text"] == ["text"]
    assert "weight_storage" not in training
    assert training_text(run, support, support.num_entries).endswith(
        "; learning rate 0.5 times 1.81 for entries, which are in 55.4% of the neurons, batches of 8"
    )


def test_bf16_is_named_where_it_pays_and_is_not_used(task, tmp_path, monkeypatch):
    config = tune_config(task, tmp_path / "o")
    for speeds, told in ((GemmSpeeds(69e9, 192e9), "2.8 times as fast"), (GemmSpeeds(69e9, 60e9), "")):
        monkeypatch.setattr(run_provenance, "processor_speeds", lambda speeds=speeds: speeds)
        hint = run_provenance.bf16_hint(config)
        assert told in hint
        assert bool(hint) == bool(told)
        assert run_provenance.bf16_hint(tune_config(task, tmp_path / "o", bf16=True)) == ""
