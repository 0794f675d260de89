"""Text generation: a response to each prompt, or plain text, by a causal language model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from taskedge.backbone.loading import Base
from taskedge.backbone.vocabulary import check_token_ids
from taskedge.delta.delta import Provenance
from taskedge.errors import InputError
from taskedge.training.data.chat_template import ChatTemplate, prompt_turns, read_chat_template, token_ids
from taskedge.training.data.chat_turns import encode_turns, learned_runs, read_conversations, write_turns
from taskedge.training.data.control_tokens import control_names, control_tokens, log_control_tokens
from taskedge.training.data.table import Table, read_table
from taskedge.training.data.text_data import cut_line
from taskedge.training.generation import (
    IGNORED,
    generate,
    label_collator,
    log_unmatched,
    negative_log_likelihood,
    predicts_next_tokens,
)
from taskedge.training.tasks import Collate, Columns, Log, Measures, OnProgress, Row, ignore_log, task

PLAIN, LINE, CHAT = "plain text", "prompt, line break, response", "chat template, both turns"
"""How a row becomes one text."""
TURNS = "chat template, every turn of the assistant"
"""The form of whole conversations (``--messages``)."""
PROMPT_TURN = "chat template"
"""The form of deltas from before ``CHAT``: the prompt as a turn of the template, the response, the tokenizer's end."""
FORMS = (PLAIN, LINE, CHAT, TURNS, PROMPT_TURN)
PLAIN_NEW_TOKENS = 64
"""Tokens generated after plain text, whose training data does not tell the length of a response."""


