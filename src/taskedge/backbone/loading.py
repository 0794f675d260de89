"""Load a base with its tokenizer or image processor, from a local folder or a hub id, with errors a user can act on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.gguf_file import (
    SUFFIX,
    GgufFile,
    is_gguf,
    is_local_base,
    pretrained_arguments,
    read_gguf,
    settle_config,
    settle_model,
    weight_arguments,
)
from taskedge.backbone.label_loss import use_label_loss
from taskedge.backbone.load_report import captured_log, cause, check_loaded, load_error
from taskedge.backbone.own_head import start_head
from taskedge.backbone.task_config import class_names, set_task_config
from taskedge.backbone.vocabulary import check_vocabulary
from taskedge.errors import InputError, TaskEdgeError, UnknownName

TASK_AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "multi-label-classification": "AutoModelForSequenceClassification",
    "text-regression": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
    "dialogue-state": "AutoModelForCausalLM",
    "text-to-text": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
}
"""The class of transformers that loads a base for each kind of task."""

PRETRAINED_HEAD_TASKS = ("text-generation", "text-to-text", "dialogue-state")
"""Tasks of which the base brings the head."""

FP16_OVERFLOWS = frozenset({"longt5", "mt5", "pix2struct", "switch_transformers", "t5", "udop", "umt5"})
"""Types of models whose activations exceed the range of fp16: T5 and its kind, which were trained in bf16."""

DTYPES: dict[str, Any] = {
    "auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64,
}  # fmt: skip
"""Dtypes that a base can be loaded in; ``auto`` is the dtype of its files, and fp32 for a GGUF file."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""The form of a hub id: a name, or an organization and a name."""


@dataclass(frozen=True)
class Base:
    """A base with a head for a task.

    Attributes:
        model: the base and its head, on the CPU.
        tokenizer: None for a model of images.
        new_parameters: names of parameters that are not in the base's files, or are replaced, so that they start at
            random: usually the head.
        max_positions: tokens that the base has positions for; None without such a limit.
        image_processor: of a model of images, else None.
        head: if the base's files hold a head, ``"base"`` if it is kept and ``"new"`` if it is replaced; else empty.
        tokens_without_embedding: ids and names of the tokenizer's tokens that the base has no embedding for.
        gguf: the file that the base was read from; None for a folder or a hub id.
    """

    model: nn.Module
    tokenizer: Any
    new_parameters: tuple[str, ...]
    max_positions: int | None
    image_processor: Any = None
    head: str = ""
    tokens_without_embedding: Mapping[int, str] = field(default_factory=dict)
    gguf: GgufFile | None = None


def load_classifier(name: str | Path, labels: Sequence[str], *, keep_head: bool = False) -> Base:
    """Load a base for text classification, in the dtype of its files (:func:`load_base`)."""
    return load_base("text-classification", name, labels, keep_head=keep_head)


