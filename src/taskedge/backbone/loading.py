"""Loads a base, and what makes tensors of its data, from a local folder or a hub id, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.errors import InputError, UnknownName

AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "text-regression": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
}
"""The class of transformers that loads a base for each kind of task."""

DTYPES: dict[str, Any] = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}
"""What a base can be loaded in; ``auto``: what its files say."""


@dataclass(frozen=True)
class Base:
    """A base with a head for a task."""

    model: nn.Module
    tokenizer: Any
    """None for a model of images."""
    fresh: tuple[str, ...]
    """Names of parameters that the base's files do not hold, so that they started at random: the head, as a rule."""
    longest: int | None
    """Tokens that the base has positions for; None where it has no such limit."""
    images: Any = None
    """The image processor of a model of images."""


def load_classifier(name: str | Path, labels: Sequence[str]) -> Base:
    """:func:`load_base` for text classification, in the dtype that the files say."""
    return load_base("text-classification", name, labels)


def load_base(
    task: str,
    name: str | Path,
    labels: Sequence[str] = (),
    *,
    dtype: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> Base:
    """The base ``name`` for a kind of task, on the CPU.

    A classifier gets a head of ``len(labels)`` classes, a regression one of one output: the base's own where it has as
    many, a fresh one (from torch's generator) otherwise. A causal language model has its own head, which is pretrained.

    Args:
        task: one of ``AUTO``.
        name: a folder or a hub id.
        labels: the classes of a classifier.
        dtype: one of ``DTYPES``.
        say: told what is missing and how that is made up for.

    Raises:
        InputError: no such folder or hub id, no network, a folder without a model or a tokenizer that fit, a model that
            is not for this kind of task, or weights that are not safetensors (pickled ones are never read).
    """
    import transformers

    if task not in AUTO:
        raise UnknownName("task", task, AUTO)
    auto = getattr(transformers, AUTO[task])
    of_images, with_head = task == "image-classification", task != "text-generation"
    with explained(name, "an image processor" if of_images else "a tokenizer"):
        _ask_the_hub(name)
        config = transformers.AutoConfig.from_pretrained(str(name))
        if type(config) not in auto._model_mapping:
            raise InputError(f"{name}: {_what(config)} and cannot be used for {task}: {_instead(config)}")
        images = _image_processor(name, config, say) if of_images else None
        tokenizer = None if of_images else transformers.AutoTokenizer.from_pretrained(str(name))
        model, loading = auto.from_pretrained(
            str(name),
            **(_head(task, labels) if with_head else {}),
            dtype=DTYPES[dtype],
            output_loading_info=True,
            use_safetensors=True,  # the other kind of weight file is a pickle
        )
    if tokenizer is not None:
        _check_tokenizer(name, tokenizer)
        if with_head:  # it finds the last token of a text by it
            model.config.pad_token_id = tokenizer.pad_token_id
    started = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
    fresh = tuple(parameter for parameter, _ in model.named_parameters() if parameter in started)
    if not with_head:
        _check_language_model(name, model, config, fresh)
    return Base(model, tokenizer, fresh, None if of_images else _longest(model), images)


def _head(task: str, labels: Sequence[str]) -> dict[str, Any]:
    """What a configuration says of the head; one of another size than the base's own is made anew."""
    if task == "text-regression":
        return {"num_labels": 1, "problem_type": "regression", "ignore_mismatched_sizes": True}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
        "ignore_mismatched_sizes": True,
    }


def _check_tokenizer(name: str | Path, tokenizer: Any) -> None:
    """It must hold words, and gets a padding token where it has none."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what Hugging Face makes where no file says more
        raise InputError(f"{name}: it comes without a tokenizer: put the one it was trained with into the folder")
    if tokenizer.pad_token_id is None:  # GPT-2 and its kind: padding is masked, so any token does
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: its tokenizer has neither a padding nor an end token: set its pad_token")
        tokenizer.pad_token = tokenizer.eos_token


def _check_language_model(name: str | Path, model: nn.Module, config: Any, fresh: Sequence[str]) -> None:
    """Transformers makes a language model of any text encoder; whether it can generate shows when it is run."""
    if _looks_ahead(model):
        raise InputError(
            f"{name}: {_what(config)} that reads a text as a whole (an encoder), so it cannot generate one: name a "
            f"causal language model, or a column with labels (--label) to tune this one for"
        )
    if fresh:
        raise InputError(
            f"{name}: its files hold no language-model head ({fresh[0]!r} is missing), so it cannot generate text: "
            "name a folder that does"
        )


def _looks_ahead(model: nn.Module) -> bool:
    """Whether what the model says at a token depends on the token after it."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[1, 2], [1, 3]]), attention_mask=torch.ones(2, 2).long()).logits
    model.train(was_training)
    first, second = logits[:, 0].float()
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


def _what(config: Any) -> str:
    return f"it is a model of type {config.model_type!r}"


def _instead(config: Any) -> str:
    """What a base that does not fit the task can be used for."""
    import transformers

    encoder = type(config) in transformers.AutoModelForMaskedLM._model_mapping  # these have a causal class, too
    can = [
        task
        for task, auto in AUTO.items()
        if type(config) in getattr(transformers, auto)._model_mapping and not (encoder and task == "text-generation")
    ]
    if not can:
        return "taskedge tunes no model of this type; name another with --model"
    return f"name another base with --model, or give this one data for {' or '.join(can)}"


def _image_processor(name: str | Path, config: Any, say: Callable[[str], None]) -> Any:
    """The base's own; where it has none, one that scales to the size of the config and to values from -1 to 1."""
    from transformers import AutoImageProcessor, ViTImageProcessor
    from transformers.utils import cached_file

    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise InputError(f"{name}: {_what(config)} for images of {channels} channels; only those of 3 can be used")
    try:
        return AutoImageProcessor.from_pretrained(str(name))
    except OSError:
        if cached_file(str(name), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False):
            raise  # it is there and broken
    size = getattr(config, "image_size", None)
    height, width = (size, size) if isinstance(size, int) else tuple(size or (None, None))
    if not height or not width:
        raise InputError(f"{name}: it has neither a preprocessor_config.json nor an image_size: put the former there")
    say(f"{name} has no preprocessor_config.json: images become {height} x {width}, their values -1 to 1")
    return ViTImageProcessor(size={"height": height, "width": width})


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
def explained(name: str | Path, reader: str = "a tokenizer") -> Iterator[None]:
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
        raise InputError(f"{name}: {where} cannot be loaded as a model with {reader}: {first}") from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
