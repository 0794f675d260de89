"""What happens to a base whose config, tokenizer, weights or head were changed, and whether the result is right.

    python -m benchmarks.robustness.mutated_bases  # some ten minutes on one idle core

Each of 300 seeds takes a tiny base, changes one or two things in its folder, and runs ``tune``, ``eval`` and
``predict`` on it in this process. 60 more seeds take a language model and change its chat template, its terminator and
the ids at which it stops; some of its prompts and responses hold control tokens, which are text. A run ends well, with
a message (exit code 2 or 3), or with a traceback. If it ends well, the predictions are held against plain transformers:
the same folder, with the delta's values written by a few lines here, one row at a time without padding. A chat
template's prompt is what it writes before an assistant's answer.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from benchmarks.record import TEST_HELPERS, figure, show, write
from benchmarks.robustness.base_mutations import CHAT, MUTATIONS
from taskedge.cli.main import main as run_command
from taskedge.delta.delta import Delta
from taskedge.delta.file import load

sys.path.append(str(TEST_HELPERS))
import tiny_kinds
import tiny_task

RESULTS = ("mutated_bases.json",)

KINDS = {"text-classification": ("bert", "roberta", "distilbert", "gpt2", "llama", "bart", "t5", "mixtral"),
         "text-generation": ("gpt2", "llama", "mixtral", "opt")}  # fmt: skip
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 3e-2, torch.bfloat16: 5e-2}
"""Largest difference of a probability."""
ROWS = 24
SEEDS, CHAT_SEEDS = 300, 60
PLACE = "placeqzx"
"""A text that no template alters."""


def make_base(kind: str, task: str, folder: Path, *, spare: int = 0) -> None:
    """Save a base of a kind, with its own head of two classes for a classification.

    Args:
        kind, task: of the base.
        folder: to save it in.
        spare: embeddings for tokens that the tokenizer does not have yet.
    """
    tokens = tiny_kinds._TOKENS | {"vocab_size": tiny_kinds.VOCABULARY + spare}
    if kind == "mixtral":
        config = transformers.MixtralConfig(**tokens, **tiny_kinds._BODY, **MIXTRAL)
    else:
        name, fields = tiny_kinds.CONFIGS[kind]
        config = getattr(transformers, name)(**tokens, **fields)
    torch.manual_seed(0)
    if task == "text-classification":
        config.id2label, config.label2id = {0: "pos", 1: "neg"}, {"pos": 0, "neg": 1}
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        words = tiny_task.tokenizer()
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
        words = tiny_task.speaker()
    words.bos_token, words.eos_token = "[CLS]", "[SEP]"
    words.model_input_names = ["input_ids", "attention_mask"]
    model.save_pretrained(folder)
    words.save_pretrained(folder)


CONTROLS = ("[SEP]", "</s>", "[PAD]", "<end_of_turn>", "<|im_end|>")


def write_rows(path: Path, task: str, rng: random.Random) -> None:
    """Write rows of the task; in some files a row holds a control token."""
    controls = rng.random() < 0.2
    with path.open("w") as file:
        for row in range(ROWS):
            label = rng.choice(("pos", "neg"))
            words = [rng.choice(tiny_task.WORDS) for _ in range(rng.randrange(1, 9))]
            if controls and row % 5 == 1:
                words.insert(rng.randrange(len(words) + 1), rng.choice(CONTROLS))
            text = " ".join([*words, "good" if label == "pos" else "awful"])
            record = {"text": text, "label": label}
            if task == "text-generation":
                response = "good film" if label == "pos" else "bad"
                record = {"prompt": text, "response": f"{response} [SEP]" if controls and row % 5 == 2 else response}
            file.write(json.dumps(record) + "\n")


def command(*arguments: str) -> tuple[str, str, str]:
    """Run the command line here; return ``"ok"``, ``"refused"`` or ``"traceback"``, its output, and its messages."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command([*arguments])
    except BaseException:
        return "traceback", out.getvalue(), traceback.format_exc()
    kinds = {0: "ok", 2: "refused", 3: "refused"}
    return kinds.get(code, "traceback"), out.getvalue(), err.getvalue()


