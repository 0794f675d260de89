"""Control tokens in users' texts, read as text.

A tokenizer finds its control tokens, such as ``<|im_end|>``, wherever they stand: in what a chat template writes, and
in a user's text that mentions one, where it would end the turn. Here a user's texts are hidden before a template
writes around them (:meth:`ControlTokens.hide`): each control token in them becomes a code that no template alters.
:meth:`ControlTokens.ids` then tokenizes the result with a copy of the tokenizer in which the template's control tokens
have stand-ins, so that the user's are ordinary text.

``apply_chat_template(sanitize_control_tokens=True)`` of recent versions of transformers does the same for a whole
conversation. It does not tell prompt and answer apart, and knows no texts without a template.

Source: this project.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, cast

CODE, STAND_IN = "\ufdd0", "\ufdd1"
"""Characters that no text has, by the Unicode standard. If one has, it is hidden too."""
_BREAK = f"{STAND_IN}break{STAND_IN}"
"""Keeps the two halves of a control token apart; its own tokens are removed."""


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens, and those that end a turn.

    Args:
        tokenizer: a tokenizer of transformers.
        names: result of :func:`control_names`.
    """

    def __init__(self, tokenizer: Any, names: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._ids = names
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._names = [CODE, STAND_IN, *longest_first]
        self._index = {name: index for index, name in enumerate(self._names)}
        self._find = re.compile("|".join(map(re.escape, self._names)))
        self._find_own = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._code = re.compile(f"{CODE}(\\d+){CODE}")

    def hide(self, text: str) -> str:
        """Return a user's text with a code for each control token in it."""
        return self._find.sub(lambda found: f"{CODE}{self._index[found[0]]}{CODE}", text)

    def reveal(self, text: str) -> str:
        """Return a text with the control tokens for their codes: the inverse of :meth:`hide`."""
        return self._code.sub(lambda code: self._names[int(code[1])], text) if CODE in text else text

    def ids(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return the tokens of texts in which users' texts are hidden, and what could not be read as text.

        No special tokens are put around the texts.

        Returns:
            The token ids of each text, and the indices of the texts in which a user's control token is read as such:
            the tokenizer makes it of plain text too, or is one without a copy (none of the library ``tokenizers``).
        """
        if not texts:
            return [], []
        hidden = [index for index, text in enumerate(texts) if CODE in text]
        plain: Any = self._tokenizer([self.reveal(text) for text in texts], add_special_tokens=False, verbose=False)
        ids: list[list[int]] = plain["input_ids"]
        if self._twin is None:
            return ids, hidden
        failed = []
        for index in hidden:
            for cut in (False, True):
                ids[index], is_text = self._twin_ids(texts[index], cut=cut)
                if is_text:
                    break
            else:
                failed.append(index)
        return ids, failed

    def _twin_ids(self, text: str, *, cut: bool) -> tuple[list[int], bool]:
        """Return the tokens of one text by the copy, and whether no control token of the user is among them.

        Args:
            text: the text, with codes.
            cut: whether the user's control tokens, unless they are words, are tokenized as two halves.
        """
        twin, stand_ins = self._twin
        own = self._find_own.findall(text)

        def as_text(code: re.Match[str]) -> str:
            name = self._names[int(code[1])]
            if name == STAND_IN:
                return name + _BREAK  # it cannot be part of a stand-in
            return name[0] + _BREAK + name[1:] if cut and len(name) > 1 and not name.isalnum() else name

        marked = self._find_own.sub(lambda found: f"{STAND_IN}{self._index[found[0]]}{STAND_IN}", text)
        tokens = twin.encode(self._code.sub(as_text, marked), add_special_tokens=False).ids
        ids = [stand_ins.get(index, index) for index in tokens]
        ids = [index for index in ids if index is not None]
        control = {*self._ids.values()} - {self._tokenizer.unk_token_id}
        known = sum(self._ids[name] in control for name in own)
        return ids, sum(index in control for index in ids) == known

    @cached_property
    def _twin(self) -> Any:
        """The copy of the tokenizer and, by the ids of its stand-ins, the ids they stand for; None without a copy."""
        from tokenizers import AddedToken, Tokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        twin = Tokenizer.from_str(backend.to_str())
        twin.no_truncation()
        twin.no_padding()
        twin.encode_special_tokens = True
        added = self._tokenizer.added_tokens_decoder
        stand_ins: dict[int, int | None] = {}
        for name, index in self._ids.items():
            content = f"{STAND_IN}{self._index[name]}{STAND_IN}"
            sides = {side: bool(getattr(added.get(index), side, False)) for side in ("lstrip", "rstrip", "single_word")}
            twin.add_tokens([AddedToken(content, special=False, normalized=False, **sides)])
            stand_ins[cast(int, twin.token_to_id(content))] = index
        twin.add_tokens([AddedToken(_BREAK, special=False, normalized=False)])
        stand_ins[cast(int, twin.token_to_id(_BREAK))] = None
        return twin, stand_ins


def control_names(tokenizer: Any, ends: Collection[int] = ()) -> dict[str, int]:
    """Return the control tokens of a tokenizer with their ids: its special tokens, and those of ``ends`` it added."""
    added = tokenizer.added_tokens_decoder
    names = {str(token.content): index for index, token in added.items() if token.special or index in ends}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {name: index for name, index in (names | special).items() if name}


def control_tokens(tokenizer: Any, ends: Collection[int] = ()) -> ControlTokens:
    """Return the control tokens of a tokenizer; the same object while they stay the same."""
    return _control_tokens(tokenizer, tuple(control_names(tokenizer, ends).items()))


@lru_cache(maxsize=4)  # a copy of a tokenizer is large, and a process has one or two
def _control_tokens(tokenizer: Any, names: tuple[tuple[str, int], ...]) -> ControlTokens:
    return ControlTokens(tokenizer, dict(names))


def log_control_tokens(
    names: Collection[str], texts: Sequence[str], read_as: str, log: Callable[[str], object]
) -> None:
    """Log how many users' texts hold control tokens, and how they are read.

    Args:
        names: the control tokens.
        texts: the texts, one a row.
        read_as: such as ``"as plain text"``.
        log: called with a line, if there are any.
    """
    rows = [number for number, text in enumerate(texts, start=1) if any(name in text for name in names)]
    if rows:
        first = next(name for name in sorted(names, key=len, reverse=True) if name in texts[rows[0] - 1])
        log(
            f"{len(rows):,} of {len(texts):,} rows hold a control token of the base, such as {first!r} in row "
            f"{rows[0]}: it is read {read_as}"
        )