def load_base(
    task: str,
    name: str | Path,
    labels: Sequence[str] = (),
    *,
    dtype: str = "auto",
    keep_head: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Base:
    """Load the base ``name`` for a kind of task, on the CPU.

    A classifier gets a head of ``len(labels)`` classes: the base's own if its classes have the same names, with its
    outputs in the order of ``labels`` (:func:`taskedge.backbone.own_head.class_order`), else a new one (from the
    generator of torch). A regression model gets a head of one output: the base's own if it has one output, else a new
    one. A causal language model or an encoder-decoder keeps its pretrained head and gets the loss of
    :mod:`taskedge.backbone.label_loss`. What the base's config says about the loss and the form of outputs has no
    effect (:mod:`taskedge.backbone.task_config`).

    Args:
        task: one of ``TASK_AUTO_CLASSES``.
        name: a folder, a hub id or a GGUF file, whose weights are dequantized.
        labels: the classes of a classifier.
        dtype: one of ``DTYPES``.
        keep_head: keep the base's own head whatever its classes are called, if it has as many outputs: its first output
            is the first label. For a delta that brings its head, or was made on the stored head.
        log: receives a line about a missing file and its replacement, about the base's own head, and about tokens
            without an embedding.

    Raises:
        InputError: no such folder or hub id, no network, a folder without a model or a tokenizer that fit, a tokenizer
            with more tokens than the model has embeddings for, a model that is not for this kind of task, or weights
            that are not safetensors (pickled ones are never read).
    """
    import transformers

    if task not in TASK_AUTO_CLASSES:
        raise UnknownName("task", task, TASK_AUTO_CLASSES)
    auto_class = getattr(transformers, TASK_AUTO_CLASSES[task])
    reads_images, has_task_head = task == "image-classification", task not in PRETRAINED_HEAD_TASKS
    reader = "an image processor" if reads_images else "a tokenizer"
    with explain_load_errors(name, reader), pretrained_arguments(name) as (location, arguments):
        gguf = read_gguf(name) if arguments else None
        config = transformers.AutoConfig.from_pretrained(location, **arguments)
        if type(config) not in auto_class._model_mapping:
            raise InputError(f"{name}: {_type_of(config)} and cannot be used for {task}: {_remedy(config)}")
        image_processor = _load_image_processor(name, config, log) if reads_images else None
        tokenizer = None if reads_images else transformers.AutoTokenizer.from_pretrained(location, **arguments)
        if gguf is not None:
            settle_config(config, gguf)
        own_classes = class_names(config)
        set_task_config(config, task, labels)
        model, loading = auto_class.from_pretrained(
            location,
            config=config,
            ignore_mismatched_sizes=True,  # a head of another size than the base's own is made anew, others are refused
            dtype=torch.float32 if gguf is not None and dtype == "auto" else DTYPES[dtype],
            output_loading_info=True,
            use_safetensors=True,  # the other kind of weight file is a pickle
            **weight_arguments(arguments),
        )
    if gguf is not None:
        settle_model(model, tokenizer, gguf, log)
    check_loaded(name, model, loading["missing_keys"], loading["mismatched_keys"], loading["unexpected_keys"], log)
    tokens_without_embedding: dict[int, str] = {}
    if tokenizer is not None:
        _prepare_tokenizer(name, tokenizer)
        tokens_without_embedding = check_vocabulary(name, tokenizer, model, log)
        if has_task_head:  # the model finds the last token of a text by it
            model.config.pad_token_id = tokenizer.pad_token_id
    mismatched = {entry[0] for entry in loading["mismatched_keys"]}
    not_loaded = mismatched | set(loading["missing_keys"])
    head = ""
    if not has_task_head:
        missing = [key for key, _ in model.named_parameters() if key in not_loaded]
        if task == "text-to-text":
            _check_encoder_decoder(name, model, config, missing)
        else:
            _check_language_model(name, model, config, missing)
        use_label_loss(model, log)
    elif not keep_head:
        head, renewed, text = start_head(model, own_classes, labels, not_loaded, mismatched)
        not_loaded |= set(renewed)
        if text:
            log(text)
    return Base(
        model,
        tokenizer,
        new_parameters=tuple(parameter for parameter, _ in model.named_parameters() if parameter in not_loaded),
        max_positions=None if reads_images else _max_positions(model),
        image_processor=image_processor,
        head=head,
        tokens_without_embedding=tokens_without_embedding,
        gguf=gguf,
    )


def locate_base(name: str, folder: Path) -> str:
    """Return where the base is that a file in ``folder`` names, as its writer gave it.

    A relative path is looked up from the current folder, then from ``folder``. A name that is no folder in either is
    returned unchanged: it may be a hub id.

    Raises:
        InputError: the name has the form of a path, and no such folder exists.
    """
    if not name or is_local_base(Path(name)):
        return name
    beside = folder / name
    if is_local_base(beside):
        return str(beside)
    if Path(name).is_absolute():
        raise InputError(f"{name}: no such folder or GGUF file")
    if _is_path(name) or _is_path(name, folder):
        raise InputError(f"{name}: no such {_missing(name)}, neither from {Path.cwd()} nor from {folder.resolve()}")
    return name


def _missing(name: str) -> str:
    """Return what a name that is not there would be: a GGUF file or a folder."""
    return "file" if name.lower().endswith(SUFFIX) else "folder"


def _is_path(name: str, folder: Path = Path()) -> bool:
    """Return whether a name can only be a path: a hub id has another form, or ``folder`` has the name's first part."""
    if name.startswith((".", "~")) or name.lower().endswith(SUFFIX) or not _HUB_ID.fullmatch(name):
        return True
    first, slash, _ = name.partition("/")
    return bool(slash) and (folder / first).is_dir()


@contextmanager
def explain_load_errors(name: str | Path, reader: str = "a tokenizer") -> Iterator[None]:
    """Turn the errors of Hugging Face for a missing or broken model into an InputError; silence its load report.

    A base that is neither a folder nor in the cache costs one request to the hub, without retries.
    """
    from transformers import logging

    folder = Path(name)
    if folder.is_file() and not is_gguf(folder):
        raise InputError(
            f"{name} is a file: name the folder of a model, a GGUF file, or a hub id such as 'bert-base-uncased'"
        )
    if not folder.exists() and _is_path(str(name)):
        missing = _missing(str(name))
        other = "a GGUF file or a local model folder" if missing == "file" else "a local model folder"
        raise InputError(f"{name}: no such {missing}: name {other} or a hub id such as 'bert-base-uncased'")
    if folder.is_dir() and not (folder / "config.json").exists():
        raise InputError(f"{name}: the folder holds no model: it has no config.json")
    logging.disable_progress_bar()
    try:
        with captured_log() as report:
            _check_hub(name)
            yield
    except TaskEdgeError:
        raise
    except Exception as error:  # whatever a config, a tokenizer or a model makes of the files
        raise load_error(name, reader, error, report) from None
    finally:
        logging.enable_progress_bar()


def _prepare_tokenizer(name: str | Path, tokenizer: Any) -> None:
    """Check that the tokenizer has a vocabulary, and give it a padding token if it has none."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what Hugging Face makes of a folder without its files
        raise InputError(f"{name}: it comes without a tokenizer: put the one it was trained with into the folder")
    if tokenizer.pad_token_id is None:  # such as GPT-2's: padding is masked, so any token will do
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: its tokenizer has neither a padding nor an end token: set its pad_token")
        tokenizer.pad_token = tokenizer.eos_token


def _check_language_model(name: str | Path, model: nn.Module, config: Any, new_parameters: Sequence[str]) -> None:
    """Check that the model can generate; transformers makes a language model of any text encoder."""
    try:
        looks_ahead = _looks_ahead(model)
    except Exception as error:  # whatever the model's code meets
        raise InputError(
            f"{name}: {_type_of(config)} that fails on a text of two tokens ({type(error).__name__}: {cause(error)}): "
            "correct its config.json, or name another base"
        ) from error
    if looks_ahead is None:
        raise InputError(
            f"{name}: its logits are not numbers: a weight in its files is not finite, so download the base again"
        )
    if looks_ahead:
        raise InputError(
            f"{name}: {_type_of(config)} that reads a text as a whole (an encoder), so it cannot generate one: name a "
            f"causal language model, or a column with labels (--label) to tune this one for"
        )
    if new_parameters:
        raise InputError(
            f"{name}: its files hold no language-model head ({new_parameters[0]!r} is missing), so it cannot generate "
            "text: name a folder that does"
        )


def _check_encoder_decoder(name: str | Path, model: Any, config: Any, new_parameters: Sequence[str]) -> None:
    """Check that an encoder-decoder can be trained to write texts."""
    if model.dtype == torch.float16 and config.model_type in FP16_OVERFLOWS:
        raise InputError(
            f"{name}: its weights are fp16, and the activations of a model of type {config.model_type!r} exceed the "
            "largest fp16 number (65,504), so its outputs are not finite: load it with --dtype bf16 or --dtype fp32"
        )
    if new_parameters:
        raise InputError(
            f"{name}: its files hold no language-model head ({new_parameters[0]!r} is missing), so it cannot write "
            "texts: name a folder that does"
        )
    if getattr(config, "decoder_start_token_id", None) is None:
        raise InputError(
            f"{name}: decoder_start_token_id is not set in its config.json, so its decoder has no first token: set it "
            "(for T5: pad_token_id)"
        )


def _looks_ahead(model: nn.Module) -> bool | None:
    """Return whether the model's output at a token depends on the token after it; None if it is not a number."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[1, 2], [1, 3]]), attention_mask=torch.ones(2, 2).long()).logits
    model.train(was_training)
    first, second = logits[:, 0].float()
    if bool(first.isnan().any()):
        return None
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


def _type_of(config: Any) -> str:
    return f"it is a model of type {config.model_type!r}"


def _remedy(config: Any) -> str:
    """Return what a base that does not fit the task can be used for."""
    import transformers

    encoder = type(config) in transformers.AutoModelForMaskedLM._model_mapping  # these have a causal class, too
    tasks = [
        task
        for task, name in TASK_AUTO_CLASSES.items()
        if type(config) in getattr(transformers, name)._model_mapping
        and not (encoder and task in ("text-generation", "dialogue-state"))
    ]
    if not tasks:
        return "taskedge tunes no model of this type; name another with --model"
    named = " or ".join([", ".join(tasks[:-1]), tasks[-1]] if tasks[1:] else tasks)
    return f"name another base with --model, or give this one data for {named}"


def _load_image_processor(name: str | Path, config: Any, log: Callable[[str], None]) -> Any:
    """Return the base's own; if it has none, one that scales to the size in the config and to values from -1 to 1."""
    from transformers import AutoImageProcessor, ViTImageProcessor
    from transformers.utils import cached_file

    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise InputError(f"{name}: {_type_of(config)} for images of {channels} channels; only those of 3 can be used")
    try:
        return AutoImageProcessor.from_pretrained(str(name))
    except OSError:
        if cached_file(str(name), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False):
            raise  # it is there and broken
    size = getattr(config, "image_size", None)
    height, width = (size, size) if isinstance(size, int) else tuple(size or (None, None))
    if not height or not width:
        raise InputError(f"{name}: it has neither a preprocessor_config.json nor an image_size: put the former there")
    log(f"{name} has no preprocessor_config.json: images become {height} x {width}, their values -1 to 1")
    return ViTImageProcessor(size={"height": height, "width": width})


def _check_hub(name: str | Path) -> None:
    """Query the hub once for a base that is neither a folder nor in the cache: the loaders would retry for a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if is_local_base(Path(name)) or isinstance(try_to_load_from_cache(str(name), "config.json"), str):
        return
    try:
        HfApi().model_info(str(name), timeout=10)
    except Exception as error:  # of whichever library carries the request
        raise InputError(
            f"{name}: there is no such folder, and the hub does not give a model of that name: {cause(error)}"
        ) from None


def _max_positions(model: nn.Module) -> int | None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    reserved = (  # RoBERTa and its kind count positions from after the padding index
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    )
    return positions - max(reserved, default=0)
