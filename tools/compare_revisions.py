#!/usr/bin/env python
"""Compares what two revisions of taskedge compute, byte for byte.

Usage::

    python tools/compare_revisions.py REVISION [--against FOLDER] [--only NAME ...] [--cache DIR] [--keep DIR]

The same cases run on a temporary checkout of REVISION (the old side) and on a working tree (the new side, by default
the one that holds this file). Every case runs in a process of its own, on one thread, with fixed seeds, without network
access, on tiny random models. What it writes is compared file by file. One line is printed for each case: ``equal``,
``DIFFERENT`` (and what differs) or ``failed`` (and why). The exit code is 1 unless every case is equal.

Floating-point results depend on the processor, so no expected results are stored: both sides run on the same machine.

Files are compared by their bytes, with these exceptions:

- JSON and JSON lines: renamed keys and strings are translated to their old names, and the keys that a case states as
  volatile (times, peak memory) are left out.
- safetensors: where the bytes differ, tensors and header values are compared one by one, so that the report says which
  of them differ. A header may differ only as ``NEW_FORMATS`` allows for the format version that it states.

A new file format or a renamed module, option, setting or key needs a row in the tables between the two marker lines
below, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# ---- names that differ between revisions: begin ----

OBJECTS: dict[str, tuple[str, ...]] = {
    "main": ("taskedge.cli.main:main",),
    "select": ("taskedge:select",),
    "install": ("taskedge:install",),
    "fuse": ("taskedge:fuse",),
    "extract": ("taskedge:extract",),
    "apply": ("taskedge:apply",),
    "revert": ("taskedge:revert",),
    "load": ("taskedge:load",),
    "recomputing": ("taskedge:recomputing",),
    "using_kernel": ("taskedge.forms.kernels:force_kernel", "taskedge.forms.kernels:using"),
    "save_support": (
        "taskedge.selection.support:save_support",
        "taskedge.selection.support_file:save_support",
    ),
    "load_support": (
        "taskedge.selection.support:load_support",
        "taskedge.selection.support_file:load_support",
    ),
    "Checkpoint": ("taskedge.training.checkpoint:Checkpoint",),
    "TuneSettings": (
        "taskedge.training.tune_config:TuneConfig",
        "taskedge.training.tune_config:TuneSettings",
        "taskedge.training.settings:TuneSettings",
    ),
    "load_fleet": ("taskedge.planning.fleet_file:load_fleet", "taskedge.planning.fleet:load_fleet"),
    "Coordinator": (
        "taskedge.cooperation.coordinator.coordinator:Coordinator",
        "taskedge.cooperation.coordinator:Coordinator",
    ),
    "Device": ("taskedge.cooperation.device.device:Device", "taskedge.cooperation.device:Device"),
    "LocalTraining": (
        "taskedge.cooperation.device.local_training:LocalTraining",
        "taskedge.cooperation.local:LocalTraining",
    ),
    "MemoryCoordinatorLink": (
        "taskedge.cooperation.transport.in_memory:MemoryCoordinatorLink",
        "taskedge.cooperation.memory_link:MemoryCoordinatorLink",
    ),
    "CooperateSettings": (
        "taskedge.cooperation.cooperation_config:CooperationConfig",
        "taskedge.cooperation.cooperation_config:CooperateConfig",
        "taskedge.cooperation.cooperation_config:CooperateSettings",
        "taskedge.cooperation.settings:CooperateSettings",
    ),
    "ReviveSettings": (
        "taskedge.cooperation.scheduling.freezing:FreezingConfig",
        "taskedge.cooperation.scheduling.freezing:ReviveSettings",
        "taskedge.cooperation.revive:ReviveSettings",
    ),
}
"""Python objects as ``module:attribute``, the newest place first; the first that exists is used."""

OLD_OPTIMIZER = "optimiser"  # codespell:ignore
"""The old spelling of this name, which a spell checker must not mend: old revisions know no other."""

NAMES: dict[str, tuple[str, ...]] = {
    "base": ("weight_storage",),
    OLD_OPTIMIZER: ("server_optimizer", "optimizer"),
    "local_optimiser": ("local_optimizer",),
    "turns": ("rotation_slack",),
    "passing": ("traversal_slack",),
    "least_deadline": ("min_deadline",),
    "follow_pace": ("calibrate",),
    "revive": ("freezing",),
    "drift": ("replan_drift",),
    "utilisation_ratio": ("utilization_ratio",),
    "distance_metres": ("distance_meters",),
}
"""Newer names of an old name, the newest first: command-line options and keys of settings files (written with
underscores), parameters of functions, fields of settings classes, keys of fleet files, and methods. The first name that
the option list, the signature, the example file or the object at hand knows is used."""

VALUES: dict[str, tuple[str, ...]] = {"mapped": ("mmap",), "loaded": ("resident",)}
"""Newer names of an old value (a mode, a form, a rule), the newest first; one that the tree's sources quote is used."""

OUTPUT_KEYS: dict[str, str] = {"weight_storage": "base"}
"""New name of a key in JSON output -> its old name."""

OUTPUT_STRINGS: dict[str, str] = {"resident": "loaded", "mmap": "mapped"}
"""New text of a string value in JSON output (the name of an event, a mode) -> its old text."""

OUTPUT_FILES: dict[str, str] = {}
"""New name of an output file or folder that taskedge names itself -> its old name."""


class NewFormat(NamedTuple):
    """How the header of a newer file format may differ from that of the old one.

    A header value is named by the last keys of its dotted path, such as ``provenance.training.base``.
    """

    renamed: Mapping[str, str]
    """New name -> old name."""
    added: Sequence[str] = ()
    """Patterns (fnmatch) of names that only the new header has."""
    ignored: Sequence[str] = ()
    """Patterns (fnmatch) of names, in either header, whose values may differ or be missing."""


NEW_FORMATS: dict[str, NewFormat] = {
    "taskedge-support/2": NewFormat({}, added=("format", "digest")),
    "taskedge-checkpoint/2": NewFormat({}, added=("rest.format",), ignored=("rest.scheduler.*", "rest.groups.*.lr")),
}
"""By the ``format`` that the new header states. While both headers state the same format, none of them may differ."""

ACCEPTED: dict[str, tuple[str, ...]] = {
    "export": ("gpt2-peft/adapter_*",),  # LoRA exports have one rank for all linears since be0ed17
    "tune-*": (
        "*provenance.training.base: only in the old",
        "*provenance.training.weight_storage: only in the new",
    ),
    "tune-interrupted-*": (
        "stopped/checkpoint-*/state.safetensors: header rest.*",
        "stopped/checkpoint-*/trainer_state.json: *",
    ),
}
"""Differences that were reviewed and are intended: pattern of a case -> patterns of report lines, such as
``"tune-interrupted-*": ("stopped/checkpoint-*/state.safetensors: header rest.scheduler.*",)``. They are counted in the
report, and do not fail the comparison."""

# ---- names that differ between revisions: end ----

HERE = Path(__file__).resolve()
MARKER = "names that differ between revisions: "
CASE_SECONDS = 300
SCRATCH = "scratch"
"""Folder of a case whose content is not compared: what a case on the other side or a later case reads."""

MADE_HERE = "made-by-compare-revisions"
"""File that marks a folder of results, which a later run may replace."""

WORDS = tuple("good bad fine awful a the film was plot actor very not so seen never long short night".split())  # noqa: SIM905
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TOKENS, CLASSES = 40, 3
"""Vocabulary and classes of the models that are made in memory."""


# ---- what a tree calls things ----


def known(name: str) -> Any:
    """Returns the object of ``OBJECTS`` under the first name that exists in the imported tree."""
    for place in OBJECTS[name]:
        module, _, attribute = place.partition(":")
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # the module exists, and what it imports does not
            continue
        if hasattr(found, attribute):
            return getattr(found, attribute)
    raise LookupError(f"{name}: none of {', '.join(OBJECTS[name])} exists: add its new place to OBJECTS")


