"""How a tokenizer's chat template writes a user's turn and the assistant's answer to it, as token ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.training.data.control_tokens import ControlTokens, control_tokens

PROMPT_PROBE, RESPONSE_PROBE = "promptqzx", "responseqzx"
"""Texts that no template alters: where they stand in its output tells what it writes around a text."""
MAX_SHOWN = 160
"""Longest text of a template in a message, in characters."""


@dataclass(frozen=True)
class ChatTemplate:
    """The texts that a chat template writes around a user's turn and the assistant's answer.

    Texts of users may be hidden (:meth:`ControlTokens.hide` of ``controls``), so that control tokens in them are text.

    Attributes:
        tokenizer: the tokenizer with the template.
        is_list: whether the template wants the content of a turn as a list of parts.
        prompts_by_request: whether a prompt is the user's turn with the template's generation prompt. If not, it is
            what the template writes before a response.
        lead: what a response begins with before its text, such as an empty block of thoughts.
        tail: what the template writes after a response.
        end: the part of ``tail`` up to the token that ends the assistant's turn; empty if no token of its own ends it.
        end_id: id of that token; the tokenizer's end token if the template writes none.
        example: a prompt and its answer, as the template writes them.
        has_other_prompt: whether the template's generation prompt is not used, because it is not how the template
            begins an assistant's turn.
    """

    tokenizer: Any
    is_list: bool
    prompts_by_request: bool
    lead: str
    tail: str
    end: str
    end_id: int
    example: tuple[str, str]
    has_other_prompt: bool

    @property
    def end_token(self) -> str:
        """The token that ends the assistant's turn."""
        return str(self.tokenizer.convert_ids_to_tokens(self.end_id))

    @property
    def controls(self) -> ControlTokens:
        """The control tokens that users' texts are kept free of."""
        return control_tokens(self.tokenizer, (self.end_id,))

    @property
    def notes(self) -> list[str]:
        """Lines about what the template does, for the user."""
        lines = [f"chat template: {_shown(self.example[0])}, then {_shown(self.example[1])}"]
        if not self.end:
            lines.append(
                f"the chat template ends the assistant's turn with no token of its own: {self.end_token!r} is put there"
            )
        if self.has_other_prompt:
            lines.append("the template's generation prompt is not used: it does not begin the assistant's turns so")
        if "strftime_now" in str(self.tokenizer.chat_template):
            lines.append("the chat template writes the current date: the prompts of another day differ")
        return lines

    def prompts(self, texts: Sequence[str], path: Path) -> list[str]:
        """Return the text before each response.

        Raises:
            InputError: the template refuses a text.
        """
        if self.prompts_by_request:
            return prompt_turns(self.tokenizer, texts, path, is_list=self.is_list)
        conversations = [_turns(text, RESPONSE_PROBE, is_list=self.is_list) for text in texts]
        written = _render(self.tokenizer, conversations, path=path)
        return [text.rpartition(RESPONSE_PROBE)[0].rstrip(" ") for text in written]

    def answers(self, texts: Sequence[str], prompts: Sequence[str], responses: Sequence[str], path: Path) -> list[str]:
        """Return what follows each of the ``prompts``: the response as the template writes it, and the turn's end.

        Args:
            texts: the texts of the user.
            prompts: result of :meth:`prompts` for them.
            responses: the texts of the assistant.
            path: the file that they are from, for messages.

        Raises:
            InputError: the template refuses a response, or writes something else in its place.
        """
        pairs = zip(texts, responses, strict=True)
        written = _render(self.tokenizer, [_turns(*pair, is_list=self.is_list) for pair in pairs], path=path)
        num_after = len(self.tail) - len(self.end)
        for row, (text, prompt) in enumerate(zip(written, prompts, strict=False), start=1):
            if not text.startswith(prompt) or not text.endswith(self.tail):
                raise InputError(
                    f"{path}, row {row}: the base's chat template does not write this response after its prompt, but "
                    f"{_shown(self.controls.reveal(text))}: remove the row, or name a base with another template with "
                    "--model"
                )
        return [text[len(prompt) : len(text) - num_after] for text, prompt in zip(written, prompts, strict=False)]

    def response(self, answer: str) -> str:
        """Return the text of the response in one of the ``answers``, without surrounding blanks."""
        return answer.removesuffix(self.end).strip().removeprefix(self.lead.strip()).strip()

    def without_lead(self, response: str) -> str:
        """Return a decoded response without what the template writes before its text, and surrounding blanks."""
        return response.strip().removeprefix(self._decoded_lead).strip()

    @cached_property
    def _decoded_lead(self) -> str:
        ids = token_ids(self.tokenizer, [self.lead])[0]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def conversation_ids(
        self, prompts: Sequence[str], answers: Sequence[str]
    ) -> tuple[list[list[int]], list[list[int]], list[int]]:
        """Return the tokens of each prompt, and those that its answer adds, if any; the last one ends the turn.

        The third list has the indices of the rows in which a user's control token could not be read as text.
        """
        before, failed = self.controls.ids(prompts)
        both, failed_both = self.controls.ids(
            [prompt + answer for prompt, answer in zip(prompts, answers, strict=False)]
        )
        added = [ids[len(prompt) :] for prompt, ids in zip(before, both, strict=False)]
        # where a token spans the border, the answer is tokenized alone: a prompt without it never has that token
        merged = [row for row, ids in enumerate(both) if ids[: len(before[row])] != before[row]]
        for row, ids in zip(merged, self.controls.ids([answers[row] for row in merged])[0], strict=True):
            added[row] = ids
        if not self.end:
            added = [[*ids, self.end_id] for ids in added]
        return before, added, sorted({*failed, *failed_both})


