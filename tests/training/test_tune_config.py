"""Settings of tune: flags override the file, the file overrides defaults; all faults are reported at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import tiny_task

from taskedge.backbone.storage import WEIGHT_STORAGE
from taskedge.errors import InputError
from taskedge.training.config import load_config
from taskedge.training.trainer_config import TrainerConfig
from taskedge.training.tune_config import TuneConfig

NEEDED = {"model": "m", "train": "t.csv", "text": ["text"], "label": "label"}


def test_defaults_stand_in_one_place():
    settings = load_config(TuneConfig, NEEDED)
    assert settings.trainer_config() == TrainerConfig(checkpoint_every=25)
    assert (settings.budget, settings.rule, settings.allocation) == ("0.1%", "taskedge", "per_neuron")
    assert settings.out == Path("task.safetensors")
    assert all(field.description for field in TuneConfig.model_fields.values())


def test_what_means_nothing_in_a_form_is_refused_all_at_once(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('form = "lora"\nrule = "random"\nmax-columns = 3\n')
    with pytest.raises(InputError) as caught:
        load_config(TuneConfig, {**NEEDED, "budget": "1%", "step": "plain"}, config)
    first, *faults = str(caught.value).splitlines()
    assert first == "4 settings cannot be used:"
    means = (
        "has no effect with form 'lora', only with sparse, sparse_lora, sparse_taps and sparse_plus_low_rank: "
        "leave it out"
    )
    assert {fault.strip() for fault in faults} == {
        f"--budget: {means}",
        f"--step: {means}",
        f"{config}: rule: {means}",
        f"{config}: max_columns: {means}",
    }
    for name in ("rank", "alpha"):
        with pytest.raises(
            InputError, match=f"--{name}: has no effect with form 'sparse', only with sparse_lora, sparse_plus_low_rank"
        ):
            load_config(TuneConfig, {**NEEDED, name: 2})


def test_flags_over_the_file_over_defaults(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        'model = "m"\ntrain = "t.csv"\ntext = "title"\nlabel = "stars"\nlr = 0.5\nbatch-size = 4\nmax_length = 9\n'
    )
    settings = load_config(TuneConfig, {"lr": 0.25}, config)
    assert (settings.lr, settings.batch_size, settings.max_length, settings.epochs) == (0.25, 4, 9, 3.0)
    assert settings.text == ["title"]
    assert load_config(TuneConfig, {"text": ["a", "b"]}, config).text == ["a", "b"]


@pytest.mark.parametrize("written", ["0.001", '"0.001"', '"0.1%"', "1e-3"])
def test_a_budget_may_be_a_number(tmp_path, written):
    config = tmp_path / "run.toml"
    config.write_text(f"budget = {written}\n")
    assert load_config(TuneConfig, NEEDED, config).budget in ("0.001", "0.1%")


def test_all_faults_at_once_each_with_its_place(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('epoch = 3\nlr = "fast"\nbatch-size = 0\nrule = "taskegde"\n')
    with pytest.raises(InputError) as caught:
        load_config(TuneConfig, {"model": "m", "allocation": "pre_layer", "budget": "0", "warmup": 1.0}, config)
    first, *faults = str(caught.value).splitlines()
    assert first == "8 settings cannot be used:"
    for fault in (
        "--train is needed: Training data",
        "--budget: budget '0' is not above 0",
        f"{config}: rule: unknown rule 'taskegde'; did you mean 'taskedge'? (known: ",
        "--allocation: unknown allocation 'pre_layer'; did you mean 'per_layer'? (known: ",
        f"{config}: lr: must be a valid number",
        f"{config}: batch_size: must be greater than or equal to 1 (given: 0)",
        "--warmup: must be less than 1 (given: 1.0)",
        f"{config}: epoch: unknown setting; did you mean 'epochs'?",
    ):
        assert [line for line in faults if line.startswith(f"  {fault}")], fault


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"budget": "150%"}, "--budget: budget '150%' is not above 0"),
        ({"budget": "much"}, "--budget: budget 'much' is not a share: write '0.1%' or 0.001"),
        ({"lr": float("inf")}, "--lr: must be a finite number"),
        ({"epochs": float("nan")}, "--epochs: must be"),
        ({"step": "activations"}, "--step: must be 'plain' or 'activation'"),
        ({"text": []}, "--text: List should have at least 1 item"),
        (
            {"form": "lara"},
            "--form: must be 'sparse', 'sparse_lora', 'sparse_plus_low_rank', 'lora', 'taps', 'sparse_taps', "
            "'filtered' or 'prompt'",
        ),
        ({"form": "lora", "rank": 0}, "--rank: must be greater than or equal to 1"),
        ({"form": "lora", "alpha": 0}, "--alpha: must be greater than 0"),
        ({"lr": None, "form": "lora", "epochs": 0}, "--epochs: must be greater than 0"),
        (
            {"task": "text-clasification"},
            "--task: unknown task 'text-clasification'; did you mean 'text-classification'?",
        ),
        ({"dtype": "fp16"}, "--dtype: must be 'auto', 'fp32', 'bf16' or 'fastest'"),
        ({"seed": -1}, "--seed: must be greater than or equal to 0"),
        ({"per_neuron": 0}, "--per-neuron: must be greater than or equal to 1"),
        ({"learning_rate": 1}, "--learning-rate: unknown setting"),
    ],
)
def test_one_fault_is_one_line(given, told):
    with pytest.raises(InputError) as caught:
        load_config(TuneConfig, {**NEEDED, **given})
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"lr = \n", "not TOML: "),
        (b'model = "\xff"\n', "not TOML: "),
        (b"batch-size = 1\nbatch_size = 2\n", "batch-size is set twice, with dashes and with underscores"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, content, told):
    config = tmp_path / "run.toml"
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml: ") as caught:
        load_config(TuneConfig, NEEDED, config)
    assert told in str(caught.value)


def test_tensorboard_must_be_there(monkeypatch):
    monkeypatch.setattr("taskedge.training.tune_config.find_spec", lambda name: None)
    with pytest.raises(InputError, match="--tensorboard: TensorBoard is not installed: pip install tensorboard"):
        load_config(TuneConfig, {**NEEDED, "tensorboard": True})


def test_settings_are_read_without_torch():
    """Help and faults in flags are printed at once."""
    code = "import sys, taskedge.cli.tune\nassert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=tiny_task.environment(), check=True)


def test_the_help_names_every_rule_and_allocation():
    from taskedge.selection.allocations import ALLOCATIONS
    from taskedge.selection.rules import RULES
    from taskedge.training.tasks import TASKS

    for field, known in (("rule", RULES), ("allocation", ALLOCATIONS), ("task", TASKS)):
        description = TuneConfig.model_fields[field].description
        assert all(name in description for name in known.titles), field


def test_the_default_allocation_is_that_of_the_library():
    from taskedge.selection.allocations import DEFAULT_ALLOCATION

    assert TuneConfig.model_fields["allocation"].default == DEFAULT_ALLOCATION


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, {"budget": "0.1%", "rule": "taskedge", "allocation": "per_neuron"}),
        ({"per_neuron": 2}, {"per_neuron": 2, "budget": None}),
        ({"allocation": "2:4"}, {"allocation": "2:4", "budget": None}),
        ({"rule": "spt"}, {"rule": "spt", "allocation": None, "budget": "0.1%"}),
        ({"rule": "spt", "budget": "1%", "rank": 4}, {"allocation": None, "budget": "1%", "rank": 4}),
    ],
)
def test_a_default_that_has_no_say_is_not_told(given, told):
    found = load_config(TuneConfig, {**NEEDED, **given}).select_kwargs()
    assert found | told == found
    rank = {"rank"} if given.get("rule") == "spt" else set()
    assert set(found) == {"budget", "per_neuron", "rule", "allocation", "max_columns", "seed"} | rank


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"allocation": "2:4", "budget": "1%"},
            "the allocation '2:4' is itself the budget: leave out the budget ('1%')",
        ),
        (
            {"allocation": "1:8", "max_columns": 3},
            "the allocation '1:8' is itself the budget: leave out the maximum number of columns (3)",
        ),
        ({"allocation": "4:2"}, "--allocation: the pattern '4:2' keeps 4 of every 2 inputs: N must be at least 1"),
        ({"allocation": "2:x"}, "--allocation: '2:x' is not an N:M pattern: write two whole numbers, such as '2:4'"),
        (
            {"rule": "spt", "per_neuron": 1},
            "the rule 'spt' spreads its budget itself: leave out the number of entries per neuron (1)",
        ),
        (
            {"rule": "spt", "allocation": "per_neuron"},
            "the rule 'spt' spreads its budget itself: leave out the allocation ('per_neuron')",
        ),
    ],
)
def test_settings_that_leave_each_other_no_say(tmp_path, given, told):
    with pytest.raises(InputError) as caught:
        load_config(TuneConfig, {**NEEDED, **given})
    assert str(caught.value).startswith(told)
    config = tmp_path / "run.toml"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in given.items()))
    with pytest.raises(InputError, match=r"leave out|pattern"):
        load_config(TuneConfig, NEEDED, config)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"micro_batch": 5}, "a micro-batch of 5 rows does not divide a batch of 16: give one of 1, 2, 4, 8, 16"),
        ({"rotate": 5, "regrow": 5}, "--regrow moves entries of all blocks, --rotate trains one block at a time"),
        (
            {"optimizer": "mezo"},
            "no default suits all tasks: give --lr",
        ),
        (
            {"optimizer": "mezo", "lr": 1e-3, "recompute": "blocks"},
            "--recompute has no effect with --optimizer mezo: leave it out",
        ),
        ({"optimizer": "mezo", "lr": 1e-3, "regrow": 3}, "--regrow has no effect with --optimizer mezo: leave it out"),
        ({"optimizer": "mezo", "lr": 1e-3, "clip": 1.0}, "--clip has no effect with --optimizer mezo: leave it out"),
        ({"perturbation": 1e-2}, "--perturbation has no effect with --optimizer adamw: leave it out"),
    ],
)
def test_rungs_that_do_not_go_together(given, told):
    with pytest.raises(InputError) as caught:
        load_config(TuneConfig, {**NEEDED, **given})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"weight_storage": "int8", "form": "lora"}, "--weight-storage int8 does not support --form lora"),
        ({"weight_storage": "mmap", "rule": "spt"}, "--weight-storage mmap does not support --rule spt"),
        ({"weight_storage": "int8", "rule": "fisher"}, "--weight-storage int8 does not support --rule fisher"),
        *(
            ({"weight_storage": "int8", "rule": rule}, f"--weight-storage int8 does not support --rule {rule}")
            for rule in ("pursuit", "pursuit_t", "snip", "ratio", "fisher_bottom", "first_batch", "change")
        ),
        ({"weight_storage": "mmap", "rule": "change"}, "--weight-storage mmap does not support --rule change"),
        ({"weight_storage": "mmap", "regrow": 5}, "--weight-storage mmap does not support --regrow"),
        ({"weight_storage": "int2"}, "--weight-storage: must be 'resident', 'mmap', 'int8' or 'int4'"),
    ],
)
def test_what_a_base_that_is_only_read_cannot_do(given, told):
    with pytest.raises(InputError) as caught:
        load_config(TuneConfig, {**NEEDED, **given})
    assert told in str(caught.value)


def test_a_mapped_base_may_be_selected_from_by_gradients():
    for rule in ("fisher", "pursuit"):
        assert load_config(TuneConfig, {**NEEDED, "weight_storage": "mmap", "rule": rule}).weight_storage == "mmap"
    for storage in ("mmap", "int8", "int4"):
        load_config(TuneConfig, {**NEEDED, "weight_storage": storage, "rule": "principal:4"})
    assert get_args(TuneConfig.model_fields["weight_storage"].annotation) == WEIGHT_STORAGE
