"""A GGUF file as a base: what it holds, how transformers reads it, and the digest that binds a delta to it.

transformers dequantizes the tensors of the file, and makes config and tokenizer from its metadata. This module checks
the file first, so that a damaged one is named as such, and makes the result a plain model: one that can be trained and
saved like any other.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskedge.backbone.fingerprint import DIGEST_BYTES
from taskedge.errors import BaseMismatch, InputError

SUFFIX = ".gguf"
PROVENANCE = "gguf"
"""Item of a delta's training settings that names the GGUF file of its base."""
_MAGIC = b"GGUF"
_ON_MODEL = "_taskedge_gguf"
_ROPE_FACTORS = "rope_freqs.weight"
_OTHER_ROPE_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class GgufFile:
    """Contents of a GGUF file, without its tensors.

    Attributes:
        path: of the file.
        architecture: llama.cpp's name of it, such as ``"llama"``.
        weights: numbers by the type that they are stored in, such as ``{"Q4_1": 106168320}``; most come first.
        tensors: number of tensors.
        num_bytes: size of the file.
        digest: hex BLAKE2b (96 bit) of the whole file.
        rope_factors: divisors of the rotary frequencies (Llama 3.1 and later), or empty.
    """

    path: Path
    architecture: str
    weights: Mapping[str, int]
    tensors: int
    num_bytes: int
    digest: str
    rope_factors: tuple[float, ...] = ()

    def provenance(self) -> dict[str, Any]:
        """Return what a delta records of the file."""
        return {"file": self.path.name, "bytes": self.num_bytes, "digest": self.digest}

    def __str__(self) -> str:
        types = ", ".join(f"{count / 1e6:.1f} M {kind}" for kind, count in self.weights.items())
        return (
            f"a GGUF file of {self.num_bytes / 1e6:.1f} MB, architecture {self.architecture!r}, {self.tensors} tensors "
            f"({types}), digest {self.digest}"
        )


def is_gguf(name: str | Path) -> bool:
    """Return whether a base is named by a GGUF file: one with the suffix, or with the first bytes of such a file."""
    path = Path(name)
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == SUFFIX:
            return True
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def is_local_base(path: Path) -> bool:
    """Return whether a path is a base by its form: a folder or a GGUF file."""
    return path.is_dir() or is_gguf(path)


def gguf_package(what: str = "a GGUF export") -> Any:
    """Import ``gguf``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise InputError(f"{what} needs the package gguf: pip install 'taskedge[gguf]'") from None


def read_gguf(name: str | Path) -> GgufFile:
    """Read the header of a GGUF file, and all of it for its digest.

    Raises:
        InputError: a package is missing, or the file is empty, damaged, cut off, a part of a model, an adapter, or has
            no tokenizer.
    """
    path = Path(name)
    gguf = gguf_package(f"{path}: a GGUF file as a base")
    if find_spec("accelerate") is None:
        raise InputError(
            f"{path}: transformers reads GGUF files with the package accelerate: pip install 'taskedge[gguf]'"
        )
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path}: no GGUF file: it does not begin with 'GGUF'")
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).hexdigest()
    try:
        reader = gguf.GGUFReader(str(path))
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.token")}
        metadata = {key: field.contents() for key, field in fields.items() if len(field.data) == 1}
        weights: Counter[str] = Counter()
        factors: tuple[float, ...] = ()
        for tensor in reader.tensors:
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
            if tensor.name == _ROPE_FACTORS:
                factors = tuple(float(value) for value in tensor.data.reshape(-1))
    except Exception as error:  # whatever the reader makes of bytes that are no header, or end too early
        raise InputError(
            f"{path}: a damaged or incomplete GGUF file of {num_bytes:,} bytes ({type(error).__name__}: {error}): "
            "download it again"
        ) from None
    _check_kind(path, metadata, {tensor.name for tensor in reader.tensors}, set(reader.fields))
    return GgufFile(
        path=path,
        architecture=str(metadata["general.architecture"]),
        weights=dict(weights.most_common()),
        tensors=len(reader.tensors),
        num_bytes=num_bytes,
        digest=digest,
        rope_factors=factors,
    )


def _check_kind(path: Path, metadata: Mapping[str, Any], tensors: set[str], fields: set[str]) -> None:
    """Check that a file holds a whole model with its tokenizer, and nothing that transformers would not use."""
    if "general.architecture" not in metadata or not tensors:
        raise InputError(
            f"{path}: a GGUF file without {'tensors' if not tensors else 'an architecture'} is no model: name another"
        )
    if metadata.get("general.type", "model") != "model":
        raise InputError(f"{path}: a GGUF file of type {metadata['general.type']!r}, not a model: name the base's file")
    parts = int(metadata.get("split.count", 1))
    if parts > 1:
        raise InputError(
            f"{path}: one of {parts} parts of a model: join them first (llama-gguf-split --merge FIRST_PART OUT.gguf)"
        )
    if metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab" or "tokenizer.ggml.tokens" not in fields:
        raise InputError(
            f"{path}: a GGUF file without a tokenizer: convert the model again with its tokenizer, or name its folder"
        )
    unread = tensors.intersection(_OTHER_ROPE_FACTORS)
    if unread:
        raise InputError(
            f"{path}: it has {min(unread)!r}, which transformers does not read, so the model would compute something "
            "else: name the model's own folder or hub id"
        )


@contextmanager
def pretrained_arguments(name: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the arguments of ``from_pretrained`` for config and tokenizer of a base: a folder, a hub id or a GGUF file.

    Beside a GGUF file there may be the files of another model, so an empty folder is named in its place.
    """
    if not is_gguf(name):
        yield str(name), {}
        return
    with tempfile.TemporaryDirectory(prefix="taskedge-gguf-") as empty:
        yield empty, {"gguf_file": str(Path(name).resolve())}


