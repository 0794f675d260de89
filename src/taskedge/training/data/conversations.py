"""Chat and instruction rows, read as a prompt and a response.

Published data for chat models comes in a few shapes. A file with one of them has the columns ``prompt`` and
``response`` in addition to its own, unless it has its own of that name:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}     ShareGPT
    {"instruction": "...", "input": "...", "output": "..."}                                     Alpaca, Dolly

A row is one exchange: the first turn of the user, after a system turn, and the answer to it. Later turns are not read,
and are counted; :mod:`.chat_turns` reads whole conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taskedge.reporting.tables import count_text
from taskedge.training.data.file_text import row_error

CHAT_COLUMNS = ("messages", "conversations", "conversation")
_INPUTS = ("input", "context")
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}

Columns = Callable[[str], list[Any]]


def converted_names(names: Sequence[str]) -> list[str]:
    """Return which of ``prompt`` and ``response`` a file with these columns has by conversion."""
    chat = any(name in names for name in CHAT_COLUMNS)
    made = {"prompt": chat or "instruction" in names, "response": chat or {"instruction", "output"} <= set(names)}
    return [name for name, possible in made.items() if possible and name not in names]


def convert(path: Path, names: Sequence[str], column: Columns, wanted: Sequence[str]) -> tuple[list[list[str]], str]:
    """Return converted columns, and a sentence about the conversion.

    Args:
        path: the file, for messages.
        names: its columns.
        column: returns the values of one of them.
        wanted: the columns to return, of :func:`converted_names`.

    Raises:
        InputError: a row is no conversation, or has no such turn.
    """
    chat = next((name for name in CHAT_COLUMNS if name in names), None)
    if chat is not None:
        return _from_turns(path, chat, column(chat), wanted)
    extra = next((name for name in _INPUTS if name in names), None)
    extras = column(extra) if extra else None
    prompts = []
    for row, instruction in enumerate(column("instruction")):
        parts = [instruction, None if extras is None else extras[row]]
        prompts.append("\n".join(str(part) for part in parts if part is not None and str(part).strip()))
    origins = {
        "prompt": "the prompt is 'instruction'" + (f", a line break and {extra!r}" if extra else ""),
        "response": "the response is 'output'",
    }
    sentence = ", ".join(origins[name] for name in wanted)
    return [prompts if name == "prompt" else column("output") for name in wanted], sentence


def _from_turns(path: Path, name: str, values: Sequence[Any], wanted: Sequence[str]) -> tuple[list[list[str]], str]:
    made: dict[str, list[str]] = {"prompt": [], "response": []}
    num_system, num_longer, num_unread = 0, 0, 0
    for row, value in enumerate(values, start=1):
        turns = _turns(path, row, name, value)
        system, prompt, response, unread = _first_exchange(turns)
        if not prompt:
            raise row_error(path, row, f"{name!r} has no turn of a user; add one or remove the row")
        if "response" in wanted and response is None:
            raise row_error(path, row, f"{name!r} has no answer of an assistant; add one or remove the row")
        made["prompt"].append("\n\n".join([*system, "\n".join(prompt)]))
        made["response"].append(response or "")
        num_system += bool(system)
        num_longer += bool(unread)
        num_unread += unread
    parts = {"prompt": "the prompt is the first turn of the user", "response": "the response that of the assistant"}
    sentence = f"{', '.join(parts[part] for part in wanted)} in {name!r}"
    if num_system:
        sentence += f"; in {count_text(num_system, 'row')} a system turn begins the prompt"
    if num_longer:
        left = f"{count_text(num_unread, 'more turn')} in {count_text(num_longer, 'row')}"
        sentence += f"; not read: {left} (--messages {name} learns every turn of the assistant)"
    return [made[part] for part in wanted], sentence


def _first_exchange(turns: Sequence[tuple[str, str]]) -> tuple[list[str], list[str], str | None, int]:
    """Return system turns, user turns, the answer (None if there is none) and the number of other turns."""
    system: list[str] = []
    prompt: list[str] = []
    unread = 0
    for place, (role, text) in enumerate(turns):
        if role == "user":
            prompt.append(text)
        elif role == "system" and not prompt:
            system.append(text)
        elif role == "assistant" and prompt:
            return system, prompt, text, unread + len(turns) - place - 1
        else:
            unread += 1
    return system, prompt, None, unread


def _turns(path: Path, row: int, name: str, value: Any) -> list[tuple[str, str]]:
    """Return role and text of each turn in a cell: a list, or JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        message = f'{name!r} is no list of turns like {{"role": "user", "content": "..."}}: name other columns'
        raise row_error(path, row, message)
    turns = []
    for turn in value:
        role = turn.get("role", turn.get("from"))
        text = _turn_text(turn.get("content", turn.get("value")))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise row_error(path, row, f"{name!r} has a turn of {role!r}; user, assistant and system can be read")
        if text is None:
            raise row_error(path, row, f"{name!r} has a turn of {role!r} without a text; only texts can be read")
        turns.append((_ROLES[role.lower()], text))
    return turns


def _turn_text(content: Any) -> str | None:
    """Return the text of a turn: a string, or parts of type text; None for anything else."""
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    return content if isinstance(content, str) else None
