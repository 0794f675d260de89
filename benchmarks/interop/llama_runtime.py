"""The C interface of llama.cpp, from the shared library in the wheel ``xllamacpp``: logits of token ids.

``xllamacpp`` itself offers llama.cpp's server, which gives no logits. Its library exports the functions of ``llama.h``.
Parameter structures are passed as opaque memory with their defaults: on x86-64 and Linux a structure of this size is
returned and passed in memory, so its layout does not matter.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt


class _Parameters(ctypes.Structure):
    _fields_ = [("memory", ctypes.c_uint32 * 256)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def available() -> bool:
    """Return whether the wheel is installed on a system where its library can be called."""
    known = platform.system() == "Linux" and platform.machine() == "x86_64"
    return known and importlib.util.find_spec("xllamacpp") is not None


class Llama:
    """A GGUF model, with an adapter or without."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        self._library = library = _library()
        self._model = library.llama_model_load_from_file(str(model).encode(), library.llama_model_default_params())
        if not self._model:
            raise OSError(f"{model}: llama.cpp does not load it")
        self._adapter = None
        if adapter is not None:
            self._adapter = library.llama_adapter_lora_init(self._model, str(adapter).encode())
            if not self._adapter:
                raise OSError(f"{adapter}: llama.cpp does not load it as an adapter of {model}")
        self._size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits of every position [tokens, vocabulary], in a new context."""
        library = self._library
        context = library.llama_init_from_model(self._model, library.llama_context_default_params())
        if not context:
            raise OSError("llama.cpp makes no context")
        batch = library.llama_batch_init(len(ids), 0, 1)
        try:
            if self._adapter is not None:
                pointers, scales = (ctypes.c_void_p * 1)(self._adapter), (ctypes.c_float * 1)(1.0)
                if library.llama_set_adapters_lora(context, pointers, 1, scales) != 0:
                    raise OSError("llama.cpp does not set the adapter")
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
            if library.llama_decode(context, batch) != 0:
                raise OSError("llama.cpp does not decode the tokens")
            rows = [library.llama_get_logits_ith(context, place) for place in range(len(ids))]
            return np.stack([np.ctypeslib.as_array(row, (self._size,)).copy() for row in rows])
        finally:
            library.llama_batch_free(batch)
            library.llama_free(context)

    def close(self) -> None:
        """Free the model and its adapter."""
        self._library.llama_model_free(self._model)


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def _library() -> ctypes.CDLL:
    import xllamacpp.xllamacpp as extension

    library = ctypes.CDLL(extension.__file__)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_model_default_params", _Parameters, ()),
        ("llama_context_default_params", _Parameters, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, _Parameters)),
        ("llama_init_from_model", pointer, (pointer, _Parameters)),
        ("llama_adapter_lora_init", pointer, (pointer, ctypes.c_char_p)),
        ("llama_set_adapters_lora", ctypes.c_int32, (pointer, pointer, ctypes.c_size_t, pointer)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_n_tokens", ctypes.c_int32, (pointer,)),
        ("llama_batch_init", _Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
        ("llama_batch_free", None, (_Batch,)),
        ("llama_decode", ctypes.c_int32, (pointer, _Batch)),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (pointer, ctypes.c_int32)),
        ("llama_free", None, (pointer,)),
        ("llama_model_free", None, (pointer,)),
        ("llama_log_set", None, (pointer, pointer)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(ctypes.cast(_SILENT, pointer), None)
    library.llama_backend_init()
    return library