@torch.no_grad()
def merge(model: Any, delta: Delta) -> None:
    """Write a delta into a plain model, without the code that is tested."""
    parameters = dict(model.named_parameters())
    for name, linear in delta.linears.items():
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)", name)
        weight = parameters[f"{expert[1]}.{expert[3]}"][int(expert[2])] if expert else parameters[f"{name}.weight"]
        view = weight.T if not expert and type(model.get_submodule(name)).__name__ == "Conv1D" else weight
        view[linear.rows, linear.columns] = linear.values.to(weight.dtype)
    for name, value in delta.full_parameters.items():
        parameters[name].copy_(value)


def plain_model(folder: Path, delta: Delta) -> tuple[Any, Any]:
    """Return the base with the delta and its tokenizer, as a user of transformers loads them."""
    task = delta.provenance.task
    words = transformers.AutoTokenizer.from_pretrained(folder)
    if words.pad_token is None:
        words.pad_token = words.eos_token
    auto = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {
        "return_dict": True,
        "chunk_size_feed_forward": 0,
    }  # with others transformers itself fails
    if task == "text-classification":
        auto = transformers.AutoModelForSequenceClassification
        options |= {"num_labels": len(delta.provenance.labels), "ignore_mismatched_sizes": True}
    model = auto.from_pretrained(folder, dtype="auto", **options).eval()
    if task == "text-classification":  # the last token of a text is the one before its padding
        model.config.pad_token_id = words.pad_token_id
    merge(model, delta)
    return model, words


@torch.no_grad()
def wrong_classes(folder: Path, delta: Delta, texts: list[str], answers: list[dict[str, Any]]) -> str:
    """Return how predicted classes differ from those of plain transformers; empty if they do not."""
    model, words = plain_model(folder, delta)
    labels, limit = delta.provenance.labels, delta.provenance.training["max_length"]
    as_text = {"split_special_tokens": True} if model.config.is_encoder_decoder else {}
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    for row, (text, answer) in enumerate(zip(texts, answers, strict=True), start=1):
        batch = words([text], truncation=True, max_length=limit, return_tensors="pt", **as_text)
        logits = model(**batch, return_dict=True).logits[0].float()
        if not bool(logits.isfinite().all()):
            return f"row {row}: {answer} where transformers gives {logits.tolist()}"
        probability = logits.softmax(-1)[labels.index(answer["label"])]
        largest = logits.softmax(-1).max()
        if abs(float(probability) - answer["probability"]) > tolerance or largest - probability > 2 * tolerance:
            return f"row {row}: {answer}, transformers {logits.softmax(-1).tolist()} for {labels}"
    return ""


