"""Soft prompts: trained vectors that a frozen model reads as tokens, and trained vectors that mark who speaks.

A row of token ids may hold *codes* beside the words of the vocabulary: one for each soft token of each slot, and each
of these once more for each role (prompt, user, system). :class:`PromptLayout` says which code is which, and the
embedding layer of the model reads them: a soft token takes the place of a word's vector, and the vector of a role is
added. So positions, attention masks, padding and the cache of generation are those of any other token.

Nothing of the base changes, so there is nothing to fuse. With no soft tokens and role vectors of 0 the model computes
the bits of the frozen one.

Source: soft prompts for dialogue states (arXiv 2301.10915), of which the first page could be read: soft tokens for each
slot, segment embeddings, the prompt repeated before the value. Prompt tuning: arXiv 2104.08691. This project: codes,
the prompt after the history, start from words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskedge.backbone.class_swap import restore_class, swap_class
from taskedge.backbone.loading import Base
from taskedge.errors import InputError
from taskedge.forms.master_weights import FixedDtypeModule

NO_ROLE, PROMPT, USER, SYSTEM = range(4)
ROLES = ("prompt", "user", "system")
"""Roles that have a vector, in the order of the trained tensor."""
WHERE = ("before", "after")
CANNOT_BE_FUSED_PROMPT = "a soft prompt is an input beside the text, so there is no weight to put it into"


@dataclass(frozen=True)
class PromptLayout:
    """Where soft tokens stand in a row, and the codes of tokens.

    Attributes:
        slots: a name for each soft prompt; one for a task without slots.
        length: soft tokens of a slot; may be 0.
        vocabulary: words that the base's embedding has. Codes from here on are soft tokens.
        where: ``"before"`` the text, behind its start token, or ``"after"`` it, right before the value.
        repeat: with ``"before"``: the same soft tokens once more right before the value.
        segments: whether roles have vectors.
    """

    slots: tuple[str, ...]
    length: int
    vocabulary: int
    where: str = "before"
    repeat: bool = False
    segments: bool = False

    @property
    def num_codes(self) -> int:
        """Codes of one role: the words and all soft tokens."""
        return self.vocabulary + len(self.slots) * self.length

    @property
    def room(self) -> int:
        """Soft tokens that a row has."""
        return self.length * (2 if self.repeat else 1)

    def soft_codes(self, slot: int = 0) -> list[int]:
        """Return the codes of the soft tokens of a slot."""
        first = self.vocabulary + slot * self.length
        return self.marked(range(first, first + self.length), [PROMPT] * self.length)

    def marked(self, ids: Sequence[int], roles: Sequence[int]) -> list[int]:
        """Return the codes of tokens that have these roles; the ids themselves if roles have no vectors."""
        if not self.segments:
            return list(ids)
        return [index + role * self.num_codes for index, role in zip(ids, roles, strict=True)]

    def placed(self, ids: Sequence[int], roles: Sequence[int], slot: int, num_start: int) -> list[int]:
        """Return the codes of a text with the soft tokens of a slot.

        Args:
            ids: tokens before the value.
            roles: of each.
            slot: index of the slot.
            num_start: start tokens at the beginning of ``ids``, which stay in front.
        """
        marked, soft = self.marked(ids, roles), self.soft_codes(slot)
        if self.where == "after":
            return [*marked, *soft]
        return [*marked[:num_start], *soft, *marked[num_start:], *(soft if self.repeat else ())]


class SoftPrompt(FixedDtypeModule):
    """The trained numbers of a soft prompt.

    Attributes:
        layout: which code is which.
        tokens: float32 [slots, length, width]; float64 in a model of that dtype.
        segments: [roles, width] in the same dtype, or None.
    """

    def __init__(self, layout: PromptLayout, tokens: Tensor, segments: Tensor | None) -> None:
        super().__init__()
        self.layout = layout
        self.tokens = nn.Parameter(tokens)
        self.segments = None if segments is None else nn.Parameter(segments)


class PromptEmbedding(nn.Module):
    """An embedding layer that reads codes: the same object under another class, with a ``soft_prompt``."""

    soft_prompt: SoftPrompt

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes [...] to vectors [..., width] in the dtype of the layer."""
        prompt = self.soft_prompt
        layout = prompt.layout
        roles, ids = codes.div(layout.num_codes, rounding_mode="floor"), codes.remainder(layout.num_codes)
        is_soft = ids >= layout.vocabulary
        vectors: Tensor = super().forward(ids.masked_fill(is_soft, 0))
        if bool(is_soft.any()):
            soft = F.embedding(ids[is_soft] - layout.vocabulary, prompt.tokens.flatten(0, 1))
            vectors = vectors.index_put((is_soft,), soft.to(vectors.dtype))
        if prompt.segments is None or not bool(roles.any()):
            return vectors
        added = F.embedding(roles, torch.cat([torch.zeros_like(prompt.segments[:1]), prompt.segments]))
        wide = torch.promote_types(vectors.dtype, added.dtype)
        summed = (vectors.to(wide) + added).to(vectors.dtype)
        if torch.is_grad_enabled():
            return summed
        return torch.where(added == 0, vectors, summed)  # a zero of the base keeps its sign


