"""Reports on a failed or incomplete load of a base: which file of weights or tokenizer is at fault, and what to do."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskedge.backbone.candidates import head_parameters
from taskedge.errors import InputError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SENTENCEPIECE_FILES = ("*.model", "*.spm")
CONVERT = (
    'python -c "import torch as t, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in '
    "t.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})\""
)
"""A command that converts a file of pickled weights in the current folder."""
_MAX_CAUSE = 1000
_IN_LIST = re.compile(r"\.\d+\.")
"""Names of parameters in a list of layers."""


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Yield a list that receives the warnings of transformers inside the block, instead of standard error."""
    from transformers.utils import logging as theirs

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = theirs.get_logger("transformers")
    before, logger.handlers = logger.handlers, [handler]
    verbosity = theirs.get_verbosity()
    theirs.set_verbosity_warning()
    try:
        yield lines
    finally:
        theirs.set_verbosity(verbosity)
        logger.handlers = before


def load_error(name: str | Path, reader: str, error: BaseException, report: Sequence[str] = ()) -> InputError:
    """Return the error for a base that transformers cannot load.

    Args:
        name: the folder or hub id.
        reader: what the base needs beside its weights, such as ``"a tokenizer"``.
        error: what transformers raised.
        report: what it logged before.
    """
    folder = Path(name)
    if folder.is_file():
        reason = _unread_gguf(error) or cause(error)
        return InputError(f"{name}: the GGUF file cannot be loaded as a model with {reader}: {reason}")
    where = "the folder" if folder.is_dir() else "the hub id (or a folder of that name)"
    reason = _pickles(folder, error) or _sentencepiece(folder, error) or _damaged(folder) or cause(error)
    if "above report" in reason and report:
        reason += f" The report: {_one_line(report[-1])}"
    return InputError(f"{name}: {where} cannot be loaded as a model with {reader}: {reason}")


def cause(error: BaseException) -> str:
    """Return the whole message of an error and of those that caused it, on one line of at most 1,000 characters."""
    texts: list[str] = []
    link: BaseException | None = error
    while link is not None and len(texts) < 3:
        text = _one_line(str(link)) or type(link).__name__
        if not any(text in earlier for earlier in texts):
            texts.append(text)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    whole = "; because of: ".join(texts)
    return whole if len(whole) <= _MAX_CAUSE else f"{whole[:_MAX_CAUSE]}... ({len(whole):,} characters)"


def check_loaded(
    name: str | Path, model: Any, missing: Collection[str], mismatched: Collection[Any], unused: Collection[str],
    log: Callable[[str], None],
) -> None:  # fmt: skip
    """Check that the base's files hold the weights that its config describes.

    Args:
        name: the base, for messages.
        model: the model.
        missing: parameters that the files do not hold.
        mismatched: (name, shape in the files, shape in the model) of parameters in another size than in the files.
        unused: tensors of the files that the model has no place for.
        log: receives lines about parts outside the blocks that start at random, and about weights that are not used.

    Raises:
        InputError: parameters of the blocks or embeddings would start at random.
    """
    own_head = set(head_parameters(model))
    missing = [parameter for parameter, _ in model.named_parameters() if parameter in missing]  # in the model's order
    for parameter, stored, wanted in sorted(mismatched):
        if parameter not in own_head:
            raise InputError(
                f"{name}: {parameter!r} is {list(stored)} in its files and {list(wanted)} by its config.json"
                f"{_field_of(model, parameter, stored, wanted)}: correct config.json, or name the folder of these files"
            )
    embeddings = _embedding_names(model)
    lost = [parameter for parameter in missing if _IN_LIST.search(parameter) or parameter in embeddings]
    if lost:
        raise InputError(
            f"{name}: its files lack {len(lost)} weights that its config.json describes, {lost[0]!r} first: a file is "
            "missing or belongs to another model: download the base again"
        )
    others = [parameter for parameter in missing if parameter not in own_head]
    if others:
        log(f"the base's files lack {len(others)} weights outside its blocks, which start at random: {_shown(others)}")
    body = f"{getattr(model, 'base_model_prefix', '')}."
    ignored = [tensor for tensor in sorted(unused) if tensor.startswith(body) or _IN_LIST.search(tensor)]
    if ignored:
        log(f"{len(ignored)} weights of the base's files have no place in the model of its config: {_shown(ignored)}")