def spelled(old: str, available: Collection[str], where: str) -> str:
    """Returns the newest name of ``old`` that is among ``available``."""
    for name in (*NAMES.get(old, ()), old):
        if name in available:
            return name
    raise LookupError(f"{where} does not know {old!r}: add its new name to NAMES")


def value(given: Any) -> Any:
    """Returns a value under the newest name that the tree's sources quote; other values are returned as they are."""
    if isinstance(given, list | tuple):
        return [value(one) for one in given]
    if not isinstance(given, str):
        return given
    return next((new for new in VALUES.get(given, ()) if re.search(rf"[\"']{re.escape(new)}[\"']", sources())), given)


@functools.cache
def sources() -> str:
    """Returns the text of all modules of the imported tree."""
    import taskedge

    return "\n".join(file.read_text() for file in sorted(Path(taskedge.__file__).parent.rglob("*.py")))


def use(name: str, *arguments: Any, **named: Any) -> Any:
    """Calls an object of ``OBJECTS``; keyword arguments and their values are given under their old names."""
    thing = known(name)
    parameters = inspect.signature(thing).parameters
    return thing(*arguments, **{spelled(key, parameters, name): value(given) for key, given in named.items()})


def method(thing: object, name: str) -> Any:
    """Returns the method of ``thing`` that has the old name ``name``."""
    return getattr(thing, spelled(name, dir(thing), type(thing).__name__))


def use_save(delta: Any, path: Path) -> None:
    """Writes a delta file: a function of the library, or in older revisions a method of the delta."""
    import taskedge

    taskedge.save(delta, path) if hasattr(taskedge, "save") else delta.save(path)


def run_cli(*arguments: str) -> str:
    """Runs the command line in this process and returns its standard output.

    Raises:
        RuntimeError: the exit code is not 0; the message holds the end of the standard error output.
    """
    with contextlib.redirect_stdout(io.StringIO()) as written, contextlib.redirect_stderr(io.StringIO()) as notes:
        code = known("main")(list(arguments))
    print(notes.getvalue())
    if code:
        told = notes.getvalue().strip().rpartition("\n")[2]
        raise RuntimeError(f"taskedge {arguments[0]} ended with exit code {code}: {told}")
    return written.getvalue()


@functools.cache
def options_of(verb: str) -> frozenset[str]:
    """Returns the options that ``taskedge VERB --help`` lists, with underscores."""
    return frozenset(flag.replace("-", "_") for flag in re.findall(r"--([a-z0-9-]+)", run_cli(verb, "--help")))


def command(verb: str, *positional: object, **options: Any) -> list[str]:
    """Returns the arguments of a command line: ``True`` stands for a flag, a list for a repeated option."""
    arguments = [verb, *map(str, positional)]
    for old, given in options.items():
        flag = f"--{spelled(old, options_of(verb), f'taskedge {verb}').replace('_', '-')}"
        for one in given if isinstance(given, list) else [given]:
            arguments += [flag] if one is True else [flag, str(value(one))]
    return arguments


def taskedge(verb: str, *positional: object, **options: Any) -> str:
    """Runs a verb with options under their old names, and returns its standard output."""
    return run_cli(*command(verb, *positional, **options))


def in_old_words(found: Any) -> Any:
    """Returns JSON with the keys and strings that ``OUTPUT_KEYS`` and ``OUTPUT_STRINGS`` name under their old names."""
    if isinstance(found, dict):
        return {OUTPUT_KEYS.get(key, key): in_old_words(one) for key, one in found.items()}
    if isinstance(found, list):
        return [in_old_words(one) for one in found]
    return OUTPUT_STRINGS.get(found, found) if isinstance(found, str) else found


# ---- inputs: models and data, made without taskedge ----


def tokenizer(*, classifies: bool = True) -> Any:
    """Returns a tokenizer with one token for each of ``WORDS``; for causal models without tokens around the text."""
    import tokenizers
    import transformers
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    made = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = Lowercase(), Whitespace()
    if classifies:
        around = [("[CLS]", 2), ("[SEP]", 3)]
        made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, **named, **({} if classifies else {"eos_token": "[SEP]"})
    )


def save_model(
    kind: str, folder: Path, processor: Any, config: Mapping[str, Any], *, seed: int = 0, dtype: str = "float32"
) -> None:
    """Saves a random model of a transformers class, and its tokenizer or image processor, to a folder."""
    import torch
    import transformers

    model_class = getattr(transformers, kind)
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(initializer_range=0.2, **config))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)


BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}


def texts(count: int, seed: int, endings: Sequence[str]) -> list[list[str]]:
    """Returns rows of (text, answer): texts of 3 to 12 words, one of which tells which answer it is."""
    draw, telling = random.Random(seed), (("bad", "awful"), ("good", "fine"))
    others = [word for word in WORDS if not any(word in pair for pair in telling)]
    rows = []
    for number in range(count):
        words = draw.choices(others, k=draw.randint(2, 11))
        words.insert(draw.randrange(len(words)), draw.choice(telling[number % 2]))
        rows.append([" ".join(words), endings[number % 2]])
    return rows


def save_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a CSV file of values without commas."""
    path.write_text("".join(",".join(row) + "\n" for row in (header, *rows)))


def save_images(folder: Path, count: int, seed: int) -> None:
    """Saves small noisy images of several sizes: red ones in ``folder/red``, blue ones in ``folder/blue``."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(seed)
    for number in range(count):
        pixels = draw.integers(0, 120, (9 + number % 4, 12, 3))
        pixels[..., 2 * (number % 2)] += 130
        path = folder / ("red", "blue")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def save_adapter(base: Path, folder: Path) -> None:
    """Saves a LoRA adapter with random factors, made by PEFT, of a classifier of two classes."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    how = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=4, lora_alpha=8)
    model = peft.get_peft_model(model, how)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)


def make_inputs(folder: Path) -> None:
    """Makes all models and data that the cases read."""
    import transformers

    transformers.logging.disable_progress_bar()
    vocabulary = {"vocab_size": len(SPECIAL) + len(WORDS)}
    causal = {**vocabulary, "bos_token_id": 2, "eos_token_id": 3}
    words, speaker = tokenizer(), tokenizer(classifies=False)
    encoder, decoder = {**BERT, **vocabulary}, {**GPT2, **causal}
    save_model("BertModel", folder / "bert", words, encoder)
    save_model("BertForSequenceClassification", folder / "bert-head", words, {**encoder, "num_labels": 2}, seed=2)
    save_model("BertModel", folder / "bert-bf16", words, encoder, seed=3, dtype="bfloat16")
    save_model("GPT2Model", folder / "gpt2", speaker, decoder)
    save_model("GPT2LMHeadModel", folder / "gpt2-lm", speaker, {**decoder, "resid_pdrop": 0.1})
    save_model("LlamaForCausalLM", folder / "llama", speaker, {**BERT, **causal})
    pixels = transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.3, 0.3]
    )
    save_model("ViTModel", folder / "vit", pixels, VIT)
    save_adapter(folder / "bert-head", folder / "adapter")
    for name, count, seed in (("train", 96, 0), ("test", 24, 1)):
        save_table(folder / f"labels-{name}.csv", ("text", "label"), texts(count, seed, ("neg", "pos")))
        ratings = [
            [text, str(float(start) + len(text.split()))] for text, start in texts(count, seed, ("60.5", "100.5"))
        ]
        save_table(folder / f"ratings-{name}.csv", ("text", "label"), ratings)
        chats = texts(count // 2, seed, ("not good", "very good"))
        save_table(folder / f"chats-{name}.csv", ("prompt", "response"), chats)
        save_images(folder / f"images-{name}", count // 2, seed)


def token_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns rows of 3 to 8 token ids with a label that the first of them tells."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        ids = [draw.randrange(1, TOKENS) for _ in range(3 + number % 6)]
        rows.append({"input_ids": ids, "labels": ids[0] % CLASSES})
    return rows


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a padded batch of rows of token ids."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def bert(layers: int = 2, head_seed: int = 7, dropout: float = 0.0) -> Any:
    """Returns a BERT classifier: the same encoder whenever it is called, and a head of its own seed."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        **BERT | {"num_hidden_layers": layers, "max_position_embeddings": 24},
        vocab_size=TOKENS,
        num_labels=CLASSES,
        initializer_range=0.2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(7)
    made = BertForSequenceClassification(config)
    torch.manual_seed(head_seed)
    torch.nn.init.normal_(made.classifier.weight)
    return made.eval()


