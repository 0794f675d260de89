"""The files of a base that a device needs: embedding, norms, pretrained head, config and tokenizer, and no block.

The cloud makes them from the base's own files: the tensors outside the blocks, and a config of 0 layers that also has
the true number. A device gets them once, in pieces, and keeps them under their digest. They are data only: JSON, text
and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskedge.cooperation.cut.cut_messages import CutRefused, whole_number
from taskedge.cooperation.cut.hollow_model import LAYER_TYPES, LAYERS
from taskedge.cooperation.protocol.bounds import short_text
from taskedge.cooperation.protocol.message import Message
from taskedge.errors import InputError
from taskedge.io.atomic import write_atomic
from taskedge.io.container import serialize

PIECE_BYTES = 16 * 2**20
MAX_PARTS_BYTES = 64 * 2**30
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}\.(json|txt|model|jinja|safetensors)")
_TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "*.model", "*.jinja", "special_tokens_map.json")
_WEIGHTS = "model.safetensors"


class BaseParts:
    """The files as the cloud sends them.

    Attributes:
        digest: of their names and contents.
        pieces: (file, offset, bytes, size of the file), in order.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        total = hashlib.blake2b(digest_size=16)
        self.pieces: list[tuple[str, int, int, int]] = []
        for path in sorted(folder.iterdir()):
            size = path.stat().st_size
            total.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(PIECE_BYTES):
                    total.update(block)
            for offset in range(0, max(size, 1), PIECE_BYTES):
                self.pieces.append((path.name, offset, min(PIECE_BYTES, size - offset), size))
        self.digest = total.hexdigest()

    @property
    def header(self) -> dict[str, Any]:
        """Fields of ``hello``."""
        return {"parts": self.digest, "pieces": len(self.pieces), "bytes": sum(piece[2] for piece in self.pieces)}

    def message(self, index: int, header: Mapping[str, Any]) -> Message:
        """Return the message with one piece."""
        name, offset, length, size = self.pieces[index]
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            content = torch.frombuffer(bytearray(file.read(length)), dtype=torch.uint8)
        fields = {"index": index, "file": name, "offset": offset, "size": size}
        return Message("part", {**header, **fields}, {"content": content})


class PartsStore:
    """Where a device keeps the files.

    Args:
        folder: One folder by digest is made in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._expected: tuple[str, int, int] | None = None
        self._index = 0

    def expect(self, header: Mapping[str, Any]) -> str:
        """Take the announcement of the cloud's files, and return their digest if they are here, else nothing.

        Raises:
            CutRefused: It is no announcement.
        """
        digest, pieces = header.get("parts"), whole_number(header, "pieces", 1, 2**20)
        size = whole_number(header, "bytes", 1, MAX_PARTS_BYTES)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{32}", digest):
            raise CutRefused(f"files with the digest {short_text(digest)}")
        self._expected, self._index = (digest, pieces, size), 0
        if self.path.is_dir():
            return digest
        shutil.rmtree(self._partial, ignore_errors=True)
        return ""

    @property
    def path(self) -> Path:
        """The folder of the announced files, a base that can be loaded."""
        assert self._expected is not None
        return self._folder / self._expected[0]

    @property
    def _partial(self) -> Path:
        assert self._expected is not None
        return self._folder / f"{self._expected[0]}.partial"

    def take(self, message: Message) -> None:
        """Write one piece; the last one completes the files.

        Raises:
            CutRefused: It is not the next piece, or the files are not the announced ones.
        """
        if self._expected is None or self.path.is_dir():
            raise CutRefused("a piece of files that were not announced, or are here")
        digest, pieces, total = self._expected
        name, content = message.header.get("file"), message.tensors.get("content")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or content is None or content.dtype != torch.uint8:
            raise CutRefused(f"a piece of the file {short_text(name)}, which is not one of a base")
        self._partial.mkdir(parents=True, exist_ok=True)
        path = self._partial / name
        written = path.stat().st_size if path.exists() else 0
        if message.header.get("index") != self._index or message.header.get("offset") != written:
            raise CutRefused(f"piece {short_text(message.header.get('index'))} instead of piece {self._index}")
        if sum(file.stat().st_size for file in self._partial.iterdir()) + len(content) > total:
            raise CutRefused(f"files of more than the {total:,} bytes that were announced")
        with path.open("ab") as file:
            file.write(content.numpy().tobytes())
        self._index += 1
        if self._index == pieces:
            if (found := BaseParts(self._partial).digest) != digest:
                shutil.rmtree(self._partial, ignore_errors=True)
                raise CutRefused(f"files with the digest {found}, and {digest} was announced: start again")
            self._partial.rename(self.path)


def write_parts(name: str, stack: str, layers: int, folder: Path) -> BaseParts:
    """Write the files of the base ``name`` that devices need.

    Args:
        name: a folder or a hub id, which was loaded before.
        stack: name of the stack of blocks in the base's model.
        layers: number of its blocks.
        folder: a new folder.

    Raises:
        InputError: the base has no weights as safetensors.
    """
    import transformers
    from transformers.utils import cached_file

    source = Path(name)
    if not source.is_dir():
        source = Path(str(cached_file(name, "config.json"))).parent
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = transformers.AutoConfig.from_pretrained(name)
    stored = json.loads((source / "config.json").read_text())
    stored[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = 0
    stored[LAYERS] = layers
    if getattr(config, "layer_types", None):
        stored[LAYER_TYPES], stored["layer_types"] = list(config.layer_types), []
    write_atomic(folder / "config.json", json.dumps(stored, indent=1).encode())
    for path in sorted({path for pattern in _TOKENIZER for path in source.glob(pattern)}):
        if _NAME.fullmatch(path.name):
            write_atomic(folder / path.name, path.read_bytes())
    outside = dict(_outside_blocks(source, stack))
    if not outside:
        raise InputError(f"{name}: {source} holds no weights as safetensors outside its blocks: name another base")
    write_atomic(folder / _WEIGHTS, serialize(outside, {"format": "pt"}))
    return BaseParts(folder)


def _outside_blocks(source: Path, stack: str) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    inside = re.compile(rf"(^|\.){re.escape(stack)}\.\d+\.")
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if not inside.search(name):
                    yield name, file.get_tensor(name)
