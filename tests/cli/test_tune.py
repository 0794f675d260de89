"""``taskedge tune``: options, output, and messages for mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import tiny_task
import torch
from tiny_task import snapshot, tuning

import taskedge as te

FAULTS = {
    "no such file": (["--train", "train.csf"], "unknown suffix '.csf'; did you mean '.csv'?"),
    "a file that is not there": (["--train", "trian.csv"], "no file trian.csv; did you mean 'train.csv'?"),
    "a column that is not there": (["--label", "stars"], "no column 'stars' (columns: 'text', 'label')"),
    "a text column that is not there": (["--text", "txt"], "no column 'txt'; did you mean 'text'?"),
    "the label as a text": (["--text", "label"], "named as the label and as a text"),
    "no rows": (["--train", "head.csv"], "head.csv has columns but no rows"),
    "nothing": (["--train", "nothing.csv"], "nothing.csv is empty"),
    "one class": (["--train", "one.csv"], "every row has the label 'pos'; training needs at least two classes"),
    "an unknown label": (["--eval", "three.csv"], "three.csv, row 3: the label 'meh' does not occur in training"),
    "no UTF-8": (["--train", "latin.csv"], "latin.csv, row 2: byte 0xe9 is not UTF-8"),
    "no eval file": (["--eval", "nothere.csv"], "no file nothere.csv"),
    "no model in the folder": (["--model", "empty"], "empty: the folder holds no model: it has no config.json"),
    "no folder": (["--model", "./nothere"], "./nothere: no such folder: name a local model folder or a hub id"),
    "a hub id": (["--model", "no-such/model"], "no-such/model: there is no such folder, and the hub does not give"),
    "no budget": (["--budget", "0"], "--budget: budget '0' is not above 0"),
    "a negative budget": (["--budget=-1%"], "--budget: budget '-1%' is not above 0"),
    "over all": (["--budget", "150%"], "and at most 100%"),
    "over capacity": (["--budget", "90%"], "is more than the 4,096 that 12 linears can carry: lower the budget"),
    "under one entry": (["--budget", "0.001%"], "a budget of 0 entries trains nothing"),
    "over the inputs": (["--per-neuron", "99"], "99 entries per neuron are more than the 32 inputs"),
    "an unknown rule": (["--rule", "gradeint"], "--rule: unknown rule 'gradeint'; did you mean 'gradient'?"),
    "an unknown allocation": (["--allocation", "globals"], "unknown allocation 'globals'; did you mean 'global'?"),
    "a pattern and a budget": (
        ["--allocation", "2:4", "--budget", "1%"],
        "is itself the budget: leave out the budget ('1%')",
    ),
    "no pattern": (["--allocation", "4:4"], "--allocation: the pattern '4:4' keeps 4 of every 4 inputs"),
    "an unknown key": (["--config", "key.toml"], "key.toml: epoch: unknown setting; did you mean 'epochs'?"),
    "no settings file": (["--config", "none.toml"], "none.toml: cannot be read"),
    "an output that is there": (["--out", "train.csv"], "train.csv exists: name another file with --out, or replace"),
    "an output that is a folder": (["--out", "empty"], "empty is a folder"),
    "an output nowhere": (["--out", "no/where"], "no/where: there is no folder no: make it, or name another"),
    "a budget for LoRA": (
        ["--form", "lora"],
        "--budget: has no effect with form 'lora', only with sparse, sparse_lora, sparse_t",
    ),
    "a rank for entries": (
        ["--rank", "4"],
        "--rank: has no effect with form 'sparse', only with sparse_lora, sparse_plus_low_rank, lora and filtered",
    ),
    "a length without a text": (["--max-length", "2"], "--max-length 2 leaves no token of a text"),
    "labels in doubt": (["--train", "doubt.csv", "--strict"], "doubt.csv: 1 class has one row only: 'odd'"),
    "nothing to resume": (["--resume"], "there is no interrupted run task.safetensors.run, so there is nothing to"),
    "several at once": (["--rule", "x", "--lr", "0", "--budget", "0"], "3 settings cannot be used:\n  --budget"),
}

COVERAGE = "entries can be in 4,096 of 4,448 parameters of the blocks (92.1%); the others are 352 biases and norms"


@pytest.fixture
def mistakes(here, task):
    """Return a folder of files, each with one fault."""
    tiny_task.table(here / "train.csv", tiny_task.rows(16))
    (here / "head.csv").write_text("text,label\n")
    (here / "nothing.csv").write_text("")
    tiny_task.table(here / "one.csv", [("good", "pos"), ("fine", "pos")])
    tiny_task.table(here / "three.csv", [("good", "pos"), ("bad", "neg"), ("long", "meh")])
    tiny_task.table(here / "doubt.csv", [*tiny_task.rows(8), ("good", "odd")])
    (here / "latin.csv").write_bytes("text,label\ngood,pos\ncafé,neg\n".encode("latin-1"))
    (here / "key.toml").write_text("epoch = 3\n")
    (here / "empty").mkdir()
    return here


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_gets_one_message_and_writes_nothing(taskedge, task, mistakes, monkeypatch, fault):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    extra, told = FAULTS[fault]
    before = snapshot(mistakes)
    replaced = [] if "--text" not in extra else extra
    arguments = tuning(task, "--train", "train.csv", *([] if replaced else extra))
    if replaced:  # --text may be given several times, so it is replaced rather than added
        arguments[arguments.index("--text") + 1] = extra[1]
    ended = taskedge(*arguments)
    assert ended.code == 2
    assert told in ended.err
    assert ended.err.count("taskedge: ") == 1
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert snapshot(mistakes) == before


def test_a_model_without_linears(taskedge, task, here, monkeypatch):
    from taskedge.backbone import layers

    monkeypatch.setattr(layers, "as_linear", lambda name, module: None)
    ended = taskedge(*tuning(task))
    assert ended.code == 2
    assert "BertForSequenceClassification has no linear layers" in ended.err
    assert snapshot(here) == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tune", "--modle", "x"], "No such option '--modle'. (Did you mean one of: '--model'"),
        (["tune", "--epochs", "many"], "'many' is no number"),
        (["tune", "--values", "fp16"], "'fp16' is not one of 'fp32', 'bf16'"),
        (["tune", "--lr"], "Option '--lr' requires an argument"),
        (["tune", "train.csv"], "Got unexpected extra argument (train.csv)"),
        (
            ["tune"],
            "2 settings cannot be used:\n  --model is needed: Base model: a local folder, a hub id or a GGUF file\n",
        ),
    ],
)
def test_wrong_usage(taskedge, here, arguments, told):
    ended = taskedge(*arguments)
    assert ended.code == 2
    assert told in ended.err.replace("No such option: --modle Did you mean --model?", told)
    assert ended.out == ""


def test_what_a_run_says(tuned, taskedge, task, here):
    ended = taskedge(*tuning(task, "--eval", task / "eval.csv"))
    assert ended.code == 0
    first, exported, second, third = ended.out.splitlines()
    assert exported.startswith("exported as LoRA: rank ")
    assert first == "task.safetensors: 124 entries (2.002%) and a head of 34 parameters"
    assert second.startswith(f"{(here / 'task.safetensors').stat().st_size:,} bytes, 12 steps in ")
    assert third.startswith(f"on {task / 'eval.csv'}: accuracy 0.")
    said = [line for line in ended.err.replace("\r", "\n").splitlines() if line and not line.startswith("training: ")]
    said = [line for line in said if not line.startswith("hint: products in bf16")]  # on some processors
    assert said[:-1] == [
        "task: text-classification, from text 'text' and label 'label'",
        f"{task / 'train.csv'}: CSV in UTF-8, separated by ','; 96 rows; columns 'text', 'label'",
        f"{task / 'eval.csv'}: CSV in UTF-8, separated by ','; 40 rows; columns 'text', 'label'",
        "96 rows, 2 classes: 'neg' 48, 'pos' 48",
        "40 held-out rows, 0 of which are in the training data too",
        f"loading {task / 'base'}",
        "texts are cut at 64 tokens: the model has no more positions",
        COVERAGE,
        "selecting weights by rule 'taskedge' on 8 batches",
    ]
    assert said[-1].startswith("training 124 entries (2.0019% of 6,194 parameters) in ")
    assert said[-1].endswith(
        "; in full: a head of 34 parameters; learning rate 0.01 times 1.81 for entries, which are in 55.4% of the "
        "neurons, batches of 8"
    )
    assert snapshot(here).keys() == {"task.safetensors"}


def test_json_is_all_that_is_on_standard_output(tuned):
    _, said = tuned
    assert said.keys() == {
        "out", "task", "form", "lr", "entries", "share", "low_rank", "trained", "head", "steps", "train_loss",
        "seconds", "seconds_per_step", "cpu_seconds_per_step", "peak_memory", "run_peak_memory", "predicted",
        "file_bytes", "quality",
    }  # fmt: skip
    assert said["predicted"] is None
    assert 0 < said["seconds_per_step"] < said["seconds"]
    assert said["cpu_seconds_per_step"] > 0
    assert said["trained"] == said["entries"]
    assert said["low_rank"] == 0
    assert said["quality"].keys() == {"rows", "accuracy", "macro_f1", "loss"}
    assert said["steps"] == 36


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_says_what_a_run_trains(taskedge, task, here):
    ended = taskedge(*tuning(task, "--dry-run", "--json"))
    planned = json.loads(ended.out)
    shown = taskedge(*tuning(task, "--dry-run"))
    assert snapshot(here) == {}
    done = json.loads(taskedge(*tuning(task, "--json")).out)
    assert (planned["entries"], planned["head_parameters"], planned["steps"], planned["share"]) == (
        done["entries"], done["head"], done["steps"], done["share"],
    )  # fmt: skip
    assert "124 of 6,194 parameters (2.0019%) by rule 'taskedge', and a head of 34; text-class" in shown.out
    assert "text-classification, 2 classes, 96 rows" in shown.out
    assert "12 steps; `taskedge estimate` with the same options measures time and memory" in shown.out
    assert shown.out.endswith("nothing was written\n")
    for linear in planned["linears"]:
        assert linear["name"] in shown.out


@pytest.mark.slow
def test_settings_from_a_file(taskedge, task, here):
    (here / "run.toml").write_text(
        f"model = '{task / 'base'}'\ntrain = '{task / 'train.csv'}'\ntext = 'text'\nlabel = 'label'\n"
        "budget = 0.02\nbatch-size = 8\nepochs = 1\nthreads = 1\nlr = 1.0\nout = 'from-file'\n"
    )
    assert taskedge("tune", "--config", "run.toml", "--lr", "1e-2").code == 0
    assert taskedge(*tuning(task, "--out", "from-flags")).code == 0
    from_file, from_flags = (json.loads(taskedge("info", name, "--json").out) for name in ("from-file", "from-flags"))
    assert from_file["provenance"].pop("budget") == "0.02"
    assert from_flags["provenance"].pop("budget") == "2%"
    assert from_file["provenance"] == from_flags["provenance"]


@pytest.mark.slow
def test_an_output_is_replaced_by_force(taskedge, task, here):
    (here / "task.safetensors").write_text("precious")
    assert taskedge(*tuning(task)).code == 2
    assert (here / "task.safetensors").read_text() == "precious"
    assert taskedge(*tuning(task, "--lr", "1e30", "--force")).code == 2  # diverges: the file stays
    assert (here / "task.safetensors").read_text() == "precious"
    assert taskedge(*tuning(task, "--force")).code == 0
    assert taskedge("info", "task.safetensors").code == 0


@pytest.mark.slow
def test_a_link_at_the_output_stays_one(taskedge, task, here):
    (here / "deep").mkdir()
    (here / "task.safetensors").symlink_to("deep/target")
    assert taskedge(*tuning(task)).code == 0
    assert (here / "task.safetensors").is_symlink()
    assert taskedge("info", "deep/target").code == 0
    assert set(snapshot(here)) == {"task.safetensors", "deep", "deep/target"}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2", "own"])
def test_other_models_through_all_verbs(taskedge, task, here, model):
    done = json.loads(taskedge(*tuning(task, "--eval", task / "eval.csv", "--json", model=model)).out)
    measured = json.loads(taskedge("eval", "task.safetensors", "--data", task / "eval.csv", "--json").out)
    assert measured["accuracy"] == done["quality"]["accuracy"]
    assert taskedge("merge", "task.safetensors", "--out", "merged").code == 0
    assert taskedge("info", "task.safetensors").code == 0


def test_long_texts_are_cut_at_the_positions_of_the_base(taskedge, task, here):
    tiny_task.table(here / "long.csv", [("good film " * 90, "pos"), ("bad film " * 90, "neg")] * 4)
    assert taskedge(*tuning(task, "--train", "long.csv")).code == 0
    assert json.loads(taskedge("info", "task.safetensors", "--json").out)["provenance"]["training"]["max_length"] == 64
    assert taskedge("eval", "task.safetensors", "--data", "long.csv").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["taskedge", "fisher"])
def test_a_pattern_needs_no_budget_and_holds_in_the_file(taskedge, task, here, rule):
    words = tuning(task, "--allocation", "2:4", "--rule", rule, "--out", "two.safetensors", "--json")
    at = words.index("--budget")
    ended = taskedge(*words[:at], *words[at + 2 :])
    assert ended.code == 0, ended.err
    about = json.loads(taskedge("info", "two.safetensors", "--json").out)
    assert about["pattern"] == {"name": "2:4", "linears": 12, "rest_groups": {}}
    assert about["entries"] == json.loads(ended.out)["entries"] == 4096 // 2
    assert (about["provenance"]["allocation"], about["provenance"]["budget"]) == ("2:4", "2:4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rung",
    [
        ["--depth", 1],
        ["--recompute", "blocks"],
        ["--recompute", "inputs"],
        ["--micro-batch", 4],
        ["--rotate", 2],
        ["--optimizer", "mezo", "--lr", 1e-3],
        ["--weight-storage", "int8"],
        ["--weight-storage", "int4"],
        ["--weight-storage", "mmap"],
        ["--rule", "gradient", "--weight-storage", "mmap", "--recompute", "blocks"],
    ],
    ids=lambda rung: rung[1],
)
def test_every_rung(taskedge, task, here, rung):
    planned = taskedge(*tuning(task, *rung, "--dry-run", "--json"))
    assert planned.code == 0, planned.err
    ended = taskedge(*tuning(task, *rung, "--eval", task / "eval.csv", "--json"))
    assert ended.code == 0, ended.err
    done, plan = json.loads(ended.out), json.loads(planned.out)
    assert (done["steps"], done["entries"]) == (plan["steps"], plan["entries"]) == (12, 124)
    said = [line for line in ended.err.splitlines() if line.startswith("zeroth order (MeZO)")]
    assert bool(said) == ("mezo" in rung)
    about = json.loads(taskedge("info", "task.safetensors", "--json").out)
    if "--depth" in rung:
        assert about["provenance"]["training"]["depth"] == 1
        assert all("layer.1." in linear["name"] for linear in plan["linears"])


@pytest.mark.slow
def test_recomputation_ends_with_the_same_bits(taskedge, task, here):
    for how in ("none", "blocks", "inputs"):
        rung = ["--recompute", how, "--micro-batch", 4]  # with either, the kernel is the portable one
        assert taskedge(*tuning(task, *rung, "--out", f"{how}.safetensors")).code == 0
    none, blocks, inputs = (te.load(here / f"{how}.safetensors") for how in ("none", "blocks", "inputs"))
    for other in (blocks, inputs):
        for name, linear in none.linears.items():
            assert torch.equal(linear.values, other.linears[name].values)


@pytest.mark.slow
def test_a_mapped_base_ends_with_the_same_bits(taskedge, task, here):
    ended = taskedge(*tuning(task, "--weight-storage", "mmap", "--out", "mmap.safetensors"))
    assert re.search(r"[\d.]+ of [\d.]+ MB of the base are mapped from \S+model.safetensors", ended.err)
    assert taskedge(*tuning(task, "--out", "resident.safetensors")).code == 0
    loaded, mapped = (te.load(here / f"{how}.safetensors") for how in ("resident", "mmap"))
    for name, linear in loaded.linears.items():
        assert torch.equal(linear.values, mapped.linears[name].values)
        assert linear.base_digest == mapped.linears[name].base_digest
    assert all(torch.equal(tensor, mapped.full_parameters[name]) for name, tensor in loaded.full_parameters.items())


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["int8", "int4"])
def test_a_coded_base_through_all_verbs(taskedge, task, here, coding):
    ended = taskedge(*tuning(task, "--weight-storage", coding, "--eval", task / "eval.csv", "--json"))
    assert f"the weights of 12 linears are stored as {coding}" in ended.err
    done = json.loads(ended.out)
    measured = json.loads(taskedge("eval", "task.safetensors", "--data", task / "eval.csv", "--json").out)
    del measured["by_class"]
    assert measured == done["quality"]
    for base in ("resident", "mmap", "int8", "int4"):
        ended = taskedge("predict", "task.safetensors", "--data", task / "eval.csv", "--weight-storage", base)
        assert ended.code == 0, ended.err
    assert taskedge("merge", "task.safetensors", "--out", "merged").code == 0
    about = json.loads(taskedge("info", "task.safetensors", "--json").out)
    assert about["base_dtype"] == about["provenance"]["training"]["weight_storage"] == coding


def test_labels_with_blanks_and_in_another_unicode_form(taskedge, task, here):
    """They are the classes that they look like, in training, evaluation and for the measures of both."""
    names = {"neg": "the\u0301", "pos": "caf\u00e9 "}
    tiny_task.table(here / "train.csv", [(text, names[label].strip()) for text, label in tiny_task.rows(32)])
    names = {"neg": "th\u00e9 ", "pos": "cafe\u0301"}
    tiny_task.table(here / "eval.csv", [(text, names[label]) for text, label in tiny_task.rows(12, seed=1)])
    ended = taskedge(*tuning(task, "--train", "train.csv", "--eval", "eval.csv"))
    assert ended.code == 0, ended.err
    assert "32 rows, 2 classes: " in ended.err
    assert "12 held-out rows, 0 of which are in the training data too" in ended.err
    assert "warning" not in ended.err
    assert te.load(here / "task.safetensors").provenance.labels == ("caf\u00e9", "the\u0301")
    assert taskedge("eval", "task.safetensors", "--data", "eval.csv").code == 0


@pytest.mark.slow
def test_a_killed_run_over_int8_goes_on_to_the_same_bits(task, here):
    def killed():
        from taskedge.training import checkpoint

        write = checkpoint.write

        def once(*given):
            write(*given)
            os._exit(9)

        checkpoint.write = once

    words = ["--weight-storage", "int8", "--checkpoint-every", 5]
    assert tiny_task.forked(tuning(task, *words, "--out", "whole")).code == 0
    assert tiny_task.forked(tuning(task, *words, "--out", "cut"), killed).code == 9
    assert tiny_task.forked(tuning(task, *words, "--out", "cut", "--resume")).code == 0
    assert (here / "whole").read_bytes() == (here / "cut").read_bytes()


def test_a_base_that_changes_while_it_is_mapped(taskedge, task, here, monkeypatch):
    """The run ends without a delta, because its result is not reliable."""
    from taskedge.training import tune

    folder, fit = shutil.copytree(task / "base", here / "base"), tune.train

    def then_changed(*given, **named):
        done = fit(*given, **named)
        os.utime(folder / "model.safetensors", (1, 1))
        return done

    monkeypatch.setattr(tune, "train", then_changed)
    ended = taskedge(*tuning(task, "--weight-storage", "mmap", "--model", folder))
    assert ended.code == 2
    assert "model.safetensors was changed while the model was mapped from it" in ended.err
    assert not (here / "task.safetensors").exists()