@task("text-generation")
@dataclass(frozen=True)
class TextGeneration:
    """A response to each prompt, or plain text.

    Of a prompt and its response, only the response and the token that ends it are learned; plain text is learned in
    full. If the tokenizer has a chat template, prompt and response are the turns of the user and the assistant in it,
    and the template's own token ends the response; otherwise a line break separates the two, and the tokenizer's end
    token ends the response.

    Measures: ``loss`` (mean negative log-likelihood of the learned tokens, in nats), ``perplexity`` (its exponential),
    and for prompts ``exact_match``: the share of rows whose generated response equals the given one.

    Attributes:
        form: ``PLAIN``, ``LINE``, ``CHAT`` or ``PROMPT_TURN``. Before ``bind``, ``LINE`` may become ``CHAT``.
        chat: digest of the chat template, to detect another one.
        new_tokens: largest number of tokens of a response; 0 before ``bind``.
        end: the token that ends a response, in ``CHAT``; otherwise the tokenizer's end token does.
        controls_as_text: whether control tokens in users' texts are read as text. In deltas of earlier versions they
            are not.
        template: what the chat template writes; None before ``bind`` and in other forms than ``CHAT``.
    """

    form: str
    chat: str = ""
    new_tokens: int = 0
    end: str = ""
    controls_as_text: bool = True
    template: ChatTemplate | None = field(default=None, compare=False, repr=False)

    name: ClassVar[str] = "text-generation"
    column_sets: ClassVar[tuple[tuple[str, ...], ...]] = (("prompt", "response"), ("text",), ("messages",))
    max_length: ClassVar[int | None] = 512
    batch_size: ClassVar[int] = 8  # a row has as many logits vectors as tokens, and they determine the memory
    labels: ClassVar[tuple[str, ...]] = ()

    @property
    def has_value(self) -> bool:
        """Whether one answer follows each text."""
        return self.form not in (PLAIN, TURNS)

    @staticmethod
    def read(path: Path, columns: Columns, *, answers: bool, log: Log) -> Table:
        """Read prompts and, with ``answers``, their responses; or plain texts, or whole conversations."""
        if columns.messages:
            return read_conversations(path, columns.messages, answers=answers)
        if columns.prompt:
            return read_table(path, columns.prompt, columns.response if answers else None, strip_labels=False)
        return read_table(path, columns.text)

    @classmethod
    def from_table(cls, table: Table, columns: Columns) -> Self:
        """Make the task of the columns of training data."""
        return cls(TURNS if columns.messages else LINE if columns.prompt else PLAIN)

    @classmethod
    def from_provenance(cls, provenance: Provenance) -> Self:
        """Make the task of the form that a delta remembers."""
        fields = provenance.training.get("generation")
        if not isinstance(fields, dict) or fields.get("form") not in FORMS:
            raise InputError("the delta does not say how its prompts were written, so it is no language model's")
        return cls(
            fields["form"], str(fields.get("chat", "")), int(fields["max_new_tokens"]), str(fields.get("end", "")),
            fields.get("controls") == "text",
        )  # fmt: skip

    def to_provenance(self) -> dict[str, Any]:
        """Return the form of the text and the length of responses."""
        fields: dict[str, Any] = {"form": self.form, "max_new_tokens": self.new_tokens}
        if self.chat:
            fields["chat"] = self.chat
        if self.end:
            fields["end"] = self.end
        if self.controls_as_text:
            fields["controls"] = "text"
        return {"generation": fields}

    def bind(
        self,
        base: Base,
        table: Table | None = None,
        max_length: int = 0,
        new_tokens: int | None = None,
        log: Log = ignore_log,
    ) -> Self:
        """Choose between line break and chat template by the tokenizer, and set the length of responses."""
        form, chat, limit = self.form, _chat_digest(base), new_tokens or self.new_tokens
        if table is None and form in (CHAT, TURNS, PROMPT_TURN) and chat != self.chat:
            raise InputError(
                "the base's tokenizer has another chat template than the delta was trained with: name the base that "
                "it was trained on with --model"
            )
        if table is not None:
            if max_length < 2:
                raise InputError(f"--max-length {max_length} leaves no room for a prompt and a response: raise it")
            if form == LINE and chat:
                form = CHAT
            if form == TURNS and not chat:
                raise InputError(
                    "the base's tokenizer has no chat template, which --messages needs: put its chat_template.jinja "
                    "into the base's folder, name an instruction-tuned base with --model, or leave --messages out: "
                    "then the first exchange of each row is read as prompt and response"
                )
            if not predicts_next_tokens(base.model):
                model_type = getattr(base.model.config, "model_type", "")
                raise InputError(
                    f"the loss of a model of type {model_type!r} is not that of the next token, so it cannot be "
                    "trained to generate: name another base with --model"
                )
        template = read_chat_template(base.tokenizer, _end_ids(base)) if form in (CHAT, TURNS) else None
        if form == TURNS and template is not None and not template.end:
            raise InputError(
                "the base's chat template ends the assistant's turn with no token of its own, so where a turn ends in "
                "the middle of a conversation cannot be learned: leave out --messages, or name another base"
            )
        if template is None and base.tokenizer.eos_token_id is None:
            raise InputError(
                "the base's tokenizer has no end token, so the end of a response cannot be learned: set it"
            )
        end = template.end_token if template else ""
        if table is None and end != self.end:
            raise InputError(
                f"the base's tokenizer and its config end a response with {end!r}, but the delta was trained with "
                f"{self.end!r}: name the base that it was trained on with --model"
            )
        chat = chat if template or form == PROMPT_TURN else ""
        bound = replace(self, form=form, chat=chat, end=end, template=template)
        if table is not None and not limit:
            limit = min(max(map(len, bound._answers(base, table)), default=PLAIN_NEW_TOKENS), max_length)
        if base.max_positions is not None and limit > base.max_positions - 1:
            log(f"at most {base.max_positions - 1} tokens are generated, not {limit}: the model has no more positions")
            limit = base.max_positions - 1
        bound = replace(bound, new_tokens=limit)
        for line in bound._notes(base):
            log(line)
        return bound

    def check(self, table: Table) -> None:
        """Accept any response."""

    def identity(self, table: Table) -> Any:
        """Return the prompts and responses."""
        return [table.texts, table.labels]

    def encode(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return token rows: ``prompt`` is the generation prefix, ``input_ids`` and ``labels`` the training example.

        Texts over ``max_length`` tokens are cut: a prompt at its start, then the response at its end; plain text at its
        end. The prefix is cut at its start as well, so that what is generated finds room.
        """
        rows = list[Row]()
        if self.form == TURNS:
            return self._encode_turns(base, table, max_length, log)
        max_prompt = max_length if base.max_positions is None else min(max_length, base.max_positions - self.new_tokens)
        prompts, answers, responses = self._tokens(base, table, log)
        lengths = list[int]()
        for i, prompt in enumerate(prompts):
            row: Row = {"prompt": prompt[-max_prompt:]}
            if self.form == PLAIN:
                ids = [*prompt, base.tokenizer.eos_token_id]
                row |= {"input_ids": ids[:max_length], "labels": ids[:max_length]}
                lengths.append(len(ids))
            elif answers:
                kept = answers[i][: max_length - 1]
                prefix = prompt[-(max_length - len(kept)) :]
                row |= {"input_ids": [*prefix, *kept], "labels": [IGNORED] * len(prefix) + kept}
                row["response"] = responses[i]
                lengths.append(len(prompt) + len(answers[i]))
            rows.append(row)
        all_ids = ([*row["prompt"], *row.get("input_ids", ())] for row in rows)
        check_token_ids(all_ids, base.tokens_without_embedding, table.path)
        where = "at their end" if self.form == PLAIN else "(the prompt at its start, then the response at its end)"
        _log_cut(lengths, len(rows), max_length, where, log)
        if not lengths or max_prompt < max_length:
            where = "at the start of the prompt when a response is generated"
            _log_cut(list(map(len, prompts)), len(rows), max_prompt, where, log)
        log_unmatched(answers, len(rows), self.new_tokens, "responses", log)
        return rows

    def _answers(self, base: Base, table: Table) -> list[list[int]]:
        """Return the tokens of all answers of training data."""
        if self.form != TURNS:
            return self._tokens(base, table)[1]
        assert self.template is not None
        written = [write_turns(self.template, text, table.path, row) for row, text in enumerate(table.texts, start=1)]
        return [run for each in written for run in learned_runs(each.labels)]

    def _encode_turns(self, base: Base, table: Table, max_length: int, log: Log) -> list[Row]:
        """Return the token rows of whole conversations; one that is too long is cut at its start."""
        assert self.template is not None
        max_prompt = max_length if base.max_positions is None else min(max_length, base.max_positions - self.new_tokens)
        encoded = encode_turns(self.template, table, max_length, max_prompt, log)
        check_token_ids((row["prompt"] for row in encoded), base.tokens_without_embedding, table.path)
        self._log_controls(base, table, [], log)
        log_unmatched([row.pop("answer") for row in encoded], len(encoded), self.new_tokens, "responses", log)
        return encoded

    def collate(self, base: Base) -> Collate:
        """Return a function that pads rows to a batch."""
        return label_collator(int(base.tokenizer.pad_token_id))

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
            end_token=self.stop_ids(base),
            new_tokens=self.new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        return [self.response_text(base, tokens) for tokens in responses]

    def response_text(self, base: Base, tokens: Sequence[int]) -> str:
        """Return the response that generated tokens are, without surrounding blanks."""
        text = str(base.tokenizer.decode(tokens, skip_special_tokens=True).strip())
        return text if self.template is None else self.template.without_lead(text)

    def _end_id(self, base: Base) -> int:
        """Return the id of the token that ends a response."""
        return int(base.tokenizer.eos_token_id if self.template is None else self.template.end_id)

    def stop_ids(self, base: Base) -> set[int]:
        """Return the ids of the tokens at which generation stops: that of the response, and those of the base."""
        return {self._end_id(base), *_end_ids(base)}

    def _notes(self, base: Base) -> list[str]:
        """Return lines about the texts around a response, and about its end."""
        tokens = {index: base.tokenizer.convert_ids_to_tokens(index) for index in sorted(self.stop_ids(base))}
        names = {index: f"token {index}" if token is None else repr(token) for index, token in tokens.items()}
        end = names.pop(self._end_id(base))
        others = f"; generation also stops at {', '.join(names.values())}" if names else ""
        what = "a text" if self.form == PLAIN else "a response"
        return [*(self.template.notes if self.template else ()), f"{end} ends {what}{others}"]

    def _tokens(
        self, base: Base, table: Table, log: Log = ignore_log
    ) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """Return the tokens before each response or of each plain text, the tokens of each answer, and its text.

        A prompt has at least one token; an answer ends with the token that ends a response. Without responses, the last
        two are empty.
        """
        tokenizer = base.tokenizer
        controls = control_tokens(tokenizer, (self._end_id(base),))
        hide = controls.hide if self.controls_as_text else str
        texts, labels = [list(map(hide, column)) for column in (table.texts, table.labels or ())]
        if self.template is not None:
            prompts = self.template.prompts(texts, table.path)
            answers = self.template.answers(texts[: len(labels)], prompts, labels, table.path)
            responses = list(map(self.template.response, answers))
            _log_altered(Table(table.path, texts, labels), prompts, responses, log)
            before, added, failed = self.template.conversation_ids(prompts, answers)
        elif self.form == PROMPT_TURN:
            before = token_ids(tokenizer, prompt_turns(tokenizer, table.texts, table.path))
            added, failed, responses = token_ids(tokenizer, labels), [], labels
        else:
            start = _start_tokens(base)
            before, failed = controls.ids([f"{text}\n" for text in texts] if self.form == LINE else texts)
            before = [[*start, *ids] or [tokenizer.eos_token_id] for ids in before]
            added, failed_labels = controls.ids(labels)
            failed, responses = sorted({*failed, *failed_labels}), labels
        if self.template is None:
            added = [[*ids, tokenizer.eos_token_id] for ids in added]
        self._log_controls(base, table, failed, log)
        return before, added, [controls.reveal(text).strip() for text in responses]

    def _log_controls(self, base: Base, table: Table, failed: Sequence[int], log: Log) -> None:
        """Log how many rows hold control tokens, and which of these are not read as text."""
        names = control_names(base.tokenizer, (self._end_id(base),))
        pairs = [f"{text}\n{label}" for text, label in zip(table.texts, table.labels or [""] * len(table), strict=True)]
        how = "as plain text" if self.controls_as_text else "as the control token, as in the training of the delta"
        log_control_tokens(names, pairs, how, log)
        if failed and self.controls_as_text:
            log(
                f"in {len(failed):,} of these rows it is read as the control token (first: row {failed[0] + 1}), since "
                "the base's tokenizer makes it of plain text too: remove it from the text if it is not meant"
            )


def _log_altered(table: Table, prompts: Sequence[str], responses: Sequence[str], log: Log) -> None:
    """Log how many texts a chat template does not write as they are, apart from blanks around a response."""
    rows = [
        [
            row
            for row, (text, prompt) in enumerate(zip(table.texts, prompts, strict=True), start=1)
            if text not in prompt
        ],
        [
            row
            for row, (text, response) in enumerate(zip(table.labels or (), responses, strict=True), start=1)
            if text.strip() != response
        ],
    ]
    for name, altered in zip(("prompts", "responses"), rows, strict=True):
        if altered:
            log(
                f"the chat template alters {len(altered):,} of {len(table):,} {name}, such as blanks around them or "
                f"parts that it leaves out (first: row {altered[0]})"
            )


def _log_cut(lengths: Sequence[int], num_rows: int, max_length: int, where: str, log: Log) -> None:
    """Log how many rows have more than ``max_length`` tokens, if there are any."""
    cut = [length for length in lengths if length > max_length]
    if cut:
        log(cut_line(len(cut), num_rows, sum(cut) - max_length * len(cut), max(cut), max_length, where))


def _end_ids(base: Base) -> set[int]:
    """Return the ids of the tokens at which the base stops by its own generation config."""
    ids = getattr(getattr(base.model, "generation_config", None), "eos_token_id", None)
    return {ids} if isinstance(ids, int) else set(ids or ())


def _start_tokens(base: Base) -> list[int]:
    """Return the start token that the tokenizer puts before a text, or nothing."""
    first = base.tokenizer("")["input_ids"][:1]
    return first if first and first[0] == base.tokenizer.bos_token_id else []


def _chat_digest(base: Base) -> str:
    """Return a digest of the tokenizer's chat template; empty if it has none."""
    template = base.tokenizer.chat_template
    return hashlib.blake2b(str(template).encode(), digest_size=8).hexdigest() if template else ""
