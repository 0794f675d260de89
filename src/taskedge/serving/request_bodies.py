"""Bodies of requests as strict models, and the rows that they ask for."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from taskedge.errors import InputError
from taskedge.serving.served_task import ServedTask
from taskedge.training.data.chat_template import token_ids
from taskedge.training.data.chat_turns import one_turn
from taskedge.training.data.table import Table
from taskedge.training.data.tagged_tokens import SEPARATOR
from taskedge.training.data.text_data import Row
from taskedge.training.soft_prompts import prompt_rows
from taskedge.training.tasks.text_generation import CHAT, TURNS, TextGeneration
from taskedge.training.tasks.token_classification import TokenClassification

MAX_PIXELS = 50_000_000
"""Largest image that is decoded."""
_PLACE = Path("inputs")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PredictBody(_Body):
    """Body of ``POST /v1/predict``."""

    task: Annotated[str, Field(min_length=1, max_length=64)]
    inputs: Annotated[list[str], Field(min_length=1)]
    """Texts or prompts; images as base64."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None


class ChatMessage(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(min_length=1)]


class ChatBody(_Body):
    """Body of ``POST /v1/chat/completions``: the part of OpenAI's chat API that greedy generation has."""

    model: Annotated[str, Field(min_length=1, max_length=64)]
    """The name of the task."""
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Literal[1] = 1
    temperature: Annotated[float, Field(ge=0, le=0)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    seed: int | None = None
    user: str | None = None

    @property
    def new_tokens(self) -> int:
        """Largest number of generated tokens; 0 for the task's own."""
        return self.max_completion_tokens or self.max_tokens or 0


def parse_json(content: bytes, body: type[_Body]) -> Any:
    """Return the body of a request.

    Raises:
        InputError: it is not JSON, or not what the path takes; the message names the field.
    """
    try:
        value = json.loads(content, parse_constant=_no_constant)
        return body.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        greedy = " (answers are the most probable tokens)" if field in ("temperature", "top_p", "n") else ""
        raise InputError(f"{field}: {first['msg']}{greedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON ({error}): send an object such as {_example(body)}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _example(body: type[_Body]) -> str:
    if body is ChatBody:
        return '{"model": "TASK", "messages": [{"role": "user", "content": "..."}]}'
    return '{"task": "TASK", "inputs": ["..."]}'


def text_rows(served: ServedTask, texts: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Return texts or prompts as rows, and notes about texts that are cut.

    Texts for tags are split at their blanks; a row has its ``tokens``.

    Raises:
        InputError: a text is blank or holds half of a surrogate pair; the base cannot read it.
    """
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise InputError(f"input {number} is empty: send a text")
        if _SURROGATE.search(text):
            raise InputError(f"input {number} holds half of a surrogate pair: remove the broken character")
    notes: list[str] = []
    tokens = [text.split() for text in texts] if isinstance(served.task, TokenClassification) else []
    if isinstance(served.task, TextGeneration) and served.task.form == TURNS:
        texts = list(map(one_turn, texts))
    base, table = served.reading_base, Table(_PLACE, [SEPARATOR.join(words) for words in tokens] or list(texts))
    rows = prompt_rows(base, served.task.encode(base, table, served.max_length, notes.append), served.prompt)
    return [row | {"tokens": words} for row, words in zip(rows, tokens, strict=True)] if tokens else rows, notes


def base64_images(texts: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of images by their name, from base64 with or without a ``data:`` prefix."""
    images = {}
    for number, text in enumerate(texts, start=1):
        try:
            images[f"input {number}"] = base64.b64decode(text.partition(",")[2] or text, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(f"input {number} is not base64: the task reads images") from None
    return images


def image_rows(served: ServedTask, images: Mapping[str, bytes]) -> list[Row]:
    """Return images as rows of pixels, by the base's own processor.

    Raises:
        InputError: an image cannot be read, or is too large.
    """
    from PIL import Image

    collate = served.task.collate(served.view.base)
    rows = []
    for name, content in images.items():
        try:
            with Image.open(io.BytesIO(content)) as opened:
                width, height = opened.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{name}: the image cannot be read ({str(error).splitlines()[0]}): replace it") from None
        if width * height > MAX_PIXELS:
            raise InputError(f"{name}: {width} x {height} is more than {MAX_PIXELS:,} pixels: send a smaller image")
        row: Any = {"path": io.BytesIO(content), "where": f"{name}: ", "image": name}
        try:
            rows.append({"pixel_values": collate([row])["pixel_values"][0], "image": name})
        except InputError as error:
            raise InputError(re.sub(r"<_io\.BytesIO[^>]*>: ", "", str(error))) from None
    return rows


def chat_rows(served: ServedTask, messages: Sequence[ChatMessage]) -> tuple[list[Row], list[str]]:
    """Return the one row of a conversation, and notes.

    One message of the user is the prompt of the training. Longer conversations need a task that was trained with a chat
    template.

    Raises:
        InputError: the task does not generate, or does not take such a conversation.
    """
    task, base = served.task, served.reading_base
    if not isinstance(task, TextGeneration):
        raise InputError(f"task {served.name!r} is for {task.name}, not for text-generation: POST it to /v1/predict")
    if len(messages) == 1 and messages[0].role == "user":
        return text_rows(served, [messages[0].content])
    if task.form not in (CHAT, TURNS):
        raise InputError(
            f"task {served.name!r} was trained on single prompts without a chat template: send one message of the user"
        )
    from jinja2 import TemplateError

    controls = task.template.controls if task.template is not None and task.controls_as_text else None
    contents = [message.content if controls is None else controls.hide(message.content) for message in messages]
    turns = [{"role": message.role, "content": text} for message, text in zip(messages, contents, strict=True)]
    try:
        text = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the base's chat template refuses the conversation: {error}") from None
    failed = list[int]()
    if controls is None:
        ids = token_ids(base.tokenizer, [text])[0]
    else:
        (ids,), failed = controls.ids([text])
    limit = served.max_length
    if base.max_positions is not None:
        limit = min(limit, base.max_positions - task.new_tokens)
    notes = [f"the conversation has {len(ids)} tokens and is cut at its start to {limit}"] if len(ids) > limit else []
    if failed:
        notes.append("a control token in a message is read as such: the base's tokenizer makes it of plain text too")
    return prompt_rows(base, [{"prompt": ids[-limit:]}], served.prompt), notes
