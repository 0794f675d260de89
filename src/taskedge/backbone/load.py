"""Loads a base and its tokenizer from a local folder or a hub id, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.errors import InputError


@dataclass(frozen=True)
class Base:
    """A base with a head for a task."""

    model: nn.Module
    tokenizer: Any
    fresh: tuple[str, ...]
    """Names of parameters that the base's files do not hold, so that they started at random: the head, as a rule."""
    longest: int | None
    """Tokens that the base has positions for; None where it has no such limit."""


def load_classifier(name: str | Path, labels: Sequence[str]) -> Base:
    """The base ``name`` with a head of ``len(labels)`` classes, in the dtype that its files say, on the CPU.

    The base's own head is used where it has as many classes, a fresh one (from torch's generator) otherwise.

    Raises:
        InputError: no such folder or hub id, no network, a folder without a model or a tokenizer that fit, or weights
            that are not safetensors (pickled ones are never read).
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with explained(name):
        _ask_the_hub(name)
        tokenizer = AutoTokenizer.from_pretrained(str(name))
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(name),
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: place for place, label in enumerate(labels)},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,  # the other kind of weight file is a pickle
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what Hugging Face makes where no file says more
        raise InputError(f"{name}: it comes without a tokenizer: put the one it was trained with into the folder")
    if tokenizer.pad_token_id is None:  # GPT-2 and its kind: padding is masked, so any token does
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: its tokenizer has neither a padding nor an end token: set its pad_token")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    started = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
    fresh = tuple(parameter for parameter, _ in model.named_parameters() if parameter in started)
    return Base(model, tokenizer, fresh, _longest(model))


def _ask_the_hub(name: str | Path) -> None:
    """One question, where a base is neither a folder nor in the cache: the loaders would retry for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if Path(name).is_dir() or isinstance(try_to_load_from_cache(str(name), "config.json"), str):
        return
    try:
        HfApi().model_info(str(name), timeout=10)
    except Exception as error:  # of whichever library carries the request
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name}: there is no such folder, and the hub does not give a model of that name: {first}"
        ) from None


def _longest(model: nn.Module) -> int | None:
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return None
    reserved = (  # RoBERTa and its kind count positions from after the padding index
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    )
    return most - max(reserved, default=0)


@contextmanager
def explained(name: str | Path) -> Iterator[None]:
    """Turns what Hugging Face raises for a missing or broken model into one message; silences its load report."""
    from safetensors import SafetensorError
    from transformers import logging

    folder = Path(name)
    if not folder.is_dir() and (folder.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1):
        raise InputError(f"{name}: no such folder: name a local model folder or a hub id such as 'bert-base-uncased'")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise InputError(f"{name}: the folder holds no model: it has no config.json")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = "the folder" if folder.is_dir() else "the hub id (or a folder of that name)"
        raise InputError(f"{name}: {where} cannot be loaded as a model with a tokenizer: {first}") from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
