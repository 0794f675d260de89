"""Every kind of task goes through all verbs, in fp32 and in bf16, and is resumed to the same bytes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import signal
from dataclasses import dataclass

import pytest
import tiny_task
import torch
import transformers
from tiny_task import forked, snapshot

from taskedge.backbone.loading import PRETRAINED_HEAD_TASKS, TASK_AUTO_CLASSES
from taskedge.delta.file import load
from taskedge.delta.load_with_delta import load_with_delta
from taskedge.training import checkpoint
from taskedge.training.inference import prepare_inference


@dataclass(frozen=True)
class Kind:
    """A base, its data, and the expected output."""

    model: str
    train: str
    held: str
    task: str
    measures: set[str]
    answer: tuple[str, ...]
    more: tuple[str, ...] = ()


CLASSES = {"rows", "accuracy", "macro_f1", "loss"}
WORDS = {"rows", "loss", "perplexity"}
KINDS = {
    "numbers": Kind(
        "bert", "ratings.csv", "ratings2.csv", "text-regression", {"rows", "mse", "pearson", "spearman"}, ("value",)
    ),
    "folders": Kind("vit", "images", "images2", "image-classification", CLASSES, ("image", "label", "probability")),
    "paths": Kind("vit", "paths.csv", "paths.csv", "image-classification", CLASSES, ("image", "label", "probability")),
    "plain vit": Kind("vit0", "images", "images2", "image-classification", CLASSES, ("image", "label", "probability")),
    "responses": Kind("gpt2", "talk.jsonl", "talk2.jsonl", "text-generation", {*WORDS, "exact_match"}, ("response",)),
    "chat": Kind("chat", "talk.jsonl", "talk2.jsonl", "text-generation", {*WORDS, "exact_match"}, ("response",)),
    "targets": Kind(
        "t5",
        "pairs.csv",
        "pairs2.csv",
        "text-to-text",
        {*WORDS, "exact_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf"},
        ("target",),
    ),
    "tags": Kind(
        "bert",
        "tags.jsonl",
        "tags2.jsonl",
        "token-classification",
        {"rows", "loss", "accuracy", "entity_precision", "entity_recall", "entity_f1"},
        ("tags",),
    ),
    "label columns": Kind(
        "bert",
        "marks.csv",
        "marks2.csv",
        "multi-label-classification",
        {"rows", "micro_f1", "macro_f1", "exact_match", "loss"},
        ("labels", "probability_nice", "probability_plot"),
        ("--label", "nice", "--label", "plot"),
    ),
    "conversations": Kind(
        "chat",
        "whole.jsonl",
        "whole2.jsonl",
        "text-generation",
        {*WORDS, "exact_match"},
        ("response",),
        ("--messages", "said"),
    ),
    "dialogues": Kind(
        "llama",
        "dialogues.jsonl",
        "dialogues2.jsonl",
        "dialogue-state",
        {
            *("rows", "loss", "turns", "turns_not_empty", "joint_goal_accuracy", "joint_goal_accuracy_not_empty"),
            *("slot_accuracy", "accuracy of film-tone"),
        },
        ("dialogue", "turn", "slot", "value"),
    ),
    "plain text": Kind("llama", "plain.txt", "plain.txt", "text-generation", WORDS, ("response",)),
}
SHORT = ["--budget", "2%", "--lr", 1e-2, "--batch-size", 8, "--epochs", 1, "--threads", 1, "--checkpoint-every", 3]


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    """Tiny models and data of every kind; tests only read here."""
    folder = tmp_path_factory.mktemp("kinds")
    tiny_task.bert(folder / "bert")
    tiny_task.vit(folder / "vit")
    tiny_task.vit(folder / "vit0", processor=False)
    tiny_task.gpt2_lm(folder / "gpt2")
    tiny_task.llama(folder / "llama", start=True)
    tiny_task.t5(folder / "t5")
    tiny_task.llama(folder / "chat", chat=True)
    for number, count in (("", 48), ("2", 20)):
        tiny_task.table(folder / f"ratings{number}.csv", tiny_task.ratings(2 * count, seed=count))
        marks = [
            (text, int(label == "pos"), int("plot" in text)) for text, label in tiny_task.rows(2 * count, seed=count)
        ]
        tiny_task.table(folder / f"marks{number}.csv", marks, ("text", "nice", "plot"))
        tiny_task.images(folder / f"images{number}", count, seed=count)
        talk = [{"prompt": prompt, "response": response} for prompt, response in tiny_task.dialogs(count, seed=count)]
        (folder / f"talk{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
        pairs = tiny_task.dialogs(count, seed=count)
        tiny_task.table(folder / f"pairs{number}.csv", pairs, ("source", "target"))
        said = [
            [
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant") * 2, (*one, *two), strict=True)
            ]
            for one, two in itertools.pairwise(pairs)
        ]
        (folder / f"whole{number}.jsonl").write_text("".join(json.dumps({"said": row}) + "\n" for row in said))
        turns = [
            [{"role": "user", "content": text, "state": {"film-tone": answer}}, {"role": "system", "content": "so"}]
            for text, answer in pairs
        ]
        (folder / f"dialogues{number}.jsonl").write_text("".join(json.dumps({"turns": row}) + "\n" for row in turns))
        words = [text.split() for text, _ in pairs]
        tags = [["B-X" if word in ("good", "bad") else "O" for word in row] for row in words]
        marked = [{"tokens": row, "tags": tag} for row, tag in zip(words, tags, strict=True)]
        (folder / f"tags{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    paths = [(path.relative_to(folder), path.parent.name) for path in sorted((folder / "images").rglob("*.png"))]
    tiny_task.table(folder / "paths.csv", paths, ("image", "label"))
    (folder / "plain.txt").write_text("\n".join(text for text, _ in tiny_task.rows(48)))
    return folder


def tuning(folder, kind, *more):
    fixed = ["tune", "--model", folder / kind.model, "--train", folder / kind.train, "--eval", folder / kind.held]
    return list(map(str, [*fixed, *SHORT, *kind.more, *more]))


def as_cell(value):
    return ",".join(value) if isinstance(value, list) else str(value)


def batch_of(work):
    """Return the first rows as the model takes them."""
    batch = work.task.collate(work.base)(work.rows[:5])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if work.base.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", KINDS)
def test_all_verbs(taskedge, kinds, here, name, dtype):
    kind = KINDS[name]
    planned = json.loads(taskedge(*tuning(kinds, kind, "--dtype", dtype, "--dry-run", "--json")).out)
    assert snapshot(here) == {}
    ended = taskedge(*tuning(kinds, kind, "--dtype", dtype, "--json"))
    assert ended.code == 0, ended.err
    assert f"task: {kind.task}" in ended.err.splitlines()[0]
    done = json.loads(ended.out)
    assert snapshot(here).keys() == {"task.safetensors"}
    for key, other in (("task", "task"), ("entries", "entries"), ("head_parameters", "head"), ("steps", "steps")):
        assert planned[key] == done[other]
    assert done["task"] == kind.task
    assert done["quality"].keys() == kind.measures
    assert bool(done["head"]) == (kind.task not in PRETRAINED_HEAD_TASKS)

    data = kinds / kind.held
    ended = taskedge("eval", "task.safetensors", "--data", data, "--batch-size", 8, "--json")
    measured = json.loads(ended.out)
    measured.pop("by_class", None)
    assert measured == done["quality"]
    assert f"({done['quality']['rows']} rows" in taskedge("eval", "task.safetensors", "--data", data).out

    as_csv = list(csv.DictReader(io.StringIO(taskedge("predict", "task.safetensors", "--data", data).out)))
    lines = taskedge("predict", "task.safetensors", "--data", data, "--json").out.splitlines()
    assert [{key: as_cell(value) for key, value in json.loads(line).items()} for line in lines] == as_csv
    assert tuple(as_csv[0]) == ("row", *kind.answer)
    assert [int(row["row"]) for row in as_csv] == list(range(1, done["quality"]["rows"] + 1))

    ended = taskedge("merge", "task.safetensors", "--out", "merged")
    assert f"load it with {TASK_AUTO_CLASSES[kind.task]}.from_pretrained('merged')" in ended.out
    work = prepare_inference(here / "task.safetensors", data, answers=True, log=str)
    merged = getattr(transformers, TASK_AUTO_CLASSES[kind.task]).from_pretrained("merged").eval()
    assert merged.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    applied = work.base.model.eval()
    ours = dict(applied.named_parameters())
    assert dict(merged.named_parameters()).keys() == ours.keys()
    assert all(torch.equal(parameter, ours[name]) for name, parameter in merged.named_parameters())
    for name, parameter in merged.named_parameters():  # a matrix product rounds by the alignment of its operands
        parameter.data = ours[name].data
    with torch.no_grad():
        assert torch.equal(merged(**batch_of(work)).logits, applied(**batch_of(work)).logits)
    if kind.task == "image-classification":
        assert transformers.AutoImageProcessor.from_pretrained("merged").size == {"height": 8, "width": 8}
    else:
        assert len(transformers.AutoTokenizer.from_pretrained("merged")) == len(work.base.tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "auto") for name in KINDS), ("folders", "bf16"), ("chat", "bf16")]
)
def test_killed_and_resumed(kinds, tmp_path, name, dtype):
    whole, out = tmp_path / "whole", tmp_path / "o"
    arguments = tuning(kinds, KINDS[name], "--dtype", dtype)
    assert forked([*arguments, "--out", str(whole)]).code == 0

    def arrange():
        write = checkpoint.write

        def last(*given):
            write(*given)
            signal.raise_signal(signal.SIGKILL)

        checkpoint.write = last

    assert forked([*arguments, "--out", str(out)], arrange).code == -signal.SIGKILL
    assert not out.exists()
    ended = forked([*arguments, "--out", str(out), "--resume"])
    assert ended.code == 0, ended.err
    assert out.read_bytes() == whole.read_bytes()
    assert snapshot(tmp_path).keys() == {"o", "whole"}


@pytest.mark.slow
def test_a_bf16_run_is_that_of_the_trained_model(kinds, here, monkeypatch):
    """The file on a fresh bf16 base, without force, gives the logits of the model at the end of training."""
    from taskedge.training import trainable_model, tune
    from taskedge.training.config import load_config
    from taskedge.training.tune_config import TuneConfig

    seen = {}
    extract = trainable_model.extract

    def last(model):
        seen["model"], delta = model, extract(model)
        model.eval()
        with torch.no_grad():
            seen["logits"] = model(**seen["batch"]).logits.clone()
        return delta

    monkeypatch.setattr(trainable_model, "extract", last)
    made = {}
    for dtype in ("bf16", "fp32"):
        settings = load_config(TuneConfig,
            {"model": str(kinds / "bert"), "train": kinds / "ratings.csv", "dtype": dtype, "threads": 1, "epochs": 4,
             "budget": "2%", "batch_size": 8, "out": here / dtype},
        )  # fmt: skip
        seen["batch"] = {"input_ids": torch.arange(4, 16).view(2, 6)}
        tune.tune(settings, progress=False, log=str)
        assert {p.dtype for p in seen["model"].parameters() if p.requires_grad} == {torch.float32}
        base, delta = load_with_delta(here / dtype)
        with torch.no_grad():
            assert torch.equal(base.model.eval()(**seen["batch"]).logits, seen["logits"])
        assert {linear.base_dtype for linear in delta.linears.values()} == {
            {"bf16": "bfloat16", "fp32": "float32"}[dtype]
        }
        assert {tensor.dtype for tensor in delta.full_parameters.values()} == {torch.float32}
        made[dtype] = seen["logits"].float()
    assert (made["bf16"] - made["fp32"]).abs().max() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs", "enough"),
    [
        ("numbers", 40, lambda quality: quality["pearson"] > 0.8),
        ("folders", 12, lambda quality: quality["accuracy"] > 0.9),
        ("label columns", 40, lambda quality: quality["micro_f1"] > 0.8),
        ("responses", 12, lambda quality: quality["perplexity"] < 6),  # from above 30
    ],
)
def test_it_learns(taskedge, kinds, here, name, epochs, enough):
    learning = ["--budget", "20%", "--epochs", epochs, "--lr", 3e-2, "--checkpoint-every", 1000]
    quality = json.loads(taskedge(*tuning(kinds, KINDS[name], *learning, "--json")).out)["quality"]
    assert enough(quality), quality


@pytest.mark.slow
def test_the_limit_of_a_response_is_that_of_the_data_or_the_users(taskedge, kinds, here):
    assert taskedge(*tuning(kinds, KINDS["plain text"], "--epochs", 0.2)).code == 0
    for more, most in (([], 64), (["--max-new-tokens", "2"], 2)):
        ended = taskedge("predict", "task.safetensors", "--data", kinds / "plain.txt", "--json", *more)
        lengths = [len(json.loads(line)["response"].split()) for line in ended.out.splitlines()]
        assert 0 < max(lengths) <= most
    assert max(lengths) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "given", "batch_size"),
    [("responses", 48, (), 8), ("responses", 48, ("--batch-size", 32), 32), ("numbers", 96, (), 16)],
)
def test_a_batch_is_as_large_as_the_kind_of_task_says(taskedge, kinds, tmp_path, name, rows, given, batch_size):
    kind, out = KINDS[name], tmp_path / "o"
    base = [
        "tune",
        "--model",
        kinds / kind.model,
        "--train",
        kinds / kind.train,
        "--budget",
        "2%",
        "--epochs",
        1,
        *given,
    ]
    planned = json.loads(taskedge(*map(str, base), "--dry-run", "--json").out)
    assert (planned["train_rows"], planned["steps"]) == (rows, rows // batch_size + (rows % batch_size > 0))
    tuned = taskedge(*map(str, [*base, "--out", out]))
    assert f"batches of {batch_size}\n" in tuned.err
    training = load(out).provenance.training
    assert (training["batch_size"], training["steps"]) == (batch_size, planned["steps"])


@pytest.mark.slow
def test_a_micro_batch_that_does_not_divide_the_batch_of_the_kind_is_refused_first(taskedge, kinds, tmp_path):
    kind = KINDS["responses"]
    asked = ["tune", "--model", kinds / kind.model, "--train", kinds / kind.train, "--micro-batch", 16]
    ended = taskedge(*map(str, [*asked, "--out", tmp_path / "o"]))
    assert ended.code == 2
    assert "a micro-batch of 16 rows does not divide a batch of 8: give one of 1, 2, 4, 8" in ended.err
    assert "loading" not in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "bert", "--train", "plain.txt"], "reads a text as a whole (an encoder), so it cannot"),
        (["--model", "bert", "--train", "images"], "'bert' and cannot be used for image-classification: name another"),
        (["--model", "bert", "--train", "images"], ", text-regression or token-classification\n"),
        (["--model", "vit", "--train", "ratings.csv"], "'vit' and cannot be used for text-regression: name another"),
        (["--model", "vit", "--train", "ratings.csv"], "or give this one data for image-classification\n"),
        (["--model", "bert", "--train", "images", "--task", "text-regression"], "images is a folder, which is read as"),
        (["--model", "bert", "--train", "talk.jsonl", "--label", "x"], "talk.jsonl: say what to learn from: --image"),
        (["--model", "gpt2", "--train", "talk.jsonl", "--prompt", "prompt", "--label", "response"], "no kind of task"),
        (["--model", "gpt2", "--train", "talk.jsonl", "--max-length", "1"], "--max-length 1 leaves no room"),
        (["--model", "bert", "--train", "ratings.csv", "--eval", "plain.txt"], "plain.txt: no column 'label'"),
        (["--model", "vit", "--train", "images", "--eval", "ratings.csv"], "ratings.csv: say what to learn from: --im"),
        (["--model", "vit", "--train", "images", "--eval", "no.csv"], "no file no.csv"),
        (["--model", "bert", "--train", "talk.jsonl", "--task", "text-regression", "--text", "prompt", "--label",
          "response"], "is no number, which text-regression needs"),
    ],
)  # fmt: skip
def test_mistakes(taskedge, kinds, monkeypatch, arguments, told):
    monkeypatch.chdir(kinds)
    before = snapshot(kinds)
    ended = taskedge("tune", *arguments, *SHORT)
    assert ended.code == 2
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert snapshot(kinds) == before


@pytest.mark.slow
def test_data_of_another_kind_than_the_delta_s(taskedge, kinds, here):
    assert taskedge(*tuning(kinds, KINDS["responses"], "--out", "words")).code == 0
    assert taskedge(*tuning(kinds, KINDS["folders"], "--out", "pets")).code == 0
    for arguments, told in (
        (
            ["words", "--data", kinds / "images"],
            "images is a folder, but the delta is for text-generation: name a file",
        ),
        (["words", "--data", kinds / "ratings.csv"], "no column 'prompt'"),
        (
            ["words", "--data", kinds / "talk.jsonl", "--text", "prompt"],
            "which reads --prompt and --response, not --te",
        ),
        (["pets", "--data", kinds / "ratings.csv"], "no column 'image'"),
        (["pets", "--data", kinds / "images", "--model", kinds / "bert"], "cannot be used for image-classification"),
        (["words", "--data", kinds / "talk.jsonl", "--model", kinds / "llama"], "wrong base"),
    ):
        ended = taskedge("eval", *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert told in ended.err
    assert taskedge("eval", "pets", "--data", kinds / "paths.csv").code == 0
    assert taskedge("predict", "pets", "--data", kinds / "images" / "red").code == 0


@pytest.mark.slow
def test_folders_and_tables_of_images_are_one_task(taskedge, kinds, here):
    for train, held in (("images", "paths.csv"), ("paths.csv", "images")):
        ended = taskedge(*tuning(kinds, KINDS["folders"], "--train", kinds / train, "--eval", kinds / held, "--json"))
        by_tune = json.loads(ended.out)["quality"]
        for data in ("images", "paths.csv"):
            ended = taskedge("eval", "task.safetensors", "--data", kinds / data, "--batch-size", 8, "--json")
            assert json.loads(ended.out)["accuracy"] == by_tune["accuracy"]
        (here / "task.safetensors").unlink()
