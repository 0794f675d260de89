"""A tokenizer checked against the embeddings of its base: every token of a text must have an embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from taskedge.errors import InputError


def check_vocabulary(
    name: str | Path, tokenizer: Any, model: nn.Module, log: Callable[[str], None] = lambda _: None
) -> dict[int, str]:
    """Check that the base has an embedding for every token that the tokenizer can give for an ordinary text.

    A padding token without an embedding is replaced by another token in the tokenizer: padding is masked. Control
    tokens that the tokenizer does not add to a text are allowed, such as the image token of a text-only model.

    Args:
        name: the base, for messages.
        tokenizer: a tokenizer with a padding token.
        model: the model.
        log: receives a line about each token that is allowed or replaced.

    Returns:
        Ids and names of the tokens without an embedding, which no row may have.

    Raises:
        InputError: a token of ordinary texts has no embedding.
    """
    num_embeddings = _num_embeddings(model)
    if num_embeddings is None:
        return {}
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= num_embeddings}
    if not beyond:
        return {}
    base_has = f"the base has embeddings for {num_embeddings:,} tokens only"
    needed = [token for index, token in sorted(beyond.items()) if _is_needed(tokenizer, index, token)]
    if needed:
        more = f" and {len(needed) - 1:,} more" if len(needed) > 1 else ""
        raise InputError(
            f"{name}: its tokenizer has {max(beyond) + 1:,} tokens, but {base_has}: {needed[0]!r}{more} cannot be "
            "read: use the tokenizer that the base was trained with, or resize the base's embeddings "
            "(model.resize_token_embeddings) and save it"
        )
    replaced = tokenizer.pad_token if tokenizer.pad_token_id in beyond else None
    if replaced is not None:
        tokenizer.pad_token = _padding_token(tokenizer, model, num_embeddings)
        log(f"{base_has}: texts are padded with {tokenizer.pad_token!r}, not with {replaced!r}; padding is masked")
    others = [token for token in beyond.values() if token != replaced]
    if others:
        log(f"{base_has}: rows with the control token {' or '.join(map(repr, others[:3]))} cannot be used")
    return beyond


def check_token_ids(rows: Iterable[Iterable[int]], tokens_without_embedding: Mapping[int, str], path: Path) -> None:
    """Check that no row of a table has a token without an embedding.

    Args:
        rows: the token ids of each row.
        tokens_without_embedding: result of :func:`check_vocabulary`.
        path: the file of the table, for messages.

    Raises:
        InputError: a row has such a token.
    """
    if not tokens_without_embedding:
        return
    for number, ids in enumerate(rows, start=1):
        for index in ids:
            if index in tokens_without_embedding:
                raise InputError(
                    f"{path}, row {number}: the base has no embedding for the token "
                    f"{tokens_without_embedding[index]!r}: remove it from the text"
                )


def _num_embeddings(model: Any) -> int | None:
    """Return the rows of the input embeddings; None for a model that reads its ids in another way."""
    try:
        embeddings = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def _is_needed(tokenizer: Any, index: int, token: str) -> bool:
    """Return whether an ordinary text can get the token: text itself does, or the tokenizer or its template adds it."""
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.unk_token)
    if token in roles:
        return True
    if index == tokenizer.pad_token_id:
        return False
    added = tokenizer.added_tokens_decoder.get(index)
    if added is None or not added.special:
        return True
    return index in tokenizer("a")["input_ids"] or token in str(tokenizer.chat_template or "")


def _padding_token(tokenizer: Any, model: Any, num_embeddings: int) -> str:
    """Return a token with an embedding: the padding in the base's config, else the end, else the unknown token."""
    candidates = (getattr(model.config, "pad_token_id", None), tokenizer.eos_token_id, tokenizer.unk_token_id)
    usable = [index for index in candidates if index is not None and 0 <= index < num_embeddings]
    return str(tokenizer.convert_ids_to_tokens(usable[0] if usable else 0))
