"""Which of the two sequences of an encoder-decoder a linear reads, and which positions of the target count.

Most linears of the decoder read the target. The keys and values of its cross-attention read the encoder's output, that
is the source. The two sequences have padding of their own, and may have the same length by chance.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

_IGNORED = -100


class DecoderInputs:
    """The target side of an encoder-decoder; of any other model, nothing.

    Attributes:
        mask: of the present batch, [rows, tokens]: positions of the target that are no padding; None if unknown.
    """

    def __init__(self, model: nn.Module) -> None:
        self.mask: Tensor | None = None
        self._source: weakref.ref[Tensor] | None = None
        self._encoder: nn.Module | None = None
        self._prefixes: tuple[str, ...] = ()
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and hasattr(model, "get_decoder"):
            decoder, self._encoder = model.get_decoder(), model.get_encoder()  # type: ignore[operator]
            self._prefixes = tuple(f"{name}." for name, module in model.named_modules() if name and module is decoder)

    def start(self, batch: Any) -> None:
        """Take the mask of a new batch: its own, or the positions with a label."""
        self.mask, self._source = None, None
        if not self._prefixes or not isinstance(batch, Mapping):
            return
        mask, labels = batch.get("decoder_attention_mask"), batch.get("labels")
        if isinstance(mask, Tensor):
            self.mask = mask
        elif isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point():
            self.mask = labels != _IGNORED
        elif isinstance(mask := batch.get("attention_mask"), Tensor) and mask.dim() == 2:
            self.mask = mask  # a classifier's decoder reads the source again

    def is_read_by(self, name: str, x: Tensor) -> bool:
        """Return whether a linear that reads ``x`` reads the target: it is in the decoder, and x is not the source."""
        source = None if self._source is None else self._source()
        return bool(self._prefixes) and name.startswith(self._prefixes) and x is not source

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Note the encoder's output inside the block."""
        with ExitStack() as stack:
            if self._encoder is not None:
                stack.callback(self._encoder.register_forward_hook(self._on_encoded).remove)
            yield

    def _on_encoded(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._source = weakref.ref(output[0])
