r"""Whole conversations: as a chat template writes them, with the places of the assistant's turns.

    {"messages": [{"role": "system", "content": "..."}, {"role": "user", "content": "..."},
                  {"role": "assistant", "content": "..."}, ...], "tools": [...]}

Roles are ``system``, ``developer``, ``user``, ``assistant`` and ``tool``; ShareGPT's ``from`` and ``value`` are read as
well. A ``tools`` column, if there is one, is handed to the template, as are ``tool_calls`` of a message. A
:class:`~taskedge.training.data.table.Table` holds texts, so a row has its conversation as JSON.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskedge.errors import InputError
from taskedge.reporting.tables import count_text
from taskedge.training.data.chat_template import RESPONSE_PROBE, ChatTemplate
from taskedge.training.data.file_text import row_error
from taskedge.training.data.table import Table
from taskedge.training.data.table_readers import check_column_names, read_columns
from taskedge.training.data.text_data import cut_line

TOOLS_COLUMN = "tools"
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function"), "tool"),
    "system": "system",
    "developer": "developer",
}
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Parts of a message that templates read beside role and content."""
IGNORED = -100


@dataclass(frozen=True)
class Written:
    """A conversation as tokens.

    Attributes:
        ids: of the conversation, up to the end of the last turn of the assistant.
        labels: the token ids inside the assistant's turns, and -100 elsewhere.
        last: tokens before the last turn of the assistant.
        whole: whether the text was tokenized as a whole; if not, turn by turn.
        failed: whether a control token of a user could not be read as text.
    """

    ids: list[int]
    labels: list[int]
    last: int
    whole: bool
    failed: bool


def read_conversations(path: Path, column: str, *, answers: bool) -> Table:
    """Read conversations; the label of a row is the last answer of the assistant.

    With ``answers``, turns after the last one of the assistant are left out. Without, the conversation is what is to be
    answered: it ends before the last turn of the assistant, if no other turn follows that.

    Raises:
        InputError: see :func:`taskedge.training.data.table.read_table`; a row that is no conversation.
    """
    available: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        available.extend(names)
        check_column_names(path, [column], names)
        return [column, *([TOOLS_COLUMN] if TOOLS_COLUMN in names and column != TOOLS_COLUMN else [])]

    read = read_columns(path, choose)
    cells, tools = read.values[0], read.values[1] if len(read.values) > 1 else [None] * len(read.values[0])
    if not cells:
        raise InputError(f"{path} has columns but no rows; give a file with at least one row")
    texts, labels, num_turns, num_unread, num_tools = [], [], 0, 0, 0
    for row, (cell, offered) in enumerate(zip(cells, tools, strict=True), start=1):
        messages = _messages(path, row, column, cell)
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if answers and not places:
            raise row_error(path, row, f"{column!r} has no answer of an assistant; add one or remove the row")
        if answers:
            num_turns, num_unread = num_turns + len(places), num_unread + len(messages) - places[-1] - 1
            messages = messages[: places[-1] + 1]
            labels.append(str(messages[-1]["content"] or ""))
        elif places and places[-1] == len(messages) - 1:
            messages = messages[:-1]
        if not messages or (answers and len(messages) == 1):
            raise row_error(path, row, f"{column!r} has no turn before the assistant's; add one or remove the row")
        known = _json(offered) if offered else None
        if known is not None and not isinstance(known, list):
            raise row_error(path, row, f"{TOOLS_COLUMN!r} is no list of tools; correct it or leave the column out")
        num_tools += bool(known)
        texts.append(json.dumps({"messages": messages, "tools": known}, ensure_ascii=False))
    understood = read.understood
    if answers:
        understood += f"; {count_text(num_turns, 'turn')} of assistants in {column!r}"
    if num_tools:
        understood += f", {count_text(num_tools, 'row')} with tools"
    if num_unread:
        understood += f"; not read: {count_text(num_unread, 'turn')} after the last of an assistant"
    return Table(path, texts, labels if answers else None, understood=understood)


def one_turn(text: str) -> str:
    """Return a lone turn of the user as a row."""
    return json.dumps({"messages": [{"role": "user", "content": text}], "tools": None}, ensure_ascii=False)


def write_turns(template: ChatTemplate, row: str, path: Path, number: int) -> Written:
    """Return a conversation that ends with an answer as tokens, with labels at the turns of the assistant.

    A turn of the assistant is what the template writes between the request for it and the token that ends it, which is
    learned too. The text up to there must be the same in the whole conversation, or the row is refused: then the model
    would be trained on other texts than it reads when it generates.

    Args:
        template: of the base.
        row: from :func:`read_conversations`.
        path, number: of the row, for messages.

    Raises:
        InputError: the template refuses the conversation, or writes a turn in another way when others follow.
    """
    conversation = json.loads(row)
    messages = _hidden(template, conversation["messages"])
    tools, num_after = conversation["tools"], len(template.tail) - len(template.end)
    full = _render(template, messages, tools, path, number, asks=False)
    full = full[: len(full) - num_after]
    cuts: list[int] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _request(template, messages[:place], tools, path, number)
        through = _render(template, messages[: place + 1], tools, path, number, asks=False)
        through = through[: len(through) - num_after]
        if not through.startswith(before) or not full.startswith(through) or not through.endswith(template.end):
            raise row_error(
                path, number, f"the base's chat template writes turn {place + 1} in another way when later turns "
                "follow, so no training text is what is generated: make a row of each answer, or name a base with "
                "another template with --model"
            )  # fmt: skip
        cuts += [len(before), len(through)]
    prefixes, failed = template.controls.ids([full[:cut] for cut in cuts])
    ids = prefixes[-1]  # the conversation ends with the last cut
    if whole := all(ids[: len(prefix)] == prefix for prefix in prefixes):
        places = [len(prefix) for prefix in prefixes]
    else:
        edges = [0, *cuts]
        pieces, failed = template.controls.ids([full[a:b] for a, b in itertools.pairwise(edges)])
        ids = [index for piece in pieces for index in piece]
        places = [sum(map(len, pieces[: count + 1])) for count in range(len(pieces))]
    labels = [IGNORED] * len(ids)
    for start, end in zip(places[::2], places[1::2], strict=True):
        labels[start:end] = ids[start:end]
    return Written(ids, labels, places[-2], whole, bool(failed))


