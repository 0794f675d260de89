"""Text generation: a response to each prompt, or plain text, by a causal language model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table, read_table
from taskedge.training.generation import IGNORED, generate, negative_log_likelihood, pad
from taskedge.training.tasks import Batch, Collate, Columns, Log, Measures, OnProgress, Row, task

PLAIN, LINE, CHAT = "plain text", "prompt, line break, response", "chat template"
"""How a row becomes one text."""
PLAIN_NEW_TOKENS = 64
"""Tokens generated after plain text, whose training data does not tell the length of a response."""


@task("text-generation")
@dataclass(frozen=True)
class TextGeneration:
    """A response to each prompt, or plain text.

    Of a prompt and its response, only the response and the end token are learned; plain text is learned in full. If the
    tokenizer has a chat template, the prompt is the turn of the user in it; otherwise a line break separates the two.

    Measures: ``loss`` (mean negative log-likelihood of the learned tokens, in nats), ``perplexity`` (its exponential),
    and for prompts ``exact_match``: the share of rows whose generated response equals the given one.

    Attributes:
        form: ``PLAIN``, ``LINE`` or ``CHAT``. Before ``bind``, a form other than ``PLAIN`` may become either of the
            other two.
        chat: digest of the chat template, to detect another one.
        new_tokens: largest number of tokens of a response; 0 before ``bind``.
    """

    form: str
    chat: str = ""
    new_tokens: int = 0

    name: ClassVar[str] = "text-generation"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt", "response"), ("text",))
    max_length: ClassVar[int | None] = 512
    batch_size: ClassVar[int] = 8  # a row has as many logits vectors as tokens, and they determine the memory
    labels: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read prompts and, with ``answers``, their responses; or plain texts."""
        if columns.prompt:
            return read_table(path, columns.prompt, columns.response if answers else None, strip_labels=False)
        return read_table(path, columns.text)

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of the columns of training data."""
        return cls(LINE if columns.prompt else PLAIN)

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the form that a delta remembers."""
        fields = provenance.training.get("generation")
        if not isinstance(fields, dict) or fields.get("form") not in (PLAIN, LINE, CHAT):
            raise InputError("the delta does not say how its prompts were written, so it is no language model's")
        return cls(fields["form"], str(fields.get("chat", "")), int(fields["max_new_tokens"]))

    def to_provenance(self) -> dict[str, Any]:
        """Return the form of the text and the length of responses."""
        fields: dict[str, Any] = {"form": self.form, "max_new_tokens": self.new_tokens}
        if self.chat:
            fields["chat"] = self.chat
        return {"generation": fields}

    def bind(self, base: Base, table: Table | None = None, max_length: int = 0, new_tokens: int | None = None) -> Self:
        """Choose between line break and chat template by the tokenizer, and set the length of responses."""
        if base.tokenizer.eos_token_id is None:
            raise InputError(
                "the base's tokenizer has no end token, so the end of a response cannot be learned: set it"
            )
        form, chat, limit = self.form, _chat_digest(base), new_tokens or self.new_tokens
        if table is None and form == CHAT and chat != self.chat:
            raise InputError(
                "the base's tokenizer has another chat template than the delta was trained with: name the base that "
                "it was trained on with --model"
            )
        if table is not None:
            if max_length < 2:
                raise InputError(f"--max-length {max_length} leaves no room for a prompt and a response: raise it")
            if form == LINE and chat:
                form = CHAT
            longest = max((len(ids) for ids in _token_ids(base, table.labels)), default=PLAIN_NEW_TOKENS - 1) + 1
            limit = limit or min(longest, max_length)
        if base.max_positions is not None:
            limit = min(limit, base.max_positions - 1)
        return replace(self, form=form, chat=chat if form == CHAT else "", new_tokens=limit)

    def check(self, table: Table) -> None:
        """Accept any response."""

    def identity(self, table: Table) -> Any:
        """Return the prompts and responses."""
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return token rows: ``prompt`` is the generation prefix, ``input_ids`` and ``labels`` the training example.

        Texts over ``max_length`` tokens are cut: a prompt at its start, then the response at its end; plain text at its
        end.
        """
        end, num_cut, rows = base.tokenizer.eos_token_id, 0, list[Row]()
        max_prompt = max_length if base.max_positions is None else min(max_length, base.max_positions - self.new_tokens)
        responses = _token_ids(base, table.labels)
        for i, prompt in enumerate(self._prompts(base, table)):
            row: Row = {"prompt": prompt[-max_prompt:]}
            if self.form == PLAIN:
                ids = [*prompt, end]
                row |= {"input_ids": ids[:max_length], "labels": ids[:max_length]}
                num_cut += len(ids) > max_length
            elif table.labels is not None:
                response = [*responses[i], end]
                kept = response[: max_length - 1]
                prefix = prompt[-(max_length - len(kept)) :]
                row |= {"input_ids": [*prefix, *kept], "labels": [IGNORED] * len(prefix) + kept}
                row["response"] = table.labels[i].strip()
                num_cut += len(prompt) + len(response) > max_length
            rows.append(row)
        all_ids = ([*row["prompt"], *row.get("input_ids", ())] for row in rows)
        check_token_ids(all_ids, base.tokens_without_embedding, table.path)
        if num_cut:
            where = "at their end" if self.form == PLAIN else "the prompt at its start, then the response at its end"
            log(f"{num_cut:,} of {len(rows):,} rows have more than {max_length} tokens and are cut: {where}")
        return rows

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows to a batch."""
        padding = base.tokenizer.pad_token_id

        def collate(rows: list[Row]) -> Batch:
            ids = [row["input_ids"] for row in rows]
            return {
                "input_ids": pad(ids, padding),
                "attention_mask": pad([[1] * len(row) for row in ids], 0),
                "labels": pad([row["labels"] for row in rows], IGNORED),
            }

        return collate

    def evaluate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> Measures:
        """Measure the likelihood of the answers and, for prompts, how many are generated exactly."""
        if self.form == PLAIN:
            total, tokens = negative_log_likelihood(model, rows, self.collate(base), batch_size, on_progress)
        else:  # progress is that of the generation, which takes longer
            total, tokens = negative_log_likelihood(model, rows, self.collate(base), batch_size, lambda _: None)
        loss = total / max(tokens, 1)
        measures: Measures = {"rows": len(rows), "loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.form != PLAIN:
            responses = self._generate(model, base, rows, batch_size, on_progress)
            num_equal = sum(text == row["response"] for text, row in zip(responses, rows, strict=True))
            measures["exact_match"] = num_equal / len(rows)
        return measures

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[dict[str, Any]]:
        """Return the generated response to each row."""
        return [{"response": text} for text in self._generate(model, base, rows, batch_size, on_progress)]

    def _generate(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, on_progress: OnProgress
    ) -> list[str]:
        responses = generate(
            model,
            [row["prompt"] for row in rows],
            pad_token=base.tokenizer.pad_token_id,
            end_token=base.tokenizer.eos_token_id,
            new_tokens=self.new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        return [base.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in responses]

    def _prompts(self, base: Base, table: Table) -> list[list[int]]:
        """Return the tokens before each response, or those of each plain text: at least one."""
        from jinja2 import TemplateError  # a dependency of torch

        if self.form == CHAT:
            turns = [[{"role": "user", "content": text}] for text in table.texts]
            try:
                texts = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            except TemplateError as error:
                raise InputError(f"the base's chat template refuses a lone turn of the user: {error}") from None
            return _token_ids(base, texts)
        start = _start_tokens(base)
        texts = [f"{text}\n" for text in table.texts] if self.form == LINE else table.texts
        return [[*start, *ids] or [base.tokenizer.eos_token_id] for ids in _token_ids(base, texts)]


def _token_ids(base: Base, texts: Sequence[str] | None) -> list[list[int]]:
    """Return the tokens of texts, without the special tokens that a tokenizer puts around a full text."""
    if not texts:
        return []
    ids: list[list[int]] = base.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _start_tokens(base: Base) -> list[int]:
    """Return the start token that the tokenizer puts before a text, or nothing."""
    first = base.tokenizer("")["input_ids"][:1]
    return first if first and first[0] == base.tokenizer.bos_token_id else []


def _chat_digest(base: Base) -> str:
    """Return a digest of the tokenizer's chat template; empty if it has none."""
    template = base.tokenizer.chat_template
    return hashlib.blake2b(str(template).encode(), digest_size=8).hexdigest() if template else ""
