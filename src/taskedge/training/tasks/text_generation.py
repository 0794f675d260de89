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
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.table import Table, read_table
from taskedge.training.generation import IGNORED, generate, likelihood, pad
from taskedge.training.tasks import Batch, Collate, Columns, Done, Measures, Row, Say, task

PLAIN, LINE, CHAT = "plain text", "prompt, line break, response", "chat template"
"""How a row becomes one text."""
NEW_TOKENS = 64
"""Generated after plain text, where training data does not say how long a response is."""


@task("text-generation")
@dataclass(frozen=True)
class TextGeneration:
    """A response to each prompt, of which only the response and the end token are learnt; or plain text, learnt whole.

    Where the tokenizer has a chat template, the prompt is the user's turn in it; else a line break parts the two.
    Measured: ``loss`` (mean negative log-likelihood of the learnt tokens, in nats), ``perplexity`` (its exponential),
    and for prompts ``exact_match``: the share of rows whose response is generated to the letter.
    """

    form: str
    """``PLAIN``, ``LINE`` or ``CHAT``; before ``meet`` one that is not plain may be either of the last two."""
    chat: str = ""
    """Digest of the chat template, so that another one is noticed."""
    new_tokens: int = 0
    """Most tokens of a response; 0 before ``meet``."""

    name: ClassVar[str] = "text-generation"
    reads: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt", "response"), ("text",))
    max_length: ClassVar[int | None] = 512
    batch_size: ClassVar[int] = 8  # a row has as many answers as tokens, and memory goes by their logits
    labels: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, say: Say) -> Table:
        if columns.prompt:
            return read_table(path, columns.prompt, columns.response if answers else None)
        return read_table(path, columns.text)

    @classmethod
    def learn(cls, table: Table, columns: Columns) -> Self:
        return cls(LINE if columns.prompt else PLAIN)

    @classmethod
    def recall(cls, provenance: Provenance) -> Self:
        about = provenance.training.get("generation")
        if not isinstance(about, dict) or about.get("form") not in (PLAIN, LINE, CHAT):
            raise InputError("the delta does not say how its prompts were written, so it is no language model's")
        return cls(about["form"], str(about.get("chat", "")), int(about["max_new_tokens"]))

    def about(self) -> dict[str, Any]:
        about: dict[str, Any] = {"form": self.form, "max_new_tokens": self.new_tokens}
        return {"generation": about | ({"chat": self.chat} if self.chat else {})}

    def meet(self, base: Base, table: Table | None = None, max_length: int = 0, new_tokens: int | None = None) -> Self:
        if base.tokenizer.eos_token_id is None:
            raise InputError("the base's tokenizer has no end token, so the end of a response cannot be learnt: set it")
        form, chat, limit = self.form, _chat(base), new_tokens or self.new_tokens
        if table is None and form == CHAT and chat != self.chat:
            raise InputError(
                "the base's tokenizer has another chat template than the delta was trained with: name the base that "
                "it was trained on with --model"
            )
        if table is not None:
            if max_length < 2:
                raise InputError(f"--max-length {max_length} leaves no room for a prompt and a response: raise it")
            form = CHAT if form == LINE and chat else form
            longest = max((len(ids) for ids in _ids(base, table.labels)), default=NEW_TOKENS - 1) + 1
            limit = limit or min(longest, max_length)
        if base.longest is not None:
            limit = min(limit, base.longest - 1)
        return replace(self, form=form, chat=chat if form == CHAT else "", new_tokens=limit)

    def check(self, table: Table) -> None:
        """Any response can be compared with."""

    def identity(self, table: Table) -> Any:
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, say: Say) -> list[Row]:
        """Under ``prompt`` what is gone on from, under ``input_ids`` and ``labels`` what is learnt."""
        end, cut, rows = base.tokenizer.eos_token_id, 0, list[Row]()
        room = max_length if base.longest is None else min(max_length, base.longest - self.new_tokens)
        responses = _ids(base, table.labels)
        for place, prompt in enumerate(self._prompts(base, table)):
            row: Row = {"prompt": prompt[-room:]}
            if self.form == PLAIN:
                ids = [*prompt, end]
                row |= {"input_ids": ids[:max_length], "labels": ids[:max_length]}
                cut += len(ids) > max_length
            elif table.labels is not None:
                response = [*responses[place], end]
                kept = response[: max_length - 1]
                before = prompt[-(max_length - len(kept)) :]
                row |= {"input_ids": [*before, *kept], "labels": [IGNORED] * len(before) + kept}
                row["response"] = table.labels[place].strip()
                cut += len(prompt) + len(response) > max_length
            rows.append(row)
        if cut:
            where = "at their end" if self.form == PLAIN else "the prompt at its start, then the response at its end"
            say(f"{cut:,} of {len(rows):,} rows have more than {max_length} tokens and are cut: {where}")
        return rows

    def collate(self, base: Base) -> Collate:
        padding = base.tokenizer.pad_token_id

        def collate(rows: list[Row]) -> Batch:
            ids = [row["input_ids"] for row in rows]
            return {
                "input_ids": pad(ids, padding),
                "attention_mask": pad([[1] * len(row) for row in ids], 0),
                "labels": pad([row["labels"] for row in rows], IGNORED),
            }

        return collate

    def evaluate(self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done) -> Measures:
        generates = self.form != PLAIN
        total, tokens = likelihood(model, rows, self.collate(base), batch_size, (lambda _: None) if generates else done)
        loss = total / max(tokens, 1)
        measures: Measures = {"rows": len(rows), "loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if generates:
            found = self._generate(model, base, rows, batch_size, done)
            hits = sum(text == row["response"] for text, row in zip(found, rows, strict=True))
            measures["exact_match"] = hits / len(rows)
        return measures

    def predict(
        self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done
    ) -> list[dict[str, Any]]:
        return [{"response": text} for text in self._generate(model, base, rows, batch_size, done)]

    def _generate(self, model: nn.Module, base: Base, rows: Sequence[Row], batch_size: int, done: Done) -> list[str]:
        made = generate(
            model,
            [row["prompt"] for row in rows],
            pad_token=base.tokenizer.pad_token_id,
            end_token=base.tokenizer.eos_token_id,
            new_tokens=self.new_tokens,
            batch_size=batch_size,
            done=done,
        )
        return [base.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in made]

    def _prompts(self, base: Base, table: Table) -> list[list[int]]:
        """The tokens before each response, or of each plain text: at least one."""
        from jinja2 import TemplateError  # comes with torch

        if self.form == CHAT:
            turns = [[{"role": "user", "content": text}] for text in table.texts]
            try:
                told = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            except TemplateError as error:
                raise InputError(f"the base's chat template refuses a lone turn of the user: {error}") from None
            return _ids(base, told)
        start = _start(base)
        parted = [f"{text}\n" for text in table.texts] if self.form == LINE else table.texts
        return [[*start, *ids] or [base.tokenizer.eos_token_id] for ids in _ids(base, parted)]


def _ids(base: Base, texts: Sequence[str] | None) -> list[list[int]]:
    """Tokens of texts, without those that a tokenizer puts around a whole one."""
    if not texts:
        return []
    ids: list[list[int]] = base.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _start(base: Base) -> list[int]:
    """What the tokenizer puts before a text: a start token, or nothing."""
    first = base.tokenizer("")["input_ids"][:1]
    return first if first and first[0] == base.tokenizer.bos_token_id else []


def _chat(base: Base) -> str:
    """Digest of the tokenizer's chat template; empty where it has none."""
    template = base.tokenizer.chat_template
    return hashlib.blake2b(str(template).encode(), digest_size=8).hexdigest() if template else ""
