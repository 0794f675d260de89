"""The soft prompt of a delta, and its tensors in a delta file (``prompt/tokens`` and ``prompt/segments``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskedge.backbone.fingerprint import digest
from taskedge.delta.manifest import PromptEntry
from taskedge.errors import BaseMismatch, DeltaError, InputError
from taskedge.forms.prompt import (
    CANNOT_BE_FUSED_PROMPT,
    ROLES,
    WHERE,
    PromptLayout,
    attach_prompt,
    attached_prompt,
    prompt_embedding,
)

PROMPT_TOKENS, PROMPT_SEGMENTS = "prompt/tokens", "prompt/segments"
_DIGEST_ROWS = 1024


@dataclass(frozen=True)
class PromptDelta:
    """A trained soft prompt (:mod:`taskedge.forms.prompt`).

    Attributes:
        layout: slots, number and place of the soft tokens.
        tokens: float32 [slots, length, width].
        segments: float32 [roles, width]; None if roles have no vectors.
        base_dtype: dtype of the base's embedding.
        base_digest: digest of at least 1,024 of the base's word vectors, or of all if there are fewer, evenly spaced.
    """

    layout: PromptLayout
    tokens: Tensor
    segments: Tensor | None
    base_dtype: str
    base_digest: str

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return self.tokens.numel() + (0 if self.segments is None else self.segments.numel())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by their names in a file."""
        return {PROMPT_TOKENS: self.tokens} | ({} if self.segments is None else {PROMPT_SEGMENTS: self.segments})

    def check(self) -> None:
        """Raise DeltaError if the prompt contradicts itself."""
        layout = self.layout
        if layout.where not in WHERE or (layout.repeat and layout.where == "after"):
            again = ", and again before the value" if layout.repeat else ""
            raise DeltaError(f"a soft prompt {layout.where!r} the text{again}: no such place")
        if not layout.slots or len(set(layout.slots)) != len(layout.slots):
            raise DeltaError(f"a soft prompt with the slots {', '.join(layout.slots) or 'none'}")
        if self.tokens.dim() != 3 or tuple(self.tokens.shape[:2]) != (len(layout.slots), layout.length):
            raise DeltaError(
                f"soft tokens {list(self.tokens.shape)} of {len(layout.slots)} slots with {layout.length} tokens each"
            )
        if (self.segments is not None) != layout.segments:
            raise DeltaError("the segments of a soft prompt do not fit its layout")
        if self.segments is not None and tuple(self.segments.shape) != (len(ROLES), self.tokens.shape[2]):
            raise DeltaError(f"segments {list(self.segments.shape)} of {len(ROLES)} roles")
        for name, tensor in self.tensors.items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise DeltaError(f"tensor {name!r} holds a value that is not a finite float32")

    @property
    def entry(self) -> PromptEntry:
        """The prompt in the manifest of a file."""
        layout = self.layout
        return PromptEntry(
            layout.slots, layout.length, layout.vocabulary, int(self.tokens.shape[2]), cast(Any, layout.where),
            layout.repeat, layout.segments, self.base_dtype, self.base_digest,
        )  # fmt: skip


def extracted_prompt(model: nn.Module) -> PromptDelta | None:
    """Return the soft prompt of a model, copied to the CPU; None if it has none."""
    prompt = attached_prompt(model)
    if prompt is None:
        return None
    tokens, segments = (
        None if part is None else part.detach().cpu().float().clone() for part in (prompt.tokens, prompt.segments)
    )
    assert tokens is not None
    return PromptDelta(prompt.layout, tokens, segments, *_identity(model))


def prompt_from_tensors(
    entries: Sequence[PromptEntry],
    tensors: Mapping[str, Tensor],
    read: Callable[[Mapping[str, Tensor], str, tuple[int, ...], Collection[torch.dtype]], Tensor],
    dtypes: Collection[torch.dtype],
) -> PromptDelta | None:
    """Return the soft prompt of a file.

    Args:
        entries: of the manifest: one, or none.
        tensors: of the file.
        read: returns a tensor of a name after checking its shape and dtype.
        dtypes: that a tensor may have.

    Raises:
        DeltaError: a tensor is missing or has another shape.
    """
    if not entries:
        return None
    (entry,) = entries
    layout = PromptLayout(entry.slots, entry.length, entry.vocabulary, entry.where, entry.repeat, entry.segments)
    tokens = read(tensors, PROMPT_TOKENS, (len(entry.slots), entry.length, entry.width), dtypes).float()
    segments = read(tensors, PROMPT_SEGMENTS, (len(ROLES), entry.width), dtypes).float() if entry.segments else None
    return PromptDelta(layout, tokens, segments, entry.dtype, entry.digest)


def apply_prompt(model: Any, prompt: PromptDelta | None) -> None:
    """Attach the soft prompt of a delta to its base, frozen; one that is attached already stays."""
    if prompt is not None and attached_prompt(model) is None:
        attached = attach_prompt(model, prompt.layout, prompt.tokens, prompt.segments, check=False)
        attached.requires_grad_(False)


def prompt_difference(model: nn.Module, prompt: PromptDelta | None) -> str:
    """Return how a model's word vectors differ from those of the prompt's base; empty if they do not.

    Raises:
        BaseMismatch: the model cannot have the prompt at all.
    """
    if prompt is None:
        return ""
    try:
        embedding = prompt_embedding(model)
    except InputError as error:
        raise BaseMismatch(f"wrong base: {error}") from None
    own = (embedding.num_embeddings, embedding.embedding_dim)
    needed = (prompt.layout.vocabulary, int(prompt.tokens.shape[2]))
    if own != needed:
        raise BaseMismatch(f"wrong base: its word vectors are {list(own)}, the soft prompt was made for {list(needed)}")
    dtype, now = _identity(model)
    if dtype != prompt.base_dtype:
        return f"the word vectors are {dtype}, the soft prompt was trained on {prompt.base_dtype}"
    return "" if now == prompt.base_digest else "the word vectors hold other values than the soft prompt's base"


def refuse_prompt(delta: Any, what: str) -> None:
    """Raise InputError if a delta has a soft prompt; ``what`` cannot be done with it."""
    if delta.prompt is not None:
        slots = len(delta.prompt.layout.slots)
        raise InputError(
            f"{what} is not possible: the delta has a soft prompt ({delta.prompt.layout.length} tokens for each of "
            f"{slots} slots), and {CANNOT_BE_FUSED_PROMPT}: apply or serve the delta, or train it with --form lora"
        )


def _identity(model: nn.Module) -> tuple[str, str]:
    """Return dtype and digest of a model's word vectors."""
    weight = prompt_embedding(model).weight
    return str(weight.dtype).removeprefix("torch."), digest(weight[:: max(1, len(weight) // _DIGEST_ROWS)])