def weight_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for the model: these, and that a GGUF file becomes plain weights."""
    import transformers

    if not arguments or not hasattr(transformers, "GgufConfig"):  # older releases can do nothing else
        return dict(arguments)
    return {**arguments, "quantization_config": transformers.GgufConfig(dequantize=True)}


def settle_config(config: Any, file: GgufFile) -> None:
    """Complete the config that transformers made of a GGUF file's metadata: it does not read scaled frequencies.

    Raises:
        InputError: the file's frequencies are scaled in another way than those of Llama 3.1.
    """
    if not file.rope_factors:
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta = dict(config.rope_parameters)["rope_theta"]
    factors = torch.tensor(file.rope_factors, dtype=torch.float64)
    scaled = {
        "rope_theta": theta,
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    width = 2 * len(factors)
    plain = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    config.rope_parameters = scaled
    found = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].double()
    if found.shape != plain.shape or not torch.allclose(found, plain / factors, rtol=1e-4):
        raise InputError(
            f"{file.path}: its {_ROPE_FACTORS!r} are not those of Llama 3.1 (factor {float(factors.max()):g}), and "
            "transformers reads no others: name the model's own folder or hub id"
        )


def settle_model(model: nn.Module, tokenizer: Any, file: GgufFile, log: Callable[[str], None]) -> None:
    """Make a model that was read from a GGUF file a plain one, and record the file on it."""
    loaded: Any = model
    for name in ("hf_quantizer", "quantization_method"):
        loaded.__dict__.pop(name, None)
    loaded.is_quantized = False
    if hasattr(loaded.config, "quantization_config"):  # transformers refuses to save a model that has one
        del loaded.config.quantization_config
    loaded.config._name_or_path = str(file.path)
    if tokenizer is not None:
        tokenizer.name_or_path = str(file.path)
    loaded.__dict__[_ON_MODEL] = file
    in_memory = sum(parameter.nbytes for parameter in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    log(f"{file.path}: {file}; dequantized to {dtype}: {in_memory / 1e6:.1f} MB in memory")


def gguf_provenance(model: nn.Module) -> dict[str, Any]:
    """Return what a delta made on a model records of its GGUF file; nothing for another base."""
    file = gguf_of(model)
    return {} if file is None else {PROVENANCE: file.provenance()}


def gguf_differences(model: nn.Module, training: Mapping[str, Any]) -> list[str]:
    """Return how the GGUF file of a model differs from the file that a delta's training settings name.

    Empty if either has no such file: the digests of the values bind a delta in any case.
    """
    file, recorded = gguf_of(model), training.get(PROVENANCE)
    if file is None or not isinstance(recorded, Mapping) or recorded.get("digest") == file.digest:
        return []
    return [
        f"the base is the GGUF file {file.path.name!r} ({file.num_bytes:,} bytes, digest {file.digest}), the delta was "
        f"made on {recorded.get('file')!r} ({recorded.get('bytes', 0):,} bytes, digest {recorded.get('digest')})"
    ]


def check_gguf(model: nn.Module, training: Mapping[str, Any]) -> None:
    """Raise BaseMismatch if a model was read from another GGUF file than a delta's training settings name."""
    for text in gguf_differences(model, training):
        raise BaseMismatch(f"wrong base: {text}: name that file, or force it")


def gguf_of(model: nn.Module) -> GgufFile | None:
    """Return the GGUF file that a model was read from; None if it was not."""
    return model.__dict__.get(_ON_MODEL)
