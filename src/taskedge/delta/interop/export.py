"""Exports: a delta in formats of other programs, one function and one registration each.

An export is a function ``(source, path, **options) -> details`` that writes ``path``, registered with its output kind::

    @exports("merged", makes=MODEL, loads="{auto}.from_pretrained({path!r})", reads=merged_reader)
    def merged(source, path):
        "A plain model folder."
        source.model.save_pretrained(path)
        return {}

``path`` is an empty temporary file or folder. It is renamed to the caller's path once the function has returned and
the self-check has passed: ``reads`` makes a function from a batch to logits of what was written, and these are compared
with the model's (:mod:`taskedge.delta.interop.self_check`).
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.backbone.layers import linears
from taskedge.backbone.loading import TASK_AUTO_CLASSES
from taskedge.delta.apply import applied, applied_to
from taskedge.delta.delta import Delta
from taskedge.delta.filter_delta import refuse_filters
from taskedge.delta.interop.self_check import Batch, check_rows, self_check
from taskedge.delta.prompt_delta import refuse_prompt
from taskedge.errors import InputError
from taskedge.io.atomic import atomic_file, atomic_folder, require_parent
from taskedge.registry import Registry


@dataclass(frozen=True)
class Source:
    """The input of an export.

    Attributes:
        model: the base *with the delta applied*; :func:`taskedge.delta.apply.applied_to` has the values before.
        delta: the delta.
        base: folder or hub id of the base; empty if unknown.
        processor: tokenizer or image processor to save in a model folder, or None.
    """

    model: nn.Module
    delta: Delta
    base: str = ""
    processor: Any = None


Write = Callable[..., dict[str, Any]]
Read = Callable[[Source, Path], Callable[[Batch], Any]]


@dataclass(frozen=True)
class OutputKind:
    """Kind of an export's output.

    Attributes:
        name: noun with article for messages, such as ``"a file"``.
        marker: JSON file that a folder of this kind has; None for a single file.
        marker_key: key that the marker has.
        files: patterns of the paths in a folder of this kind. A folder with any other file is never replaced.
    """

    name: str
    marker: str | None = None
    marker_key: str = ""
    files: tuple[str, ...] = ()


TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.spm", "bpe.codes", "emoji.json"),
    *("vocab-src.json", "vocab-tgt.json", "chat_template.jinja", "additional_chat_templates/*.jinja"),
)
_WEIGHT_FILES = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")

MODEL = OutputKind(
    "a model folder",
    "config.json",
    "model_type",
    (
        "README.md",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        *_WEIGHT_FILES,
        *TOKENIZER_FILES,
    ),
)
ADAPTER = OutputKind(
    "an adapter folder", "adapter_config.json", "peft_type", ("adapter_config.json", "adapter_model.safetensors")
)
FILE = OutputKind("a file")


@dataclass(frozen=True)
class Export:
    """A registered export.

    Attributes:
        write: the function.
        makes: kind of its output.
        loads: how to load the output, as a line of Python in which ``{path!r}`` is its path and ``{auto}`` the class of
            transformers for the model.
        reads: makes a function from a batch to the logits of what was written.
        tolerance: largest difference of these logits from the model's, for an fp32 base; relative above 1.
    """

    write: Write
    makes: OutputKind
    loads: str
    reads: Read | None = None
    tolerance: float = 1e-5


EXPORTS: Registry[Export] = Registry("export", "taskedge.delta.interop")


def exports(
    name: str, *, makes: OutputKind, loads: str, reads: Read | None = None, tolerance: float = 1e-5
) -> Callable[[Write], Write]:
    """Register a function that writes a delta in another format; see :class:`Export`."""

    def register(write: Write) -> Write:
        EXPORTS.add(name, Export(write, makes, loads, reads, tolerance))
        return write

    return register


@dataclass(frozen=True)
class ExportResult:
    """The result of :func:`export`.

    Attributes:
        out: the written file or folder.
        bytes: its size.
        loads: how to load it, as a line of Python.
        details: counts and choices of the export, JSON-able.
        forced: how the base differs from the delta's base, if ``force`` applied it nevertheless; else empty.
    """

    out: Path
    bytes: int
    loads: str
    details: dict[str, Any]
    forced: str = ""


def export(
    model: nn.Module,
    delta: Delta,
    out: str | Path,
    *,
    to: str,
    base: str = "",
    processor: Any = None,
    replace: bool = False,
    force: bool = False,
    check: bool = True,
    rows: Sequence[str] = (),
    **options: Any,
) -> ExportResult:
    """Write a delta in the format of another program, atomically, and compare it with the model on some rows.

    Args:
        model: the delta's base, with or without the delta applied; it is restored afterwards.
        delta: from :func:`taskedge.load` or :func:`taskedge.extract`.
        out: folder or file to write.
        to: ``"merged"``, ``"lora"``, ``"onnx"`` or another form of docs/interoperability.md.
        base: folder or hub id of the base; by default the base that the delta names.
        processor: tokenizer or image processor to save in a model folder.
        replace: replace existing output of the same kind.
        force: apply even to a base with other values.
        check: run the self-check.
        rows: texts for the self-check; by default sentences of its own.
        options: options of the export, such as ``peft_type="shira"``.

    Raises:
        UnknownName: ``to`` is not a registered export.
        InputError: ``out`` exists or cannot be written (:func:`check_output`), or the format cannot represent this
            delta; nothing is written.
        BaseMismatch: the model is not the delta's base.
        ExportDiffers: what was written computes something else than the model; nothing is written.
    """
    out, chosen = Path(out), EXPORTS[to]
    base = base or delta.provenance.base
    refuse_filters(delta, f"an export to {to!r}")
    refuse_prompt(delta, f"an export to {to!r}")
    check_output(out, to=to, base=base, replace=replace, force=force)
    with applied(model, delta, force=force):
        record = applied_to(model)
        assert record is not None
        source = Source(model, delta, base, processor)
        atomic = atomic_file if chosen.makes.marker is None else atomic_folder
        with atomic(out) as tmp:
            details = chosen.write(source, tmp, **options)
            tolerance = details.pop("tolerance", None)
            details |= _checked(chosen, source, tmp, to, rows, tolerance) if check else {"checked_rows": 0}
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    loads = chosen.loads.format(path=str(out), auto=_auto_class(model, delta))
    return ExportResult(out, size, loads, details, record.forced)


def _checked(
    chosen: Export, source: Source, path: Path, to: str, rows: Sequence[str], tolerance: float | None
) -> dict[str, Any]:
    """Return what the self-check found; ``checked_rows`` is 0 if no rows can be made or weights are read-only."""
    from transformers import PreTrainedModel

    layers = linears(source.model)
    read_only = any(layers[name].is_read_only for name in (*source.delta.linears, *source.delta.low_rank))
    if chosen.reads is None or read_only or not isinstance(source.model, PreTrainedModel):
        return {"checked_rows": 0}
    batches = check_rows(source.model, source.processor, rows)
    if not batches:
        return {"checked_rows": 0}
    what = f"the self-check of --to {to}"
    return self_check(source.model, batches, chosen.reads(source, path), tolerance or chosen.tolerance, what)


def check_output(out: Path, *, to: str, base: str = "", replace: bool = False, force: bool = False) -> None:
    """Check that an export may write ``out``, before any work.

    Args:
        out: folder or file to write.
        to: the export.
        base: folder of the base, or a hub id.
        replace: replace existing output of the same kind, provided that nothing but such output is lost.
        force: affects the message only: ``force`` replaces nothing.

    Raises:
        InputError: ``out`` exists and ``replace`` is not given; it is of another kind, holds other files, or is (part
            of) the base; its parent folder does not exist.
    """
    kind = EXPORTS[to].makes
    noun = "file" if kind.marker is None else "folder"
    require_parent(out)
    if not out.exists():
        return
    if Path(base).is_dir() and base and any(path.samefile(base) for path in (out, *out.resolve().parents)):
        raise InputError(f"{out} is the base itself or a part of it, which is never replaced: name another {noun}")
    if not replace:
        difference = " (--force skips the check of the base only)" if force else ""
        raise InputError(f"{out} exists: name another {noun} with --out, or replace it with --replace{difference}")
    if not (out.is_file() if kind.marker is None else _is_of_kind(out, kind)):
        raise InputError(f"{out} exists and is not {kind.name}, so --replace keeps it: name another path with --out")
    foreign = _foreign_files(out, kind)
    if foreign:
        raise InputError(
            f"{out} holds {len(foreign)} files that are not of {kind.name} and would be lost ({_some(foreign)}): move "
            "them, or name another folder with --out"
        )


def _is_of_kind(folder: Path, kind: OutputKind) -> bool:
    """Return whether a folder is empty or has the marker of its kind."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return kind.marker_key in json.loads((folder / (kind.marker or "")).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _foreign_files(folder: Path, kind: OutputKind) -> list[str]:
    """Return the paths in a folder, relative to it, that an export of this kind does not write; for a file, none."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir())]
    relative = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [path for path in relative if not any(_matches(path, pattern) for pattern in kind.files)]


def _matches(path: str, pattern: str) -> bool:
    """Return whether a relative path has the form of the pattern; ``*`` does not match a slash."""
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def _some(names: Sequence[str], count: int = 5) -> str:
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown


def _auto_class(model: nn.Module, delta: Delta) -> str:
    """Return the auto class of the task, or of the model's class name (``BertForTokenClassification``)."""
    if delta.provenance.task in TASK_AUTO_CLASSES:
        return TASK_AUTO_CLASSES[delta.provenance.task]
    name = type(model).__name__
    purpose = re.search("For[A-Z].*$", name)
    return f"AutoModel{purpose.group()}" if purpose else name
