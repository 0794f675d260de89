"""The container: named tensors and a JSON header in one safetensors file, with a digest over both.

Delta, support, checkpoint, version and weight patch are containers of different kinds. Metadata of the file:

    KEY       the header, JSON; its ``format`` states kind and version, such as ``taskedge-delta/1``
    digest    hex BLAKE2b (128 bit) over the header's text and over every tensor's name, dtype, shape and bytes

The digest detects accidental damage. It is no protection against forgery. A safetensors file holds no executable
content, and reading one never runs code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskedge.errors import InputError, TaskEdgeError
from taskedge.io.atomic import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

DIGEST = "digest"


@dataclass(frozen=True)
class Container:
    """The content of a container file.

    Attributes:
        header: the JSON header.
        text: the header as it stands in the file.
        tensors: by name, on the CPU.
    """

    header: dict[str, Any]
    text: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class ContainerKind:
    """One kind of container file: reads and writes it.

    Attributes:
        name: noun for messages, such as ``"delta"``.
        key: metadata key of the header.
        error: exception class of bad content.
        max_bytes: larger files are refused before they are read.
        format: written as the header's ``format``; empty if the headers of this kind state none.
        older_formats: formats that are read beside ``format``; the empty text stands for a header without one.
        without_digest: formats whose files have no digest. For all others it is required.
        remedy: what to do about a damaged file, such as ``"fetch the file again"``.
    """

    name: str
    key: str
    error: type[TaskEdgeError]
    max_bytes: int = 2**40
    format: str = ""
    older_formats: tuple[str, ...] = ()
    without_digest: tuple[str, ...] = ()
    remedy: str = ""

    def pack(self, header: Mapping[str, Any], tensors: Mapping[str, Tensor], *, also_digest: str = "") -> bytes:
        """Return the bytes of a file.

        Equal content gives equal bytes.

        Args:
            header: JSON-able, without ``format``.
            tensors: any device and memory layout.
            also_digest: text stored elsewhere that the digest covers too.

        Raises:
            TypeError: the header is not JSON-able.
        """
        stated = {"format": self.format} if self.format else {}
        text = json.dumps(stated | dict(header), separators=(",", ":"))
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        metadata = {self.key: text}
        if self.format not in self.without_digest:
            metadata[DIGEST] = content_digest(text + also_digest, tensors)
        return serialize(tensors, metadata)

    def write(self, path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a file atomically; see :meth:`pack`.

        Raises:
            WriteError: it cannot be written; an existing file is untouched.
            TypeError: the header is not JSON-able.
        """
        write_atomic(path, self.pack(header, tensors))

    def read(self, path: Path) -> Container:
        """Read a file completely and check it.

        Raises:
            InputError: the file is missing or cannot be read.
            TaskEdgeError: (``error``) see :meth:`unpack`.
        """
        try:
            size = path.stat().st_size
            if size > self.max_bytes:
                raise self.error(f"{path}: {size:,} bytes is more than any {self.name} holds ({self.max_bytes:,})")
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        return self.unpack(content, path=path)

    def unpack(self, content: bytes, *, path: Path | None = None, also_digest: str = "") -> Container:
        """Return the content of a file's bytes, after checking it.

        Args:
            content: all bytes of the file.
            path: of the file, for messages.
            also_digest: as given to :meth:`pack`.

        Raises:
            TaskEdgeError: (``error``) the bytes are not a safetensors file, not of this kind or of an unknown format,
                or do not match their digest.
        """
        try:
            metadata, tensors = deserialize(content)
        except ValueError as error:
            raise self.damaged(error, path) from None
        if self.key not in metadata:
            raise self.error(f"{_at(path)}a safetensors file, but not a {self.name}: it has no metadata {self.key!r}")
        text = metadata[self.key]
        try:
            header = json.loads(text)
            stated = header.get("format", "")
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.damaged(f"its header is not a JSON object: {error}", path) from None
        if stated not in (self.format, *self.older_formats):
            readable = ", ".join(name or "files without a format" for name in (self.format, *self.older_formats))
            raise self.error(f"{_at(path)}a {self.name} of format {stated!r}; this version reads {readable}")
        if DIGEST not in metadata and stated not in self.without_digest:
            raise self.damaged("its digest is missing", path)
        if DIGEST in metadata and metadata[DIGEST] != content_digest(text + also_digest, tensors):
            raise self.damaged("its content does not match its digest", path)
        return Container(header, text, tensors)

    def damaged(self, reason: object, path: Path | None = None) -> TaskEdgeError:
        """Return the error for a file whose content is unusable."""
        remedy = f": {self.remedy}" if self.remedy else ""
        return self.error(f"{_at(path)}the {self.name} is damaged ({reason}){remedy}")


def content_digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the hex BLAKE2b (128 bit) of a text and CPU tensors: names, dtypes, shapes and bytes."""
    import torch

    total = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors and metadata as the bytes of a safetensors file; equal content gives equal bytes.

    Args:
        tensors: on the CPU; none shares memory with another.
        metadata: texts by key.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, dict(metadata) if metadata else None)
    return _sort_metadata(content) if metadata and len(metadata) > 1 else content


def deserialize(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a safetensors file's bytes.

    Raises:
        ValueError: the bytes are not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, AssertionError, OverflowError, RuntimeError,
    ) as error:  # fmt: skip
        raise ValueError(f"not a whole safetensors file: {error}") from None
    return metadata or {}, tensors


def _sort_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file: the library writes them in an order that differs from run to run."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def _at(path: Path | None) -> str:
    return f"{path}: " if path else ""