def request_ids(template: ChatTemplate, row: str, path: Path, number: int) -> tuple[list[int], bool]:
    """Return the tokens before the next turn of the assistant, and whether a user's control token is read as such."""
    conversation = json.loads(row)
    text = _request(template, _hidden(template, conversation["messages"]), conversation["tools"], path, number)
    (ids,), failed = template.controls.ids([text])
    return ids, bool(failed)


def learned_runs(labels: Sequence[int]) -> list[list[int]]:
    """Return the tokens of each answer: runs of labels."""
    groups = itertools.groupby(labels, key=lambda label: label != IGNORED)
    return [list(run) for learned, run in groups if learned]


def encode_turns(
    template: ChatTemplate, table: Table, max_length: int, max_prompt: int, log: Callable[[str], object]
) -> list[dict[str, Any]]:
    """Return a table of conversations as rows of tokens; one that is too long is cut at its start, and counted.

    Args:
        template: of the base.
        table: from :func:`read_conversations`.
        max_length: of a conversation.
        max_prompt: of what is read before an answer is generated.
        log: called with lines about what is cut, or read in another way.

    Returns:
        Rows with the ``prompt`` of the last answer; with answers also ``input_ids``, ``labels``, the text of the last
        answer (``response``) and its tokens (``answer``).
    """
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    parted = failed = unlearned = 0
    for number, text in enumerate(table.texts, start=1):
        if table.labels is None:
            prompt, has_control = request_ids(template, text, table.path, number)
            rows.append({"prompt": prompt[-max_prompt:], "answer": []})
            lengths.append(len(prompt))
            failed += has_control
            continue
        written = write_turns(template, text, table.path, number)
        answer = written.ids[written.last :]
        labels = written.labels[-max_length:]
        unlearned += len(learned_runs(written.labels)) - len(learned_runs(labels))
        response = template.response(template.controls.reveal(str(template.tokenizer.decode(answer))))
        rows.append(
            {
                "prompt": written.ids[: written.last][-max_prompt:],
                "input_ids": written.ids[-max_length:],
                "labels": labels,
                "response": response,
                "answer": answer,
            }
        )
        lengths.append(len(written.ids))
        parted, failed = parted + (not written.whole), failed + written.failed
    limit = max_prompt if table.labels is None else max_length
    if cut := [length for length in lengths if length > limit]:
        lost = sum(cut) - limit * len(cut)
        log(cut_line(len(cut), len(lengths), lost, max(cut), limit, "at the start of the conversation"))
    if unlearned:
        log(f"{count_text(unlearned, 'answer')} of assistants lie wholly before the cut and are not learned")
    if parted:
        log(f"in {count_text(parted, 'row')} a token would span the border of a turn: turns are tokenized one by one")
    if failed:
        log(
            f"in {count_text(failed, 'row')} a control token is read as such: the base's tokenizer makes it of text too"
        )
    return rows


def _request(template: ChatTemplate, messages: list[Any], tools: Any, path: Path, number: int) -> str:
    """Return the text before the assistant's next turn."""
    if template.prompts_by_request:
        return _render(template, messages, tools, path, number, asks=True)
    answered = [*messages, {"role": "assistant", "content": _content(template, RESPONSE_PROBE)}]
    return _render(template, answered, tools, path, number, asks=False).rpartition(RESPONSE_PROBE)[0].rstrip(" ")


def _render(template: ChatTemplate, messages: list[Any], tools: Any, path: Path, number: int, *, asks: bool) -> str:
    from jinja2 import TemplateError

    more = {} if tools is None else {"tools": tools}
    try:
        return str(template.tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False, **more))
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise row_error(
            path, number, f"the base's chat template refuses the turns {roles} ({error}): leave such turns out, or "
            "name a base with another template with --model"
        ) from None  # fmt: skip


def _hidden(template: ChatTemplate, messages: list[Any]) -> list[Any]:
    """Return messages in which control tokens are hidden in what anybody says."""
    return [
        message | {"content": _content(template, template.controls.hide(str(message["content"] or "")))}
        for message in messages
    ]


def _content(template: ChatTemplate, text: str) -> Any:
    return [{"type": "text", "text": text}] if template.is_list else text


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _messages(path: Path, row: int, column: str, cell: Any) -> list[dict[str, Any]]:
    cell = _json(cell)
    if not isinstance(cell, list) or not cell or not all(isinstance(turn, dict) for turn in cell):
        raise row_error(path, row, f'{column!r} is no list of turns like {{"role": "user", "content": "..."}}')
    made = []
    for number, turn in enumerate(cell, start=1):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            known = ", ".join(sorted({*_ROLES.values()}))
            raise row_error(path, row, f"turn {number} in {column!r} is of {role!r}; known roles are {known}")
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            raise row_error(path, row, f"turn {number} in {column!r} has no text; only texts can be read")
        kept = {name: turn[name] for name in _KEPT if turn.get(name) is not None}
        made.append({"role": _ROLES[role.lower()], "content": content or "", **kept})
    return made