def in_memory(kind: str) -> Any:
    """Returns a random model: ``bert``, ``gpt2`` (Conv1D), ``vit``, ``resnet`` (convolutions) or ``t5``."""
    import torch
    import transformers

    if kind == "bert":
        return bert()
    torch.manual_seed(7)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "gpt2": (
            "GPT2ForSequenceClassification",
            {**GPT2, **off, "vocab_size": TOKENS, "num_labels": CLASSES, "pad_token_id": 0},
        ),
        "vit": ("ViTForImageClassification", {**VIT, "num_labels": CLASSES, "hidden_dropout_prob": 0.0}),
        "resnet": (
            "ResNetForImageClassification",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": CLASSES},
        ),
        "t5": (
            "T5ForConditionalGeneration",
            {
                "vocab_size": TOKENS,
                "d_model": 16,
                "d_kv": 8,
                "d_ff": 24,
                "num_layers": 2,
                "num_heads": 2,
                "dropout_rate": 0.0,
                "decoder_start_token_id": 0,
            },
        ),
    }
    name, config = made[kind]
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**config)).eval()


def batches(kind: str, count: int = 3) -> list[dict[str, Any]]:
    """Returns batches for a model of ``in_memory``, with labels and, for token ids, padding."""
    import torch

    draw, made = torch.Generator().manual_seed(0), []
    for number in range(count):
        batch = collate(token_rows(6, number))
        if kind in ("vit", "resnet"):
            side = 8 if kind == "vit" else 32
            batch = {"pixel_values": torch.randn(6, 3, side, side, generator=draw), "labels": batch["labels"]}
        elif kind == "t5":
            batch["labels"] = batch["input_ids"]
        made.append(batch)
    return made


# ---- cases ----


@dataclass(frozen=True)
class Case:
    """One thing to compare: ``run`` writes files into the folder that it is given.

    Attributes:
        volatile: JSON keys that differ from run to run.
        needs: cases whose results of the old side this case reads, below ``old/NAME``.
    """

    run: Callable[[Path], None]
    volatile: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(
    name: str, *, volatile: Collection[str] = (), needs: Sequence[str] = ()
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers a function as a case."""

    def register(run: Callable[[Path], None]) -> Callable[[Path], None]:
        CASES[name] = Case(run, frozenset(volatile), tuple(needs))
        return run

    return register


@case("defaults")
def defaults(here: Path) -> None:
    """Writes the default of every setting under its old name."""
    old_names = {new: old for old, newer in NAMES.items() for new in newer}
    old_values = {new: old for old, newer in VALUES.items() for new in newer}
    for name in ("TuneSettings", "CooperateSettings", "ReviveSettings"):
        parameters = inspect.signature(known(name)).parameters
        found = {
            old_names.get(key, key): "needed" if parameter.default is parameter.empty else parameter.default
            for key, parameter in parameters.items()
        }
        plain = {key: old_values.get(one, one) if isinstance(one, str) else one for key, one in found.items()}
        (here / f"{name}.json").write_text(json.dumps(plain, indent=1, default=str))


TUNE_VOLATILE = (
    "seconds",
    "seconds_per_step",
    "cpu_seconds_per_step",
    "peak_memory",
    "run_peak_memory",
    "predicted",
    "memory",
    "file_bytes",
    "bytes",
    "header",
)
"""Measured by ``tune``, and the sizes of a delta file and its header: the file itself is compared."""
EVENT_VOLATILE = (
    "at",
    "seconds",
    "observed_seconds",
    "compute_seconds",
    "real_seconds",
    "predicted_seconds",
    "corrections",
    "bytes_up",
    "bytes_down",
)
"""Measured by a cooperative run, or predicted from what was measured. Messages hold times as text, so that their sizes
differ, too."""

TABLES = {
    "labels": {"train": "inputs/labels-train.csv", "text": "text", "label": "label"},
    "ratings": {"train": "inputs/ratings-train.csv", "task": "text-regression"},
    "chats": {"train": "inputs/chats-train.csv", "prompt": "prompt", "response": "response"},
    "images": {"train": "inputs/images-train"},
}
SHORT = {"budget": "2%", "lr": 1e-2, "batch_size": 8, "epochs": 1, "threads": 1}
"""A run of 12 steps on one thread."""

TUNE_RUNS: dict[str, dict[str, Any]] = {
    "sparse": {"eval": "inputs/labels-test.csv"},
    "sparse-lora": {"form": "sparse_lora", "rank": 4, "alpha": 8},
    "lora": {"form": "lora", "rank": 4, "budget": None},
    "spt": {"rule": "spt", "budget": "4%", "rank": 2},
    "bf16-base": {"dtype": "bf16", "values": "bf16", "eval": "inputs/labels-test.csv"},
    "bf16-files": {"model": "bert-bf16"},
    "autocast": {"bf16": True},
    "regrow": {"regrow": 3},
    "mezo": {"optimizer": "mezo", "perturbation": 1e-2, "lr": 1e-3},
    "int8": {"base": "int8", "eval": "inputs/labels-test.csv"},
    "mapped": {"base": "mapped"},
    "rotate": {"rotate": 2},
    "micro-batch": {"micro_batch": 2},
    "accumulate": {"batch_size": 4, "accumulate": 2, "weight_decay": 0.1, "clip": 0.1, "head_lr": 1e-3},
    "recompute-blocks": {"recompute": "blocks"},
    "recompute-inputs": {"recompute": "inputs"},
    "2-of-4": {"allocation": "2:4", "budget": None},
    "depth": {"depth": 1, "max_columns": 5, "rule": "gradient", "allocation": "global"},
    "plain-step": {"per_neuron": 2, "budget": None, "step": "plain", "seed": 5, "calibration": 3, "warmup": 0.5},
    "own-head": {"model": "bert-head"},
    "gpt2": {"model": "gpt2"},
    "images": {"model": "vit", "data": "images", "eval": "inputs/images-test"},
    "generation": {"model": "gpt2-lm", "data": "chats", "eval": "inputs/chats-test.csv"},
    "llama": {"model": "llama", "data": "chats", "base": "int8"},
    "regression": {"data": "ratings", "eval": "inputs/ratings-test.csv"},
}
"""Runs of ``taskedge tune``: options beside ``SHORT``, which ``None`` removes."""


def tune_options(*, model: str = "bert", data: str = "labels", **changes: Any) -> dict[str, Any]:
    """Returns the options of a short run of ``tune``."""
    given = {"model": f"inputs/{model}", **TABLES[data], **SHORT, **changes}
    return {name: one for name, one in given.items() if one is not None}


def tune_case(changes: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a case that trains a delta and writes it with what ``tune --json`` and ``info --json`` say."""

    def run(here: Path) -> None:
        delta = here / "task.safetensors"
        (here / "tune.json").write_text(taskedge("tune", out=delta, json=True, **tune_options(**changes)))
        (here / "info.json").write_text(taskedge("info", delta, json=True))

    return run


for _name, _changes in TUNE_RUNS.items():
    case(f"tune-{_name}", volatile=TUNE_VOLATILE)(tune_case(_changes))


@case("tune-settings-file", volatile=TUNE_VOLATILE)
def tune_settings_file(here: Path) -> None:
    """Reads all settings from a TOML file, and plans the run before it trains."""
    options = tune_options(form="sparse_lora", rank=2, head_lr=5e-3, out=str(here / "task.safetensors"))
    lines = [f"{spelled(name, options_of('tune'), 'tune')} = {json.dumps(one)}\n" for name, one in options.items()]
    (here / SCRATCH).mkdir()
    config = here / SCRATCH / "run.toml"
    config.write_text("".join(lines))
    (here / "plan.json").write_text(taskedge("tune", config=config, dry_run=True, json=True))
    taskedge("tune", config=config)


def stop_at_checkpoint(arguments: Sequence[str], number: int) -> None:
    """Runs a command line in a child process that ends, as if killed, once ``number`` checkpoints are in place.

    Checkpoint folders are renamed when they are complete, whatever code writes them.
    """
    child = os.fork()
    if child == 0:
        for function in ("rename", "replace"):
            original = getattr(os, function)

            def counted(source: Any, target: Any, *more: Any, original: Any = original, **named: Any) -> None:
                nonlocal number
                original(source, target, *more, **named)
                if re.fullmatch(r"checkpoint-\d+", Path(target).name):
                    number -= 1
                    if not number:
                        os._exit(7)

            setattr(os, function, counted)
        with contextlib.suppress(BaseException):
            run_cli(*arguments)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 7:
        raise RuntimeError(f"the run was to end at a checkpoint, and ended with exit code {code}")


STOPPED_RUNS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "regrow": {"regrow": 2},
    "mezo": TUNE_RUNS["mezo"],
}