def attach_prompt(
    model: Any, layout: PromptLayout, tokens: Tensor, segments: Tensor | None, *, check: bool = True
) -> SoftPrompt:
    """Let a model read the codes of a layout; :func:`remove_prompt` undoes it.

    Args:
        model: a model of transformers without a soft prompt.
        layout: the codes.
        tokens: [slots, length, width].
        segments: [roles, width], or None for a layout without them.
        check: run the model on a few codes, to see that it can read them.

    Raises:
        InputError: the model has no plain embedding layer, has another vocabulary or width, is an encoder-decoder, or
            reads token ids elsewhere too. The model is unchanged.
    """
    embedding = prompt_embedding(model)
    if isinstance(embedding, PromptEmbedding):
        raise InputError("the model has a soft prompt already: revert or fuse it before another is attached")
    shape, expected = tuple(tokens.shape), (len(layout.slots), layout.length, embedding.embedding_dim)
    if layout.vocabulary != embedding.num_embeddings or shape != expected:
        raise InputError(
            f"soft tokens {list(shape)} over {layout.vocabulary} words do not fit the model's embedding of "
            f"{embedding.num_embeddings} words, which needs {list(expected)}: name the base that they were trained on"
        )
    device = embedding.weight.device
    dtype = torch.promote_types(torch.float32, embedding.weight.dtype)
    moved = None if segments is None else segments.to(device, dtype, copy=True)
    prompt = SoftPrompt(layout, tokens.to(device, dtype, copy=True), moved)
    swap_class(embedding, PromptEmbedding, "Prompt")
    embedding.add_module("soft_prompt", prompt)
    if not check:
        return prompt
    try:
        with torch.no_grad():
            ids = [1, *layout.soft_codes()[:1], *layout.marked([1], [USER])]
            model(input_ids=torch.tensor([ids], device=device), attention_mask=torch.ones(1, len(ids), device=device))
    except (IndexError, RuntimeError) as error:
        remove_prompt(model)
        raise InputError(
            f"{type(model).__name__} cannot read soft tokens ({error}): its layers read token ids elsewhere too: name "
            "another base, or another --form"
        ) from None
    return prompt


def prompt_embedding(model: Any) -> nn.Embedding:
    """Return the embedding layer that reads a model's token ids.

    Raises:
        InputError: the model has none, or is an encoder-decoder.
    """
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError(f"{kind} is an encoder-decoder, for which there are no soft prompts: use another --form")
    embedding = _input_embedding(model)
    if not isinstance(embedding, nn.Embedding):
        raise InputError(f"{kind} has no embedding of tokens, so it cannot read a soft prompt: use another --form")
    return embedding


def attached_prompt(model: Any) -> SoftPrompt | None:
    """Return the soft prompt that a model reads, or None."""
    embedding = _input_embedding(model)
    return embedding.soft_prompt if isinstance(embedding, PromptEmbedding) else None


def remove_prompt(model: Any) -> None:
    """Make the embedding layer of a model plain again; a model without a soft prompt stays the same."""
    if attached_prompt(model) is not None:
        embedding = cast(nn.Module, _input_embedding(model))
        del embedding.soft_prompt
        restore_class(embedding)


def with_prompt_room(base: Base) -> Base:
    """Return a base whose positions for text are those that the soft tokens of its model leave.

    Raises:
        InputError: they leave none.
    """
    prompt = attached_prompt(base.model)
    if prompt is None or base.max_positions is None:
        return base
    left = base.max_positions - prompt.layout.room
    if left < 2:
        raise InputError(
            f"{prompt.layout.room} soft tokens leave {left} of the base's {base.max_positions} positions for the text: "
            "give fewer (--prompt-tokens)"
        )
    return replace(base, max_positions=left)


def _input_embedding(model: Any) -> Any:
    """Return the layer that a model of transformers names for its token ids; None for models without."""
    try:
        return getattr(model, "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):  # of a model of images
        return None
