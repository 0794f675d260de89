"""Data files and changes to them, drawn from a seed: separators, encodings, shapes of JSON, damage, odd labels."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]

LABELS = (
    ["negative", "negative ", "positive", "positive "],
    ["Positive", "positive"],
    ["caf\u00e9", "cafe\u0301"],
    ["0,52", "1,5", "2,25"],
    ["0.5", "1.5", "nan"],
    ["0.5", "1.5", "2.25"],
    ["1", "1.0", "2"],
    ["true", "false", "True"],
    ["only"],
    ["a\nb", "c,d", '"e"'],
    ["", " "],
    ["\u200b", "x"],
    ["9" * 400, "1e999"],
    ["1_000", "2_000"],
    [None, "a", "b"],
    [["a"], {"b": 1}],
    [True, False],
    [0, 1, 2.5],
    ["\u0660", "\u0661"],
    [f"class {number}" for number in range(60)],
)
CELLS = (
    "", " ", "\t", "\0", "a\0b", "\u200b", "\ufeff", '"', '""', "'", "a\nb", "a\r\nb", ",;|\t", "=1+1", "\\",
    "x" * 200_000, "film " * 3000, "\U0001f600", "e\u0301", "[CLS] [SEP] [PAD]", "</s>", "<|endoftext|>", "nan", "None",
    "null", "\x1a", "\u2028", "\u202e", "%s {} {{", "\udce9",
)  # fmt: skip


def to_csv(rows: Rows, separator: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> str:
    """Return rows as CSV with a header."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer.writerow(names)
    writer.writerows([row.get(name, "") for name in names] for row in rows)
    return file.getvalue()


def to_jsonl(rows: Rows) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def encoded(text: str, rng: random.Random) -> tuple[bytes, str]:
    """Return the text in some encoding."""
    name = rng.choice(
        ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252")
    )
    return text.encode(name, "surrogateescape" if name.startswith("utf-8") else "replace"), name


# --- changes of rows --------------------------------------------------------------------------------------------------


def odd_labels(rows: Rows, answer: str, rng: random.Random) -> str:
    """Replace labels by odd ones, all or some."""
    labels = rng.choice(LABELS)
    share = rng.choice((0.05, 0.3, 1.0))
    for row in rows:
        if rng.random() < share:
            row[answer] = rng.choice(labels)
    return f"labels {labels[:4]!r} in {share:.0%}"


def odd_cells(rows: Rows, answer: str, rng: random.Random) -> str:
    """Put an odd text into some rows."""
    cell = rng.choice(CELLS)
    name = rng.choice([name for name in rows[0] if name != answer])
    for row in rng.sample(rows, rng.choice((1, 3, len(rows)))):
        row[name] = cell if rng.random() < 0.5 else f"{row[name]}{cell}"
    return f"text {cell[:20]!r}"


def odd_columns(rows: Rows, answer: str, rng: random.Random) -> str:
    """Rename, drop, add or reorder columns."""
    change = rng.choice(("rename", "drop", "add", "reverse", "blank", "case", "id"))
    name = rng.choice(list(rows[0]))
    for number, row in enumerate(rows):
        if change == "add":
            row["text2"] = "more"
        elif change == "reverse":
            for key in list(row)[::-1]:
                row[key] = row.pop(key)
        elif change == "id":
            row["id"] = number
        else:
            value = row.pop(name, None)
            if change != "drop":
                row[{"rename": "content", "blank": f" {name}", "case": name.upper()}[change]] = value
    return f"columns: {change} {name!r}"


def few_rows(rows: Rows, answer: str, rng: random.Random) -> str:
    """Keep no row, one row or two rows."""
    kept = rng.choice((0, 1, 2))
    del rows[kept:]
    return f"{kept} rows"


def same_rows(rows: Rows, answer: str, rng: random.Random) -> str:
    """Repeat one row."""
    rows[:] = [dict(rows[0]) for _ in rows]
    return "equal rows"


ROW_CHANGES: tuple[Callable[[Rows, str, random.Random], str], ...] = (
    odd_labels, odd_labels, odd_cells, odd_cells, odd_columns, few_rows, same_rows,
)  # fmt: skip


# --- forms of a file --------------------------------------------------------------------------------------------------


def as_separated(rows: Rows, answer: str, rng: random.Random) -> tuple[str, bytes, str]:
    """Write CSV by some separator, in some encoding."""
    separator = rng.choice((",", ";", "\t", "|", ":"))
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
    content, encoding = encoded(to_csv(rows, separator, quoting), rng)
    return rng.choice(("csv", "csv", "tsv")), content, f"CSV {separator!r} {encoding}"