def interrupted_case(changes: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a case that interrupts a run after its second checkpoint, keeps what it left, and resumes it."""

    def run(here: Path) -> None:
        out = here / "task.safetensors"
        arguments = command("tune", out=out, checkpoint_every=3, **tune_options(**changes))
        stop_at_checkpoint(arguments, 2)
        shutil.copytree(here / "task.safetensors.run", here / "stopped")
        run_cli(*arguments, "--resume")

    return run


def resumed_case(name: str, changes: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a case that resumes the run which the old side interrupted."""

    def run(here: Path) -> None:
        shutil.copytree(f"old/tune-interrupted-{name}/stopped", here / "task.safetensors.run")
        taskedge("tune", out=here / "task.safetensors", checkpoint_every=3, resume=True, **tune_options(**changes))

    return run


for _name, _changes in STOPPED_RUNS.items():
    case(f"tune-interrupted-{_name}")(interrupted_case(_changes))
    case(f"old-run-resumed-{_name}", needs=[f"tune-interrupted-{_name}"])(resumed_case(_name, _changes))


WORK: dict[str, dict[str, Any]] = {
    "sparse": {"data": "inputs/labels-test.csv"},
    "spt": {"data": "inputs/labels-test.csv"},
    "lora": {"data": "inputs/labels-test.csv"},
    "int8": {"data": "inputs/labels-test.csv"},
    "2-of-4": {"data": "inputs/labels-test.csv", "base": "mapped"},
    "images": {"data": "inputs/images-test"},
    "generation": {"data": "inputs/chats-test.csv"},
    "regression": {"data": "inputs/ratings-test.csv"},
}
"""Deltas of ``TUNE_RUNS`` to put to work, and on what."""


def work_case(name: str, options: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a case that loads the old side's delta, writes it again, and runs ``eval`` and ``predict`` with it."""

    def run(here: Path) -> None:
        delta = f"old/tune-{name}/task.safetensors"
        use_save(use("load", delta), here / "again.safetensors")
        (here / "eval.json").write_text(taskedge("eval", delta, json=True, **options))
        (here / "predict.csv").write_text(taskedge("predict", delta, **options))
        (here / "predict.jsonl").write_text(taskedge("predict", delta, json=True, batch_size=3, **options))

    return run


for _name, _changes in WORK.items():
    case(f"old-delta-{_name}", needs=[f"tune-{_name}"])(work_case(_name, _changes))


def save_state(model: Any, path: Path) -> None:
    """Writes everything that a model holds as a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, path)


def train(model: Any, kind: str, steps: int = 3, rate: float = 1e-2) -> None:
    """Trains the parameters that require gradients in a plain loop."""
    import torch

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for batch in batches(kind, steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()


RULES = (
    "taskedge",
    "mean_activation",
    "activation",
    "magnitude",
    "magnitude_bottom",
    "gradient",
    "fisher",
    "random",
    "spt",
)
ALLOCATIONS = ("per_neuron", "per_layer", "global", "global_per_neuron", "2:4", "1:8")
SELECTIONS: dict[str, dict[str, Any]] = {
    **{f"rule-{rule}": {"budget": "3%", "rule": rule} for rule in RULES},
    **{
        f"allocation-{allocation.replace(':', '-of-')}": {
            "allocation": allocation,
            **({} if ":" in allocation else {"budget": "2%"}),
        }
        for allocation in ALLOCATIONS
    },
    "per-neuron": {"per_neuron": 2},
    "columns": {"budget": "1%", "max_columns": 4},
    "seeded": {"budget": "1%", "rule": "random", "seed": 3, "allocation": "per_layer"},
}


def select_case(kind: str) -> Callable[[Path], None]:
    """Returns a case that selects on one model by every rule and with every allocation, and writes the supports."""

    def run(here: Path) -> None:
        for name, how in SELECTIONS.items():
            support = use("select", in_memory(kind), batches(kind), **how)
            use("save_support", support, here / f"{name}.safetensors")

    return run


for _name in ("bert", "gpt2", "vit", "resnet"):
    case(f"select-{_name}")(select_case(_name))


@case("select-some-linears")
def select_some_linears(here: Path) -> None:
    """Selects among named layers, embeddings included, and in the blocks nearest the output."""
    selections: dict[str, dict[str, Any]] = {
        "named": {"linears": ["*embed*", "*output.dense"], "budget": "2%"},
        "depth": {"depth": 1, "budget": "2%"},
        "no-data": {"rule": "magnitude", "budget": "2%"},
    }
    for name, how in selections.items():
        given = None if name == "no-data" else batches("bert")
        use("save_support", use("select", in_memory("bert"), given, **how), here / f"{name}.safetensors")


TRAININGS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "scaled": {"install": {"step": "activation"}},
    "sparse-lora": {"install": {"form": "sparse_lora", "rank": 2, "alpha": 4.0}},
    "spt": {"select": {"rule": "spt", "budget": "6%", "rank": 2}},
    "norms": {"install": {"trainable": ["classifier.*", "*LayerNorm*"]}},
    "gather": {"kernel": "gather"},
    "thin": {"kernel": "thin"},
    "recompute-blocks": {"recompute": "blocks"},
    "recompute-inputs": {"recompute": "inputs"},
    "bf16": {"dtype": "bfloat16"},
    "gpt2": {"model": "gpt2"},
    "vit": {"model": "vit"},
    "resnet": {"model": "resnet"},
    "t5": {"model": "t5"},
    "embeddings": {"select": {"linears": ["*word_embeddings", "*dense"], "budget": "2%"}},
}
"""Uses of the library."""


def library_case(how: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a case that selects, installs, trains, extracts, saves, fuses, applies and reverts."""

    def run(here: Path) -> None:
        import torch

        kind, dtype = how.get("model", "bert"), getattr(torch, how.get("dtype", "float32"))
        model, fresh = in_memory(kind).to(dtype), in_memory(kind).to(dtype)
        given = batches(kind)
        for batch in given:
            batch |= {name: tensor.to(dtype) for name, tensor in batch.items() if tensor.is_floating_point()}
        support = use("select", model, given, **how.get("select", {"budget": "3%"}))
        use("install", model, support, **how.get("install", {}))
        with contextlib.ExitStack() as around:
            if "kernel" in how:
                around.enter_context(use("using_kernel", how["kernel"]))
            if "recompute" in how:
                around.enter_context(use("recomputing", model, how["recompute"]))
            train(model, kind)
        use_save(use("extract", model), here / "delta.safetensors")
        if kind == "t5":  # its shared tensors cannot go into one safetensors file
            return
        save_state(use("fuse", model), here / "fused.safetensors")
        use("apply", fresh, use("load", here / "delta.safetensors"))
        save_state(fresh, here / "applied.safetensors")
        use("revert", fresh)
        save_state(fresh, here / "reverted.safetensors")

    return run


for _name, _changes in TRAININGS.items():
    case(f"library-{_name}")(library_case(_changes))


@case("old-support", needs=["select-bert"])
def old_support(here: Path) -> None:
    """Reads supports of the old side, writes them again, and trains one of them."""
    for name in ("rule-taskedge", "rule-spt", "rule-magnitude", "allocation-2-of-4"):
        support = use("load_support", Path(f"old/select-bert/{name}.safetensors"))
        use("save_support", support, here / f"{name}.safetensors")
    model = in_memory("bert")
    use("install", model, use("load_support", Path("old/select-bert/rule-spt.safetensors")))
    train(model, "bert")
    use_save(use("extract", model), here / "delta.safetensors")


@case("old-checkpoint", needs=["tune-interrupted-regrow", "tune-sparse"])
def old_checkpoint(here: Path) -> None:
    """Restores parameters, moved entries and random generators from a checkpoint of the old side."""
    import torch
    import transformers

    stopped = Path("old/tune-interrupted-regrow/stopped")
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained("inputs/bert", num_labels=2)
    use("install", model, use("load_support", stopped / "support.safetensors"), step="activation")
    checkpoint = use("Checkpoint", stopped / "checkpoint-6")
    method(checkpoint, "restore_parameters")(model)
    method(checkpoint, "restore_random")()
    use_save(use("extract", model), here / "delta.safetensors")
    drawn = {"python": random.random(), "torch": torch.rand(2).tolist()}
    (here / "drawn.json").write_text(json.dumps(drawn))


@case("export", needs=["tune-sparse", "tune-gpt2", "tune-spt", "tune-generation"])
def export(here: Path) -> None:
    """Exports deltas of the old side in every form."""
    for name, options in {
        "merged": {"to": "merged"},
        "patch": {"to": "patch"},
        "supertuning": {"to": "peft", "peft_type": "supertuning"},
        "shira": {"to": "peft", "peft_type": "shira"},
        "lora": {"to": "peft", "peft_type": "lora"},
    }.items():
        taskedge("export", "old/tune-sparse/task.safetensors", out=here / f"sparse-{name}", **options)
    taskedge("export", "old/tune-gpt2/task.safetensors", to="peft", out=here / "gpt2-peft")
    taskedge("export", "old/tune-gpt2/task.safetensors", to="patch", out=here / "gpt2-patch")
    taskedge("export", "old/tune-spt/task.safetensors", to="peft", out=here / "spt-peft")
    taskedge("merge", "old/tune-spt/task.safetensors", out=here / "spt-merged")
    taskedge("merge", "old/tune-generation/task.safetensors", out=here / "generation-merged")


@case("import", volatile=["bytes"])
def import_adapter(here: Path) -> None:
    """Imports a PEFT adapter and puts it to work."""
    delta = here / "delta.safetensors"
    (here / "import.json").write_text(taskedge("import", "inputs/adapter", out=delta, labels="neg,pos", json=True))
    options = {"data": "inputs/labels-test.csv", "text": "text"}
    (here / "predict.csv").write_text(taskedge("predict", delta, **options))


SOLVERS = ("joint", "match", "exact", "several", "random", "greedy", "hungarian", "equal", "one-device", "fedavg")


def random_fleet(path: Path, names: Sequence[str], seed: int) -> Path:
    """Writes a fleet file of random devices, with the keys that the tree's example file has."""
    draw = random.Random(seed)
    keys = frozenset(re.findall(r"^\w+", Path("tree/examples/fleet.toml").read_text(), re.MULTILINE))

    def table(title: str, **facts: object) -> str:
        spelled_facts = {spelled(name, keys, "examples/fleet.toml"): fact for name, fact in facts.items()}
        return f"[{title}]\n" + "".join(f"{name} = {json.dumps(fact)}\n" for name, fact in spelled_facts.items())

    text = table("server", downlink_bits_per_second=2e7, aggregation_seconds=0.02)
    text += table("channel", bandwidth_hz=1e6, bytes_per_value=2, path_loss_exponent=3.2)
    text += table("model", path=os.path.relpath("inputs/bert", path.parent), budget="2%", sequence_tokens=32)
    for number, name in enumerate(names):
        wired = {"wired_bits_per_second": 1e6 * draw.randint(1, 90)}
        radio = {"transmit_watts": round(draw.uniform(0.05, 0.3), 3), "distance_metres": round(draw.uniform(5, 200), 1)}
        text += table(
            "[device]",
            name=name,
            flops_per_second=1e9 * draw.randint(1, 400),
            utilisation_ratio=round(draw.uniform(0.2, 0.6), 2),
            memory_bytes=1e9 * draw.randint(1, 8),
            tokens_per_round=256 * draw.randint(1, 4),
            batch_sequences=draw.choice([4, 8]),
            **(wired if number % 3 == 2 else radio),
        )
    path.write_text(text)
    return path


@case("plan")
def plan(here: Path) -> None:
    """Plans with every solver on the example fleet and on a random one."""
    (here / SCRATCH).mkdir()
    fleet = random_fleet(here / SCRATCH / "fleet.toml", [f"d{number}" for number in range(7)], seed=4)
    for solver in SOLVERS:
        planned = taskedge("plan", fleet=fleet, solver=solver, no_compare=True, json=True)
        (here / f"random-{solver}.json").write_text(planned)
        example = {"fleet": "tree/examples/fleet.toml", "blocks": 4, "solver": solver}
        (here / f"example-{solver}.json").write_text(taskedge("plan", no_compare=True, json=True, **example))
    (here / "compared.json").write_text(taskedge("plan", fleet=fleet, json=True))
    (here / "replicated.json").write_text(taskedge("plan", fleet=fleet, replicate=3, json=True))


@case("simulate")
def simulate(here: Path) -> None:
    """Replays a few rounds on the example fleet and on a random one."""
    (here / SCRATCH).mkdir()
    fleet = random_fleet(here / SCRATCH / "fleet.toml", [f"d{number}" for number in range(7)], seed=4)
    options = {"rounds": 6, "churn": 0.2, "drift_db": 2.0, "seed": 1}
    (here / "random.json").write_text(taskedge("simulate", fleet=fleet, json=True, **options))
    example = {"fleet": "tree/examples/fleet.toml", "blocks": 4, "rounds": 3}
    (here / "example.json").write_text(taskedge("simulate", json=True, **example))


class Stopped(Exception):
    """Ends a cooperative run in the middle."""


COOPERATION: dict[str, Any] = {
    "per_neuron": 1,
    "step": "plain",
    "rounds": 4,
    "batch_size": 4,
    OLD_OPTIMIZER: "sgd",
    "lr": 0.05,
    "warmup": 0.0,
    "clip": 0.0,
    "upload": "float32",
    "turns": 0.0,
    "passing": 0.0,
    "wait_seconds": 60.0,
    "least_deadline": 60.0,
    "first_deadline": 60.0,
    "follow_pace": False,
}
"""Short rounds, no deadline that a busy machine could miss, and plans that do not follow the clock."""

COOPERATIVE_RUNS: dict[str, dict[str, Any]] = {
    "deft": {},
    "deft-defaults": {
        **dict.fromkeys(("step", OLD_OPTIMIZER, "lr", "warmup", "clip", "upload", "turns", "passing")),
        "rounds": 6,
    },
    "deft-turns": {"turns": 0.5, "passing": 0.5, "rounds": 6, "upload": "bfloat16", OLD_OPTIMIZER: "fedadamw"},
    "replicate": {"mode": "replicate", "copies": 2, "upload": "bfloat16", "devices": 4},
    "fedavg": {"mode": "fedavg", OLD_OPTIMIZER: "fedadamw", "clip": 1.0, "accumulate": 2, "head_lr": 0.01},
    "fedavg-values": {"mode": "fedavg", "local_steps": 3, "local_optimiser": "adamw", OLD_OPTIMIZER: None},
    "fedavg-changes": {"mode": "fedavg", "local_steps": 2, "upload": "float8", OLD_OPTIMIZER: None},
    "deft-idle": {"active_share": 0.25, "rounds": 12, "upload": "float8", OLD_OPTIMIZER: "fedadamw"},
    "replicate-idle": {"mode": "replicate", "active_share": 0.5, "rounds": 12, "devices": 4, "upload": "bfloat16"},
    "fedavg-idle": {"mode": "fedavg", "active_share": 0.25, "rounds": 12, "local_steps": 2, OLD_OPTIMIZER: None},
    "budget": {"per_neuron": None, "budget": "2.3%", "rule": "activation", "calibration": 5, "max_columns": 6},
    "merged-blocks": {"blocks": 2, "head": "first", "devices": 2, "allocation": "global"},
    "dropout": {"devices": 1, "dropout": 0.2, "seed": 3},
    "fleet-file": {"fleet": True, "rounds": 3, "turns": 0.3, "passing": 0.3},
}
"""Cooperative runs: settings beside ``COOPERATION``, which ``None`` removes."""


def cooperate(
    folder: Path,
    *,
    devices: int = 3,
    dropout: float = 0.0,
    fleet: bool = False,
    stop_after: int = 0,
    resume: bool = False,
    **changes: Any,
) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Runs a coordinator and its devices in this process.

    Args:
        folder: of the run.
        fleet: whether the coordinator reads a fleet file.
        stop_after: round after which the run is ended in the middle; 0 for none.
        resume: go on with the run in the folder.

    Returns:
        The coordinator, the devices' models by name, and the events.
    """
    given = {**COOPERATION, "devices": devices, **changes}
    settings = use("CooperateSettings", **{name: one for name, one in given.items() if one is not None})
    names = [f"d{number}" for number in range(devices)]
    trainings = {
        name: use("LocalTraining", bert(4, head_seed=100 + number, dropout=dropout), token_rows(20, number), collate)
        for number, name in enumerate(names)
    }
    more: dict[str, Any] = {}
    if given.get("active_share", 1.0) < 1:
        more["revive"] = use("ReviveSettings", given["active_share"], stage=1, window=2, every=5)
    if fleet:
        more["fleet"] = use("load_fleet", random_fleet(folder.with_name("fleet.toml"), names, seed=2))
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        old = in_old_words(event)
        if old["event"] == "round" and old["round"] == stop_after:
            raise Stopped

    async def whole() -> Any:
        link = use("MemoryCoordinatorLink")
        serving = []
        for name, training in trainings.items():
            device = use("Device", method(link, "device")(name), training, memory_bytes=4e9)
            serving.append(asyncio.create_task(method(device, "serve")(stay=True)))
        coordinator = use("Coordinator", link, bert(4), settings, folder, on_event=on_event, **more)
        try:
            with contextlib.suppress(Stopped):
                await method(coordinator, "run")(resume=resume)
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
        return coordinator

    return asyncio.run(whole()), {name: training.model for name, training in trainings.items()}, events


def write_cooperation(here: Path, run: tuple[Any, dict[str, Any], list[dict[str, Any]]]) -> None:
    """Writes the deltas of the coordinator and of every device, and the events.

    Devices are installed on at the same time, so that the order in which they are ready differs: these events are
    written in the order of their devices.
    """
    coordinator, models, events = run
    ready = [number for number, event in enumerate(events) if in_old_words(event)["event"] == "ready"]
    by_device = sorted((events[number] for number in ready), key=lambda event: str(in_old_words(event)["device"]))
    for number, event in zip(ready, by_device, strict=True):
        events[number] = event
    use_save(method(coordinator, "delta")(), here / "delta.safetensors")
    for name, model in models.items():
        use_save(use("extract", model), here / f"{name}.safetensors")
    (here / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def cooperative_case(changes: Mapping[str, Any]) -> Callable[[Path], None]:
    """Returns a case of a whole cooperative run."""

    def run(here: Path) -> None:
        (here / SCRATCH).mkdir()
        write_cooperation(here, cooperate(here / SCRATCH / "run", **changes))

    return run


for _name, _changes in COOPERATIVE_RUNS.items():
    case(f"cooperate-{_name}", volatile=EVENT_VOLATILE)(cooperative_case(_changes))

STOPPED_COOPERATION: dict[str, Any] = {OLD_OPTIMIZER: "fedadamw", "active_share": 0.5, "rounds": 8}


@case("cooperate-interrupted", volatile=EVENT_VOLATILE)
def cooperate_interrupted(here: Path) -> None:
    """Ends a cooperative run after half of its rounds."""
    (here / SCRATCH).mkdir()
    write_cooperation(here, cooperate(here / SCRATCH / "run", stop_after=4, **STOPPED_COOPERATION))


@case("old-cooperation-resumed", volatile=EVENT_VOLATILE, needs=["cooperate-interrupted"])
def old_cooperation_resumed(here: Path) -> None:
    """Resumes the cooperative run which the old side left."""
    shutil.copytree(f"old/cooperate-interrupted/{SCRATCH}", here / SCRATCH)
    write_cooperation(here, cooperate(here / SCRATCH / "run", resume=True, **STOPPED_COOPERATION))


# ---- running cases ----


def host(side: Path, tree: Path, names: Sequence[str]) -> None:
    """Runs cases one after the other, each in a fork of this process, which has imported what they share.

    Of every case, ``side/logs/NAME.txt`` holds what it printed, and ``side/logs/NAME.json`` how it ended.
    """
    import taskedge

    if not Path(taskedge.__file__).is_relative_to(tree):
        raise SystemExit(f"taskedge is imported from {taskedge.__file__}, not from {tree}")
    import_shared()
    os.chdir(side)
    for number, name in enumerate(names, start=1):
        shutil.rmtree(name, ignore_errors=True)
        Path(name).mkdir()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            run_forked(name)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - started
        Path(f"logs/{name}.json").write_text(json.dumps({"code": code, "seconds": round(seconds, 2)}))
        ended = "" if code == 0 else f", failed with {code}"
        print(f"  {number}/{len(names)} {name}: {seconds:.1f} s{ended}", file=sys.stderr, flush=True)


def import_shared() -> None:
    """Imports the parts of other libraries that take seconds, so that the cases need not."""
    import numba  # noqa: F401
    import peft  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    kinds = ("Bert", "GPT2", "Llama", "T5", "ViT", "ResNet")
    wanted = re.compile(rf"(Auto|{'|'.join(kinds)})(Config|Model|Tokenizer|ImageProcessor|\w*For\w+)|Trainer")
    for name in filter(wanted.fullmatch, dir(transformers)):
        with contextlib.suppress(ImportError):  # some need packages that no case needs
            getattr(transformers, name)


def run_forked(name: str) -> None:
    """Runs one case in this process and ends the process."""
    code = 1
    try:
        log = os.open(f"logs/{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        signal.alarm(CASE_SECONDS)  # ends the process
        CASES[name].run(Path(name))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def environment(tree: Path | None, home: Path) -> dict[str, str]:
    """Returns the environment of a process that computes: one thread, no accelerator, no network, no byte code."""
    fixed = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "HF_HOME": str(home / "hugging-face"),
        "COLUMNS": "100",
        "TZ": "UTC",
    }
    return {**os.environ, **fixed, "PYTHONPATH": "" if tree is None else str(tree / "src")}


def call_self(*arguments: object, tree: Path | None, home: Path) -> None:
    """Runs this file in a process of its own.

    Raises:
        SystemExit: the process failed.
    """
    done = subprocess.run([sys.executable, HERE, *map(str, arguments)], env=environment(tree, home), check=False)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed with exit code {done.returncode}")


def run_side(side: Path, tree: Path, old: Path, inputs: Path, names: Sequence[str]) -> None:
    """Runs cases on a tree; their results and logs are below ``side`` afterwards."""
    (side / "logs").mkdir(parents=True, exist_ok=True)
    for link, target in {"tree": tree, "old": old, "inputs": inputs}.items():
        (side / link).unlink(missing_ok=True)
        (side / link).symlink_to(target)
    call_self("_host", side, tree, *names, tree=tree, home=side)


def ended_well(side: Path, name: str) -> bool:
    """Returns whether the case has run there without an error."""
    log = side / "logs" / f"{name}.json"
    return log.exists() and json.loads(log.read_text())["code"] == 0


def why_failed(side: Path, name: str) -> str:
    """Returns the last line that a failed case printed, usually that of its exception, or how its process ended."""
    code = json.loads((side / "logs" / f"{name}.json").read_text())["code"]
    lines = (side / "logs" / f"{name}.txt").read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    return said if code > 0 else f"ended by signal {-code}"


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Makes a temporary worktree of a revision, or where none can be added, a local clone."""
    repository = HERE.parent.parent
    with tempfile.TemporaryDirectory(prefix="taskedge-old-") as folder:
        tree = Path(folder).resolve() / "tree"
        git = ["git", "-C", str(repository)]
        added = subprocess.run([*git, "worktree", "add", "--quiet", "--detach", tree, revision], check=False)
        if added.returncode:
            subprocess.run(["git", "clone", "--quiet", "--local", "--no-checkout", repository, tree], check=True)
            subprocess.run(["git", "-C", tree, "checkout", "--quiet", "--detach", revision], check=True)
        try:
            yield tree
        finally:
            if not added.returncode:
                subprocess.run([*git, "worktree", "remove", "--force", tree], check=False)


# ---- comparing results ----


def flat(found: Any, path: str = "") -> dict[str, Any]:
    """Returns the leaves of JSON by their dotted paths; empty lists and objects are leaves."""
    inside = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    if not inside:
        return {path: found}
    return {
        where: leaf for key, one in inside for where, leaf in flat(one, f"{path}.{key}" if path else str(key)).items()
    }


def without(found: Any, keys: Collection[str]) -> Any:
    """Returns JSON without some keys, at any depth."""
    if isinstance(found, dict):
        return {key: without(one, keys) for key, one in found.items() if key not in keys}
    return [without(one, keys) for one in found] if isinstance(found, list) else found


def shown(one: Any) -> str:
    """Returns a value as short text."""
    text = json.dumps(one, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def differences_of(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> Iterator[str]:
    """Yields a line for each key that only one of the two has, or that has another value."""
    for key in sorted(old.keys() | new.keys()):
        if key not in new:
            yield f"{what} {key}: only in the old"
        elif key not in old:
            yield f"{what} {key}: only in the new"
        elif old[key] != new[key] or type(old[key]) is not type(new[key]):
            yield f"{what} {key}: {shown(old[key])}, now {shown(new[key])}"


class Tensors(NamedTuple):
    """A safetensors file, split into header values and tensors."""

    header: dict[str, Any]
    """Leaves of the metadata by dotted path; metadata that are JSON are taken apart."""
    tensors: dict[str, tuple[str, list[int], bytes]]
    """Dtype, shape and bytes by name."""


def read_tensors(content: bytes) -> Tensors:
    """Reads a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:end])
    header: dict[str, Any] = {}
    for key, text in entries.pop("__metadata__", {}).items():
        try:
            header |= flat(json.loads(text), key)
        except ValueError:
            header[key] = text
    tensors = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], content[end + first : end + last])
    return Tensors(header, tensors)


def formats_of(file: Tensors) -> dict[str, str]:
    """Returns the header values that state a format, by their paths."""
    return {path: str(one) for path, one in file.header.items() if path.rpartition(".")[2] == "format"}


def tensor_differences(old: Tensors, new: Tensors) -> Iterator[str]:
    """Yields a line for each tensor that differs."""
    for name in sorted(old.tensors.keys() | new.tensors.keys()):
        if name not in new.tensors or name not in old.tensors:
            yield f"tensor {name}: only in the {'old' if name in old.tensors else 'new'}"
            continue
        (dtype, shape, data), (new_dtype, new_shape, new_data) = old.tensors[name], new.tensors[name]
        if (dtype, shape) != (new_dtype, new_shape):
            yield f"tensor {name}: {dtype} {shape}, now {new_dtype} {new_shape}"
        elif data != new_data:
            count = max(1, len(data) // max(1, math.prod(shape)))
            pairs = zip(range(0, len(data), count), range(count, len(data) + 1, count), strict=True)
            changed = sum(data[start:end] != new_data[start:end] for start, end in pairs)
            yield f"tensor {name}: {changed} of {len(data) // count} numbers differ"


def header_differences(old: Tensors, new: Tensors) -> Iterator[str]:
    """Yields a line for each header value that differs and that the new format, if it is another, does not allow."""
    before, after = dict(old.header), dict(new.header)
    formats = formats_of(old), formats_of(new)
    if formats[0] != formats[1]:
        stated = "".join(formats[1].values())
        if stated not in NEW_FORMATS:
            yield f"header format: {formats[0]}, now {formats[1]}, which NEW_FORMATS does not describe"
        else:
            allowed = NEW_FORMATS[stated]
            after = {in_old_format(path, allowed): one for path, one in beside(after, allowed.added).items()}
            before, after = beside(before, allowed.ignored), beside(after, allowed.ignored)
        stating = {*formats[0], *formats[1]}
        before, after = ({path: one for path, one in each.items() if path not in stating} for each in (before, after))
    digests = set() if formats[0] == formats[1] else {"digest"}
    before, after = ({path: one for path, one in each.items() if path not in digests} for each in (before, after))
    yield from differences_of(before, after, "header")


def beside(header: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """Returns the header values that none of the patterns names."""
    return {
        path: one
        for path, one in header.items()
        if not any(fnmatch.fnmatchcase(f".{path}", f"*.{pattern}") for pattern in patterns)
    }


def in_old_format(path: str, allowed: NewFormat) -> str:
    """Returns the path in an old header of what has this path in a header of the new format."""
    for new, old in allowed.renamed.items():
        if f".{path}".endswith(f".{new}"):
            return path.removesuffix(new) + old
    return path


UNORDERED = ("state.safetensors",)
"""Files with metadata of several keys, which safetensors writes in an order that differs from run to run."""


def safetensors_differences(name: str, old: bytes, new: bytes) -> Iterator[str]:
    """Yields a line for each tensor and header value that differs, or one for the layout where only that does."""
    before, after = read_tensors(old), read_tensors(new)
    lines = [*tensor_differences(before, after), *header_differences(before, after)]
    # a digest covers everything else: it is worth a line only where nothing else differs
    lines = [line for line in lines if not line.startswith("header digest:")] or lines
    same_format = formats_of(before) == formats_of(after)
    if not lines and same_format and not name.endswith(UNORDERED):
        lines = ["the same tensors and header values in other bytes"]
    yield from lines


def file_differences(name: str, old: bytes, new: bytes, volatile: Collection[str]) -> Iterator[str]:
    """Yields a line for each difference between two files of one name."""
    if old == new:
        return
    if name.endswith((".json", ".jsonl")):
        try:
            before, after = (flat(without(in_old_words(json_in(name, one)), volatile)) for one in (old, new))
        except ValueError as error:
            yield f"is no JSON: {error}"
            return
        yield from differences_of(before, after, "key")
    elif is_safetensors(old) and is_safetensors(new):
        yield from safetensors_differences(name, old, new)
    else:
        pairs = zip(old.splitlines(), new.splitlines(), strict=False)
        line = next((number for number, (one, other) in enumerate(pairs, start=1) if one != other), None)
        where = "" if line is None or b"\0" in old else f" from line {line} on"
        yield f"{len(old)} bytes, now {len(new)}, other content{where}"


def json_in(name: str, content: bytes) -> Any:
    """Returns the JSON in a file, or for JSON lines a list of it."""
    return [json.loads(line) for line in content.splitlines()] if name.endswith("l") else json.loads(content)


def is_safetensors(content: bytes) -> bool:
    """Returns whether a file begins as a safetensors file does."""
    return content[8:9] == b"{" and 8 + int.from_bytes(content[:8], "little") <= len(content)


def files_of(folder: Path) -> dict[str, Path]:
    """Returns the files of a case that are compared, by their old relative names."""
    found = {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and parts[0] != SCRATCH:
            found["/".join(OUTPUT_FILES.get(part, part) for part in parts)] = file
    return found


def case_differences(name: str, old: Path, new: Path) -> Iterator[str]:
    """Yields a line for each difference between the results of a case on the two sides."""
    before, after = files_of(old / name), files_of(new / name)
    if not before and not after:
        yield "the case wrote nothing"
    for file in sorted(before.keys() | after.keys()):
        if file not in before or file not in after:
            yield f"{file}: only in the {'old' if file in before else 'new'}"
            continue
        pair = before[file].read_bytes(), after[file].read_bytes()
        for line in file_differences(file, *pair, CASES[name].volatile):
            yield f"{file}: {line}"


def accepted(name: str, line: str) -> bool:
    """Returns whether ``ACCEPTED`` names this difference of a case."""
    return any(
        fnmatch.fnmatchcase(name, case_pattern) and any(fnmatch.fnmatchcase(line, pattern) for pattern in patterns)
        for case_pattern, patterns in ACCEPTED.items()
    )


def report(names: Sequence[str], old: Path, new: Path, most_lines: int) -> bool:
    """Prints a line for each case, and below it what differs; returns whether all cases are equal."""
    width, unequal = max(map(len, names)), 0
    for name in names:
        failed = [f"{which}: {why_failed(side, name)}" for which, side in (("old", old), ("new", new))
                  if not ended_well(side, name)]  # fmt: skip
        found = [] if failed else list(case_differences(name, old, new))
        lines = [line for line in found if not accepted(name, line)]
        unequal += bool(failed or lines)
        verdict = "failed" if failed else "DIFFERENT" if lines else "equal"
        aside = len(found) - len(lines)
        print(f"{name:{width}}  {verdict}{f', {aside} accepted differences' if aside else ''}")
        for line in (failed or lines)[:most_lines]:
            print(f"    {line}")
        if len(lines) > most_lines:
            print(f"    and {len(lines) - most_lines} more differences")
    print(f"{len(names) - unequal} of {len(names)} cases are equal")
    return not unequal


# ---- command line ----


def cases_digest() -> str:
    """Returns a digest of this file without its tables of names, and of what results depend on beside the trees."""
    before, _, rest = HERE.read_text().partition(f"# ---- {MARKER}begin")
    after = rest.partition(f"# ---- {MARKER}end")[2]
    packages = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", "numba", "scipy", "accelerate")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    cpu = Path("/proc/cpuinfo")
    processor = re.findall(r"^(?:model name|flags).*$", cpu.read_text(), re.MULTILINE)[:2] if cpu.exists() else []
    return hashlib.sha256("\n".join([before, after, sys.version, *versions, *processor]).encode()).hexdigest()[:12]


def chosen(patterns: Sequence[str]) -> list[str]:
    """Returns the names of the cases that match a pattern; of all where there is none.

    Raises:
        SystemExit: a pattern matches no case.
    """
    for pattern in patterns:
        if not fnmatch.filter(CASES, pattern):
            raise SystemExit(f"no case is called {pattern!r}; --list names them")
    return [name for name in CASES if not patterns or any(fnmatch.fnmatchcase(name, one) for one in patterns)]


def compare(revision: str, against: Path, names: Sequence[str], folder: Path, cache: Path | None) -> bool:
    """Runs cases on both sides and reports; returns whether all are equal.

    Args:
        folder: for the results.
        cache: keeps the results of the old side from run to run; None for nothing.
    """
    git = ["git", "-C", str(HERE.parent.parent), "rev-parse", "--verify", f"{revision}^{{commit}}"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    home = folder if cache is None else cache / f"{commit[:12]}-{cases_digest()}"
    inputs, old, new = home / "inputs", home / "old", folder / "new"
    if not (home / "inputs-made").exists():
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(parents=True)
        call_self("_inputs", inputs, tree=None, home=home)
        (home / "inputs-made").touch()
    needed = {need for name in names for need in CASES[name].needs}
    # cases that others read come first, so that their results are there
    missing = [name for name in CASES if name in needed and not ended_well(old, name)]
    missing += [name for name in names if name not in needed and not ended_well(old, name)]
    if missing:
        with checkout(commit) as tree:
            print(f"old side, {commit[:12]}:", file=sys.stderr)
            run_side(old, tree, old, inputs, missing)
    print(f"new side, {against}:", file=sys.stderr)
    run_side(new, against, old, inputs, names)
    return report(names, old, new, most_lines=8)


def main() -> int:
    """Runs the command line and returns its exit code."""
    if sys.argv[1:2] == ["_inputs"]:
        make_inputs(Path(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["_host"]:
        host(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
        return 0
    parser = argparse.ArgumentParser(description="Compares what two revisions of taskedge compute, byte for byte.")
    parser.add_argument("revision", nargs="?", help="the old side: a revision of this repository")
    parser.add_argument("--against", type=Path, default=HERE.parent.parent, metavar="FOLDER",
                        help="the new side: a working tree; by default the one that holds this file")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases to run; patterns as in a shell")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the old side's results here from run to run")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all results and logs here")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary folders and worktrees are removed
    names = chosen(given.only)
    if given.list:
        print("\n".join(names))
        return 0
    if given.revision is None:
        parser.error("a revision is needed")
    against = given.against.resolve()
    if not (against / "src" / "taskedge").is_dir():
        parser.error(f"{against} has no folder src/taskedge")
    cache = None if given.cache is None else given.cache.resolve()
    with contextlib.ExitStack() as around:
        if given.keep is None:
            folder = Path(around.enter_context(tempfile.TemporaryDirectory(prefix="taskedge-compare-")))
        else:
            folder = given.keep.resolve()
            if folder.exists() and not (folder / MADE_HERE).exists():
                parser.error(f"{folder} exists: name a folder that does not, or one that --keep made")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / MADE_HERE).touch()
        return 0 if compare(given.revision, against, names, folder, cache) else 1


if __name__ == "__main__":
    sys.exit(main())
