"""Exports: the forms in which a delta goes to other programs, one file and one registration each.

An export is a function ``(source, path, **options) -> facts`` that writes ``path``, registered with what it makes::

    @exports("merged", makes=MODEL, loads="{auto}.from_pretrained({path!r})")
    def merged(source, path):
        "A plain model folder."
        source.model.save_pretrained(path)
        return {}

It is handed a path aside; what it wrote is renamed to where the caller wants it once it is whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.backbone.loading import AUTO
from taskedge.delta.apply import applied
from taskedge.delta.delta import Delta
from taskedge.errors import InputError
from taskedge.io.atomic import file_aside, folder_aside
from taskedge.registry import Registry


@dataclass(frozen=True)
class Source:
    """What an export reads.

    Attributes:
        model: the base *with the delta applied*; what it held before is in :func:`taskedge.delta.apply.applied_to`.
        delta: the delta.
        base: folder or hub id of the base, as others will have to name it; empty where it is not known.
        processor: what goes into a model folder beside the weights (a tokenizer, an image processor), or None.
    """

    model: nn.Module
    delta: Delta
    base: str = ""
    processor: Any = None


Write = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Made:
    """What kind of thing an export makes: ``marker`` is the file by which a folder of it is known; None: a file."""

    name: str
    marker: str | None


MODEL = Made("model folder", "config.json")
ADAPTER = Made("adapter folder", "adapter_config.json")
FILE = Made("file", None)


@dataclass(frozen=True)
class Export:
    """A function that writes, what it makes, and how that is loaded.

    In ``loads``, ``{path!r}`` stands for where it is, and ``{auto}`` for transformers' class for such models.
    """

    write: Write
    makes: Made
    loads: str


EXPORTS: Registry[Export] = Registry("export", "taskedge.delta.interop")


def exports(name: str, *, makes: Made, loads: str) -> Callable[[Write], Write]:
    """Registers a function that writes a delta for other programs."""

    def register(write: Write) -> Write:
        EXPORTS.add(name, Export(write, makes, loads))
        return write

    return register


@dataclass(frozen=True)
class Exported:
    """What was written."""

    out: Path
    bytes: int
    loads: str
    """How to load it, as a line of Python."""
    facts: dict[str, Any]
    """What the export has to say of it: counts, the layout chosen."""


def export(
    model: nn.Module,
    delta: Delta,
    out: str | Path,
    *,
    to: str,
    base: str = "",
    processor: Any = None,
    force: bool = False,
    **options: Any,
) -> Exported:
    """Writes a delta in a form that other programs read; aside first, then renamed, so that it is whole or not there.

    Args:
        model: the delta's base, fresh or with the delta applied; it is left as it was.
        delta: from :func:`taskedge.load` or :func:`taskedge.extract`.
        out: the folder or file to make.
        to: ``"merged"``, ``"peft"`` or ``"patch"`` (docs/interoperability.md).
        base: folder or hub id of the base; the one that the delta names where it is empty.
        processor: the tokenizer or image processor, saved into a model folder, if given.
        force: replace what is there, and apply even to a base with other values.
        options: of the export, such as ``peft_type="shira"``.

    Raises:
        UnknownName: no export is called ``to``.
        InputError: ``out`` is taken or cannot be written, or the form cannot hold this delta; nothing is written.
        BaseMismatch: the model is not the delta's base.
    """
    out, chosen = Path(out), EXPORTS[to]
    refuse_taken(out, to=to, force=force)
    with applied(model, delta, force=force):
        source = Source(model, delta, base or delta.provenance.base, processor)
        aside = file_aside if chosen.makes.marker is None else folder_aside
        with aside(out) as place:
            facts = chosen.write(source, place, **options)
    files = [out] if out.is_file() else [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return Exported(out, size, chosen.loads.format(path=str(out), auto=_auto(model, delta)), facts)


def refuse_taken(out: Path, *, to: str, force: bool) -> None:
    """Raises InputError where ``out`` is there and may not be replaced; ``force`` replaces only what is of its kind."""
    made = EXPORTS[to].makes
    if not out.exists():
        return
    if not force:
        raise InputError(f"{out} exists: name another {_plain(made)} with --out, or replace it with --force")
    ours = out.is_file() if made.marker is None else out.is_dir() and _replaceable(out, made.marker)
    if not ours:
        raise InputError(f"{out} is there and is no {made.name}, so --force leaves it alone: name another with --out")


def _replaceable(folder: Path, marker: str) -> bool:
    return (folder / marker).exists() or not any(folder.iterdir())


def _auto(model: nn.Module, delta: Delta) -> str:
    """transformers' class for the task, or ``AutoModelForTokenClassification`` for a ``BertForTokenClassification``."""
    if delta.provenance.task in AUTO:
        return AUTO[delta.provenance.task]
    name = type(model).__name__
    purpose = re.search("For[A-Z].*$", name)
    return f"AutoModel{purpose.group()}" if purpose else name


def _plain(made: Made) -> str:
    return "file" if made.marker is None else "folder"