def prompt_turns(tokenizer: Any, texts: Sequence[str], path: Path, *, is_list: bool = False) -> list[str]:
    """Return each text as a turn of the user with the template's generation prompt.

    Args:
        tokenizer: a tokenizer with a chat template.
        texts: the texts.
        path: the file that they are from, for messages.
        is_list: whether the template wants the content of a turn as a list of parts.

    Raises:
        InputError: the template refuses a text.
    """
    conversations = [_turns(text, None, is_list=is_list) for text in texts]
    return _render(tokenizer, conversations, asks=True, path=path)


def read_chat_template(tokenizer: Any, end_ids: Collection[int]) -> ChatTemplate:
    """Learn from a tokenizer's chat template how it writes the assistant's turn, and which token ends it.

    That token is the first one after the response that is a control token or one of ``end_ids``.

    Args:
        tokenizer: a tokenizer with a chat template.
        end_ids: ids of the tokens at which the base stops generating.

    Raises:
        InputError: the template refuses a lone turn of the user, or an answer to it, or does not write their texts.
    """
    is_list = False
    requested, full = _probe(tokenizer, is_list=is_list)
    if PROMPT_PROBE not in requested or RESPONSE_PROBE not in full:
        is_list = True
        requested, full = _probe(tokenizer, is_list=is_list)
    if PROMPT_PROBE not in requested or RESPONSE_PROBE not in full:
        raise InputError(
            "the base's chat template does not write the texts of the turns: correct the template in the base's "
            "folder, or remove it, so that a line break separates prompt and response"
        )
    (plain,) = _render(tokenizer, [_turns(PROMPT_PROBE, None, is_list=is_list)])
    before, _, tail = full.rpartition(RESPONSE_PROBE)
    begins_so = before.startswith(requested)
    has_generation_prompt = requested != plain
    # without a generation prompt, a header that only the full conversation has belongs to the prompt
    by_request = begins_so and (has_generation_prompt or not before[len(requested) :].strip())
    prompt = requested if by_request else before.rstrip(" ")
    end, end_id = _end(tokenizer, tail, end_ids)
    if end_id is None:
        raise InputError(
            "neither the base's chat template nor its tokenizer has a token that ends a response, so the end of a "
            "response cannot be learned: set the tokenizer's eos_token"
        )
    lead = before[len(prompt) :]
    example = (prompt.replace(PROMPT_PROBE, "PROMPT"), f"{lead}RESPONSE{end}")
    return ChatTemplate(
        tokenizer, is_list, by_request, lead, tail, end, end_id, example, has_generation_prompt and not begins_so
    )


def _end(tokenizer: Any, tail: str, end_ids: Collection[int]) -> tuple[str, int | None]:
    """Return the tail up to the token that ends a turn, and its id; the tokenizer's end token if it has none."""
    control = {*end_ids, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for index in token_ids(tokenizer, [tail])[0] if tail else ():
        if index in control:
            before, token, _ = tail.partition(str(tokenizer.convert_ids_to_tokens(index)))
            if token:
                return before + token, index
    return "", tokenizer.eos_token_id


def _probe(tokenizer: Any, *, is_list: bool) -> tuple[str, str]:
    """Return the rendered request for a response, and the conversation with the response."""
    (requested,) = _render(tokenizer, [_turns(PROMPT_PROBE, None, is_list=is_list)], asks=True)
    (full,) = _render(tokenizer, [_turns(PROMPT_PROBE, RESPONSE_PROBE, is_list=is_list)])
    return requested, full


def _turns(text: str, response: str | None, *, is_list: bool) -> list[dict[str, Any]]:
    turns = [("user", text)] if response is None else [("user", text), ("assistant", response)]
    return [
        {"role": role, "content": [{"type": "text", "text": content}] if is_list else content}
        for role, content in turns
    ]


def _render(
    tokenizer: Any, conversations: list[list[dict[str, Any]]], *, asks: bool = False, path: Path | None = None
) -> list[str]:
    """Return the text of each conversation; with ``asks``, up to where the assistant's next turn begins."""
    from jinja2 import TemplateError  # a dependency of torch

    written = []
    for row, turns in enumerate(conversations, start=1):
        try:
            written.append(str(tokenizer.apply_chat_template(turns, add_generation_prompt=asks, tokenize=False)))
        except (TemplateError, TypeError, ValueError) as error:
            what = "a lone turn of the user" if len(turns) == 1 else "a turn of the user and the assistant's answer"
            where = "" if path is None else f"{path}, row {row}: "
            raise InputError(f"{where}the base's chat template refuses {what}: {error}") from None
    return written


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts, without the special tokens that a tokenizer puts around a full text."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _shown(text: str) -> str:
    """Return a text in quotes, without its middle if it is long."""
    half = MAX_SHOWN // 2
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:half]} ... {text[-half:]}")