def _pickles(folder: Path, error: BaseException) -> str:
    """Return what to do about weights that are pickled only; empty if that is not the fault."""
    found = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)) if folder.is_dir() else []
    has_safe = folder.is_dir() and any(folder.glob("*.safetensors"))
    if has_safe or not (found or (not folder.is_dir() and "safetensors" in str(error))):
        return ""
    if not re.search(r"safetensors", str(error)):
        return ""
    files = f"its weights are pickled ({', '.join(found[:3])})" if found else "it has no weights as safetensors"
    return (
        f"{files}, and pickles are never read, since reading one can run code. Convert it once, on a machine without "
        f"secrets, in the folder: {CONVERT} (several files: docs/tasks.md)"
    )


def _sentencepiece(folder: Path, error: BaseException) -> str:
    """Return what to do about a SentencePiece tokenizer without its library; empty if that is not the fault."""
    text = str(error)
    found = sorted(path.name for pattern in SENTENCEPIECE_FILES for path in folder.glob(pattern))
    named = re.search(r"sentencepiece|tiktoken", text, re.IGNORECASE)
    if find_spec("sentencepiece") is not None or not named or (folder.is_dir() and not found):
        return ""
    what = f"its tokenizer is a SentencePiece file ({found[0]})" if found else "it may have a SentencePiece tokenizer"
    return f"{what}, and sentencepiece is not installed: pip install 'taskedge[sentencepiece]'; {cause(error)}"


def _damaged(folder: Path) -> str:
    """Return which file of a folder is damaged; empty if none is."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            return f"{path.name} is damaged ({_one_line(str(error))}): download it again"
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path.name} is damaged ({_one_line(str(error))}): download it again"
    return ""


def _unread_gguf(error: BaseException) -> str:
    """Return which architectures transformers reads, if it does not read that of the file; else empty."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if "not supported" not in str(error) and not isinstance(error, NotImplementedError):
        return ""
    known = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
    return f"{cause(error)} Name the model's own folder, or a file of another architecture ({', '.join(known)})"


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def _field_of(model: Any, parameter: str, stored: Any, wanted: Any) -> str:
    """Return the field of the config that gives a parameter the size in its files, if there is one.

    Several fields often have the same value. Each is tried: the model is made with it, without memory for its weights.
    """
    differing = [(old, new) for old, new in zip(stored, wanted, strict=False) if old != new]
    if len(stored) != len(wanted) or len(differing) != 1:
        return ""
    old, new = differing[0]
    equal = [field for field, value in vars(model.config).items() if value == new and not isinstance(value, bool)]
    fields = [field for field in equal if _shape_with(model, parameter, {field: old}) == list(stored)]
    return f" ({' or '.join(fields)} {new}, not {old})" if fields else ""


def _shape_with(model: Any, parameter: str, changes: dict[str, Any]) -> list[int] | None:
    """Return the shape of a parameter by a changed config; None if the model cannot be made so."""
    import torch

    config = deepcopy(model.config)
    try:
        for field, value in changes.items():
            setattr(config, field, value)
        with torch.device("meta"):
            made = type(model)(config)
        return list(made.get_parameter(parameter).shape)
    except Exception:  # whatever a model's code raises on sizes that do not fit together
        return None


def _embedding_names(model: Any) -> set[str]:
    try:
        weight = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        return set()
    return {name for name, parameter in model.named_parameters() if parameter is weight}


def _shown(names: Collection[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
