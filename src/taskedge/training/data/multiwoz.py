"""Convert MultiWOZ 2.0 to 2.4, and folders in the form of 2.2, to the lines of :mod:`taskedge.training.data.dialogues`.

    python -m taskedge.training.data.multiwoz MultiWOZ_2.4/data.json train.jsonl --without valListFile.json
    python -m taskedge.training.data.multiwoz MultiWOZ_2.4/data.json test.jsonl --only testListFile.json
    python -m taskedge.training.data.multiwoz MultiWOZ_2.2/train train.jsonl

Nothing is corrected: values are those of the files, but for absent ones ("", "not mentioned", "none"), which are left
out. Of several values ("a|b", or a list) each is right. The usual five domains are kept, unless ``--domains`` names
others. Published figures depend on a script that corrects values too; taskedge names its own normalization in a delta.

Source: the shapes of the published files (arXiv 1810.00278, 2007.12720).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from taskedge.errors import InputError, TaskEdgeError
from taskedge.io.atomic import write_atomic
from taskedge.reporting.tables import count_text

DOMAINS = ("attraction", "hotel", "restaurant", "taxi", "train")
_ABSENT = {"", "not mentioned", "none"}


def of_log(name: str, dialogue: dict[str, Any], domains: Iterable[str]) -> dict[str, Any]:
    """Return a dialogue of ``data.json``, where the system's turn has the state after the user's turn before it."""
    log, turns = dialogue["log"], []
    for number, entry in enumerate(log):
        if number % 2:
            turns.append({"role": "system", "content": entry["text"]})
            continue
        after = log[number + 1]["metadata"] if number + 1 < len(log) else None
        if after is None:  # nothing says what the user's last turn changed
            continue
        found: dict[str, Any] = {}
        for domain in domains:
            parts = after.get(domain, {})
            found |= {f"{domain}-{slot}": value for slot, value in parts.get("semi", {}).items()}
            found |= {
                f"{domain}-book {slot}": value for slot, value in parts.get("book", {}).items() if slot != "booked"
            }
        state = {slot: values for slot in sorted(found) if (values := _present(found[slot]))}
        turns.append({"role": "user", "content": entry["text"], "state": state})
    return {"dialogue": name, "turns": turns}


def of_frames(dialogue: dict[str, Any], domains: Collection[str]) -> dict[str, Any]:
    """Return a dialogue of 2.2, where a turn states the services that it is about, and others keep their state."""
    turns: list[dict[str, Any]] = []
    by_service: dict[str, dict[str, list[str]]] = {}
    for turn in dialogue["turns"]:
        if turn["speaker"].upper() != "USER":
            turns.append({"role": "system", "content": turn["utterance"]})
            continue
        for frame in turn["frames"]:
            values = frame.get("state", {}).get("slot_values", {})
            by_service[frame["service"]] = {slot: kept for slot, value in values.items() if (kept := _present(value))}
        state = {slot: values for service in by_service.values() for slot, values in service.items()}
        kept_slots = {slot: state[slot] for slot in sorted(state) if slot.split("-")[0] in domains}
        turns.append({"role": "user", "content": turn["utterance"], "state": kept_slots})
    return {"dialogue": dialogue["dialogue_id"], "turns": turns}


def dialogues(path: Path, domains: Collection[str] = DOMAINS) -> Iterator[dict[str, Any]]:
    """Yield the dialogues of a file of logs, or of the files of frames in a folder.

    Raises:
        InputError: the path holds no dialogues in a known shape; the message names the file and the dialogue.
    """
    files = sorted(path.glob("dialogues_*.json")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: the folder has no dialogues_*.json: name the folder of a part, such as train")
    for file in files:
        content = _json(file)
        if not isinstance(content, list | dict):
            raise InputError(f"{file}: no dialogues of MultiWOZ: an object or a list was expected")
        entries = enumerate(content, start=1) if isinstance(content, list) else content.items()
        for name, dialogue in entries:
            try:
                yield (
                    of_frames(dialogue, domains) if isinstance(content, list) else of_log(str(name), dialogue, domains)
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{file}, dialogue {name}: no dialogue of MultiWOZ ({error!r}): name its file"
                ) from None


def convert(
    source: Path, out: Path, *, only: Collection[str] = (), without: Collection[str] = (),
    domains: Collection[str] = DOMAINS,
) -> str:  # fmt: skip
    """Write the dialogues as JSON lines, and return a line about them.

    Args:
        source: ``data.json``, or a folder with ``dialogues_*.json``.
        out: the file to write.
        only: names of dialogues to convert; empty for all.
        without: names of dialogues to leave out.
        domains: whose slots are kept.

    Raises:
        InputError: see :func:`dialogues`; no dialogue is left, or the file cannot be written.
    """
    lines, slots, turns, left_out = [], Counter[str](), 0, 0
    for dialogue in dialogues(source, domains):
        if (only and dialogue["dialogue"] not in only) or dialogue["dialogue"] in without:
            left_out += 1
            continue
        states = [turn["state"] for turn in dialogue["turns"] if turn["role"] == "user"]
        slots.update(slot for state in states for slot in state)
        turns += len(states)
        lines.append(json.dumps(dialogue, ensure_ascii=False))
    if not lines:
        raise InputError(f"{source}: no dialogue is left of {left_out}: correct the lists of names")
    write_atomic(out, "".join(f"{line}\n" for line in lines).encode())
    counted = ", ".join(
        [count_text(len(lines), "dialogue"), f"{turns:,} turns of users", count_text(len(slots), "slot")]
    )
    return f"{out}: {counted}; left out: {count_text(left_out, 'dialogue')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the converter; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", type=Path, nargs="+", default=[], help="Files that list the dialogues to convert.")
    parser.add_argument("--without", type=Path, nargs="+", default=[], help="Files that list dialogues to leave out.")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    given = parser.parse_args(arguments)
    try:
        only, without = ({name for path in paths for name in _names(path)} for paths in (given.only, given.without))
        print(convert(given.source, given.out, only=only, without=without, domains=given.domains))
    except TaskEdgeError as error:
        print(f"error: {error}")
        return error.exit_code
    return 0


def _present(value: Any) -> list[str]:
    """Return the values that are right; none for an absent one."""
    values = value if isinstance(value, list) else str(value).split("|")
    return [text for each in values if (text := str(each).strip()).lower() not in _ABSENT]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): name a file of MultiWOZ") from None


def _names(path: Path) -> list[str]:
    """Return the names in a file that lists dialogues, one a line or as JSON."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): name a list of dialogues") from None
    return _json(path) if text.lstrip().startswith("[") else text.split()


if __name__ == "__main__":
    raise SystemExit(main())
