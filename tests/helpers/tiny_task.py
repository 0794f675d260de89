"""Tiny models, a word tokenizer and a task of a few words, saved to a folder. Nothing uses the network."""

from __future__ import annotations

import csv
import ctypes
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image

from taskedge.cli.main import main
from taskedge.training.config import load_config
from taskedge.training.tune_config import TuneConfig

WORDS = "good bad fine awful a the film was plot actor very not so seen never long short night".split()  # noqa: SIM905
SRC = Path(__file__).parents[2] / "src"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer: lower case, one token a word."""
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = tokenizers.Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = Lowercase(), Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(folder: Path, *, seed: int = 0, classes: int | None = None, **changes: object) -> Path:
    """Save a BERT of 2 layers of width 16, without a head, or with one of ``classes``."""
    config = transformers.BertConfig(
        **{
            "vocab_size": len(WORDS) + 4,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            **({"num_labels": classes} if classes else {}),
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(config) if classes else transformers.BertModel(config)
    return _save(model, folder)


def gpt2(folder: Path) -> Path:
    """Save a GPT-2 of 2 layers of width 16: its linears are ``Conv1D``, and it has no padding token."""
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 4,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    plain = tokenizer()
    plain.pad_token, plain.eos_token = None, "[SEP]"
    return _save(transformers.GPT2Model(config), folder, plain)


CHAT = (
    "{% for turn in messages %}{{ turn['role'] }} said {{ turn['content'] }} [CLS] {% endfor %}"
    "{% if add_generation_prompt %}assistant said{% endif %}"
)
"""A chat template that ends turns with another token than the tokenizer's end token."""


def speaker(*, start: bool = False, chat: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer for a causal model: an end token, and optionally a start token or a chat template."""
    from tokenizers.processors import TemplateProcessing

    made = tokenizer()
    put = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    made._tokenizer.post_processor = put if start else None
    made.eos_token = "[SEP]"
    if start:
        made.bos_token = "[CLS]"
    if chat:
        made.chat_template = CHAT
    return made


def gpt2_lm(folder: Path, **words: bool) -> Path:
    """Save a GPT-2 with its language-model head, tied to the embeddings."""
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 4, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3,
        initializer_range=0.2, resid_pdrop=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(transformers.GPT2LMHeadModel(config), folder, speaker(**words))


def llama(folder: Path, **words: bool) -> Path:
    """Save a Llama of 2 layers of width 16 with a language-model head of its own; positions for 96 tokens."""
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=96, bos_token_id=2, eos_token_id=3, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(transformers.LlamaForCausalLM(config), folder, speaker(**words))


def t5(folder: Path) -> Path:
    """Save a T5 of 2 + 2 blocks of width 16 with its language-model head."""
    config = transformers.T5Config(
        vocab_size=len(WORDS) + 4, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    words = tokenizer()
    words.eos_token = "[SEP]"
    words.model_input_names = ["input_ids", "attention_mask"]
    return _save(transformers.T5ForConditionalGeneration(config), folder, words)


def vit(folder: Path, *, processor: bool = True) -> Path:
    """Save a ViT of 2 layers of width 16 for images of 8 x 8."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained(folder)
    if processor:
        mean = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.3, 0.3]}
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}, **mean).save_pretrained(folder)
    return folder


def images(folder: Path, count: int, seed: int = 0) -> Path:
    """Write ``count`` small noisy images of several sizes: red ones to ``folder/red``, blue ones to ``folder/blue``."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        red = number % 2 == 0
        pixels = draw.integers(0, 120, (9 + number % 4, 12, 3))
        pixels[..., 0 if red else 2] += 130
        path = folder / ("red" if red else "blue") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def dialogs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return prompts like those of ``rows``; the response is ``very good`` or ``not good``."""
    return [(text, "very good" if label == "pos" else "not good") for text, label in rows(count, seed)]


def ratings(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return texts with a number, around 100.5 where the word is good and around 60.5 where it is bad."""
    return [(text, str((100.5 if label == "pos" else 60.5) + len(text.split()))) for text, label in rows(count, seed)]


def _save(model: transformers.PreTrainedModel, folder: Path, words: object = None) -> Path:
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0, names: Sequence[str] = ("neg", "pos")) -> list[tuple[str, str]]:
    """Return texts of 3 to 12 words, of which one determines the label."""
    draw = random.Random(seed)
    tell = [("bad", "awful"), ("good", "fine"), ("long", "short")]
    others = [word for word in WORDS if all(word not in group for group in tell)]
    made = []
    for number in range(count):
        words = draw.choices(others, k=draw.randint(2, 11))
        place = number % len(names)
        words.insert(draw.randrange(len(words)), draw.choice(tell[place]))
        made.append((" ".join(words), names[place]))
    return made


def table(path: Path, made: Sequence[tuple[str, str]], header: Sequence[str] = ("text", "label")) -> Path:
    """Write the rows to a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *made])
    return path


def folder_of_a_task(folder: Path) -> Path:
    """Write ``base``, ``other`` (other values), ``gpt2``, ``own`` (with a head), ``train.csv`` and ``eval.csv``."""
    bert(folder / "base")
    bert(folder / "other", seed=1)
    bert(folder / "own", seed=2, classes=2)
    gpt2(folder / "gpt2")
    table(folder / "train.csv", rows(96))
    table(folder / "eval.csv", rows(40, seed=1))
    return folder


def tuning(task: Path, *more: object, model: str = "base") -> list[str]:
    """Return the arguments of a run of 12 steps on one thread; ``more`` overrides."""
    fixed = ["--model", task / model, "--train", task / "train.csv", "--text", "text", "--label", "label"]
    short = ["--budget", "2%", "--lr", 1e-2, "--batch-size", 8, "--epochs", 1, "--threads", 1]
    return list(map(str, ["tune", *fixed, *short, *more]))


def tune_config(task: Path, out: Path, **changes: object) -> TuneConfig:
    """Return the settings of such a run, to ``out``; ``changes`` overrides."""
    fixed = {"model": str(task / "base"), "train": task / "train.csv", "text": ["text"], "label": "label"}
    short = {"budget": "2%", "batch_size": 8, "epochs": 1, "threads": 1}
    return load_config(TuneConfig, {**fixed, **short, "out": out, **changes})


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file under the folder with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"/"
        for path in sorted(folder.rglob("*"))
    }


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a subprocess: this source, one thread, no network."""
    fixed = {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return {**os.environ, **fixed, **more}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or the negative number of the signal that killed it."""

    code: int
    out: str
    err: str


_libc = ctypes.CDLL(None)
_forking = threading.Lock()
"""Locked from the pipes to the fork: the child of another thread would keep this pipe open, and delay its end."""


def forked(arguments: Sequence[str], before: Callable[[], object] = lambda: None) -> Ended:
    """Run the command line in a process of its own: a fork, since a new interpreter takes seconds to import torch.

    ``before`` runs in the child: it can arrange for the process to be killed at an exact point. The child dies with the
    thread that called this.
    """
    with _forking:
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()  # what is written must fit their 64 KiB
        sys.stdout.flush(), sys.stderr.flush()
        pid = os.fork()
        if pid:
            os.close(child_out), os.close(child_err)
    if pid == 0:
        code = 1
        try:
            _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            os.dup2(child_out, 1), os.dup2(child_err, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            before()
            code = main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(out) as stdout, os.fdopen(err) as stderr:
        return Ended(os.waitstatus_to_exitcode(status), stdout.read(), stderr.read())