def as_json(rows: Rows, answer: str, rng: random.Random) -> tuple[str, bytes, str]:
    """Write some shape of JSON."""
    names = list(rows[0]) if rows else ["text"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    shape, value = rng.choice((
        ("array", rows), ("data", {"data": rows}), ("columns", columns), ("two arrays", {"a": rows, "b": rows}),
        ("by index", {name: {str(i): v for i, v in enumerate(column)} for name, column in columns.items()}),
        ("lists", [list(row.values()) for row in rows]), ("number", 3), ("text", "rows"), ("null", None),
        ("nested", [rows]), ("uneven columns", columns | {names[0]: columns[names[0]][1:]}), ("empty", {}),
        ("objects in a row", rows),
    ))  # fmt: skip
    text = to_jsonl(rows) if shape == "objects in a row" else json.dumps(value, indent=rng.choice((None, 1)))
    content, encoding = encoded(text, rng)
    return rng.choice(("json", "json", "jsonl")), content, f"JSON {shape} {encoding}"


def as_lines(rows: Rows, answer: str, rng: random.Random) -> tuple[str, bytes, str]:
    """Write JSON lines, with some of them damaged."""
    lines = to_jsonl(rows).splitlines(keepends=True)
    damage = rng.choice(("none", "cut", "twice", "NaN", "comma", "blank", "number"))
    if lines and damage != "none":
        place = rng.randrange(len(lines))
        lines[place] = {
            "cut": lines[place][: len(lines[place]) // 2] + "\n",
            "twice": lines[place].rstrip()[:-1] + ', "text": "b"}\n',
            "NaN": '{"text": NaN, "label": NaN, "prompt": NaN, "response": Infinity}\n',
            "comma": lines[place].rstrip() + ",\n", "blank": "\n  \n", "number": "17\n",
        }[damage]  # fmt: skip
    content, encoding = encoded("".join(lines), rng)
    return rng.choice(("jsonl", "ndjson")), content, f"JSON lines, {damage}, {encoding}"


def as_chats(rows: Rows, answer: str, rng: random.Random) -> tuple[str, bytes, str]:
    """Write chat rows, ShareGPT rows or Alpaca rows, some with an odd turn."""
    kind = rng.choice(("messages", "conversations", "alpaca"))
    odd = rng.random() < 0.5
    made: Rows = []
    for row in rows:
        prompt, response = str(row.get("prompt", row.get("text"))), row.get(answer)
        if kind == "alpaca":
            made.append({"instruction": prompt, "input": rng.choice(("", "film")), "output": response})
            continue
        roles, keys = (("user", "assistant"), ("role", "content"))
        if kind == "conversations":
            roles, keys = (("human", "gpt"), ("from", "value"))
        turns = [dict(zip(keys, pair, strict=True)) for pair in zip(roles, (prompt, response), strict=True)]
        if odd and rng.random() < 0.3:
            turns = rng.choice((
                turns * 2, turns[:1], turns[1:], [], [{keys[0]: "system", keys[1]: "be kind"}, *turns],
                [{keys[0]: "tool", keys[1]: "x"}], [{keys[0]: roles[0]}], "user: hello", None,
            ))  # fmt: skip
        made.append({kind: turns})
    return "jsonl", to_jsonl(made).encode(), f"{kind}{', odd turns' if odd else ''}"


def as_packed(rows: Rows, answer: str, rng: random.Random) -> tuple[str, bytes, str]:
    """Write a compressed file, some cut short or damaged, or of another kind."""
    name = rng.choice(("csv", "jsonl", "json"))
    text = {"csv": to_csv(rows), "jsonl": to_jsonl(rows), "json": json.dumps(rows)}[name]
    packed = gzip.compress(text.encode())
    damage = rng.choice(("whole", "whole", "cut", "flipped", "plain", "zip", "parquet"))
    if damage == "cut":
        packed = packed[: rng.randrange(2, len(packed))]
    elif damage == "flipped":
        place = rng.randrange(10, len(packed))
        packed = packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :]
    elif damage == "plain":
        packed = text.encode()
    elif damage == "zip":
        packed = b"PK\x03\x04" + packed
    elif damage == "parquet":
        packed = b"PAR1" + packed
    return f"{name}.gz" if damage != "parquet" else "parquet", packed, f"{name}.gz, {damage}"


def as_damaged(rows: Rows, answer: str, rng: random.Random) -> tuple[str, bytes, str]:
    """Write CSV and damage the bytes: ragged rows, open quotes, double headers, stray bytes, cuts, marks."""
    text = to_csv(rows)
    lines = text.split("\n")
    damage = rng.choice((
        "ragged", "open quote", "double header", "no header", "stray byte", "cut", "empty", "mark only", "blank lines",
        "random", "CR", "mark inside", "zeros", "sep line", "quotes in quotes", "long header",
    ))  # fmt: skip
    place = rng.randrange(len(lines))
    if damage == "ragged":
        lines[place] += rng.choice((",x", ",", ",,,,"))
    elif damage in ("open quote", "quotes in quotes"):
        lines[place] = ('"' if damage == "open quote" else '"a "b" c",') + lines[place]
    elif damage == "double header":
        lines[0] = ",".join([lines[0].split(",")[0]] * len(lines[0].split(",")))
    elif damage == "no header":
        del lines[0]
    elif damage == "blank lines":
        lines = [part for line in lines for part in (line, "", "   ")]
    elif damage == "sep line":
        lines.insert(0, "sep=,")
    elif damage == "long header":
        lines[0] += "," + "x" * 5000
    content = ("\r" if damage == "CR" else "\n").join(lines).encode()
    spot = rng.randrange(len(content) or 1)
    content = {
        "stray byte": content[:spot] + b"\xe9" + content[spot:], "cut": content[:spot], "empty": b"",
        "mark only": codecs.BOM_UTF16_LE, "random": rng.randbytes(300), "zeros": content + b"\0" * 20,
        "mark inside": content[:spot] + codecs.BOM_UTF8 + content[spot:],
    }.get(damage, content)  # fmt: skip
    return rng.choice(("csv", "csv", "txt", "tsv")), content, f"CSV, {damage}"


FORMS: tuple[Callable[[Rows, str, random.Random], tuple[str, bytes, str]], ...] = (
    as_separated, as_separated, as_json, as_lines, as_chats, as_packed, as_damaged, as_damaged,
)  # fmt: skip