@torch.no_grad()
def wrong_responses(folder: Path, delta: Delta, prompts: list[str], answers: list[dict[str, Any]]) -> str:
    """Return how generated responses differ from those of plain transformers; empty if they do not."""
    model, words = plain_model(folder, delta)
    if next(model.parameters()).dtype != torch.float32:
        return ""  # one rounding apart, the most probable token may be another
    fields, limit = delta.provenance.training["generation"], delta.provenance.training["max_length"]
    end = words.convert_tokens_to_ids(fields["end"]) if "end" in fields else words.eos_token_id
    ends = sorted({end, *_as_list(model.generation_config.eos_token_id)} - {None})
    start = words("")["input_ids"][:1]
    start = start if start and start[0] == words.bos_token_id else []
    room = (getattr(model.config, "max_position_embeddings", None) or 10**9) - fields["max_new_tokens"]
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        asked = words.encode(prompt, add_special_tokens=False, split_special_tokens=True)
        if "chat" in fields:
            turns = [{"role": "user", "content": PLACE}, {"role": "assistant", "content": "ANSWER"}]
            before, _, after = words.apply_chat_template(turns, tokenize=False).partition("ANSWER")[0].partition(PLACE)
            ids = [
                *words.encode(before, add_special_tokens=False),
                *asked,
                *words.encode(after, add_special_tokens=False),
            ]
        else:
            ids = [*start, *asked]
        ids = torch.tensor([ids[-min(limit, room) :]])
        greedy = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=fields["max_new_tokens"], eos_token_id=ends, pad_token_id=words.pad_token_id
        )
        model.generation_config = greedy
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        tokens = output[0, ids.shape[1] :].tolist()
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token in ends), None)]
        response = words.decode(tokens, skip_special_tokens=True).strip()
        if response != answer["response"]:
            return f"row {row}: {answer['response']!r}, transformers {response!r}"
    return ""


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def run_one(seed: int, folder: Path) -> dict[str, Any]:
    """Mutate one base and return what became of it."""
    rng = random.Random(seed)
    is_chat = seed >= SEEDS
    task = "text-generation" if is_chat else rng.choice((*KINDS, "text-classification"))
    kind = rng.choice(KINDS[task])
    base, data, out = folder / "base", folder / "rows.jsonl", folder / "out.safetensors"
    make_base(kind, task, base, spare=2 * is_chat)
    write_rows(data, task, rng)
    changes = []
    for _ in range(1 if is_chat else rng.choice((1, 1, 2))):
        name = rng.choice([name for name in MUTATIONS if name != "head" or task == "text-classification"])
        change = CHAT["chat"] if is_chat else MUTATIONS[name]
        with contextlib.suppress(FileNotFoundError, ValueError, SafetensorError):  # damaged by the first change
            changes.append(change(base, rng))
    record: dict[str, Any] = {"seed": seed, "task": task, "kind": kind, "changes": changes}
    shown = ["--eval", str(data)] if seed % 2 else []
    tune = ["tune", "--model", str(base), "--train", str(data), "--out", str(out), "--task", task, *shown]
    settings = ["--epochs", "0.7", "--calibration", "1", "--batch-size", "8", "--budget", "2%", "--json"]
    steps: list[tuple[str, list[str]]] = [
        ("tune", [*tune, *settings]),
        ("eval", ["eval", str(out), "--data", str(data), "--json"]),
        ("predict", ["predict", str(out), "--data", str(data), "--json"]),
    ]
    for step, arguments in steps:
        outcome, output, message = command(*arguments)
        record[step] = outcome
        if outcome != "ok":
            record["message"] = message.strip().splitlines()[-1][:600] if outcome == "refused" else message[-3000:]
            return record
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    answers = [json.loads(line) for line in output.splitlines()]
    check: Callable[..., str] = wrong_classes if task == "text-classification" else wrong_responses
    inputs = [row["text" if "text" in row else "prompt"] for row in rows]
    try:
        record["wrong"] = check(base, load(out), inputs, answers)
    except Exception as error:
        record["wrong"] = f"plain transformers fails: {type(error).__name__}: {error}"
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=SEEDS + CHAT_SEEDS)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    records = []
    for seed in range(options.first, options.first + options.count):
        folder = Path(tempfile.mkdtemp())
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                records.append(run_one(seed, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found = records[-1]
        last = next((found[step] for step in ("predict", "eval", "tune") if step in found), "")
        print(
            seed,
            found["kind"],
            found["changes"],
            last,
            found.get("wrong") or found.get("message", "")[-700:],
            flush=True,
        )
    outcomes = Counter(_outcome(record) for record in records)
    right_chats = sum(_outcome(record) == "right" for record in records if record["seed"] >= SEEDS)
    figures = [
        figure("runs that end in a traceback", [outcomes["traceback"]], bar=0),
        figure("runs that end well and differ from plain transformers", [outcomes["wrong"]], bar=0),
        figure("runs that end well", [outcomes["right"]]),
        figure("runs that end with a message", [outcomes["refused"]]),
        figure("runs with another chat template that end well", [right_chats]),
    ]
    show(figures)
    if options.count < SEEDS + CHAT_SEEDS or options.first:
        return
    by_change = {
        change: dict(
            Counter(_outcome(record) for record in records if any(c.startswith(change) for c in record["changes"]))
        )
        for change in MUTATIONS | CHAT
    }
    failed = [record for record in records if _outcome(record) in ("traceback", "wrong")]
    setting = f"{options.count} seeds, tiny bases of {len({*sum(KINDS.values(), ())})} kinds, one or two changes each"
    setting += f"; the last {CHAT_SEEDS} with another chat template"
    result = {"setting": setting, "figures": figures, "by change": by_change, "failed": failed}
    print(write("robustness", "mutated_bases", result))


def _outcome(record: dict[str, Any]) -> str:
    steps = [record[step] for step in ("tune", "eval", "predict") if step in record]
    if "traceback" in steps:
        return "traceback"
    if "refused" in steps:
        return "refused"
    return "wrong" if record["wrong"] else "right"


if __name__ == "__main__":
    main()
