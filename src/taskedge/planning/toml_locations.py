"""Finds the line of a key in a TOML text. tomllib keeps none, and a fault without its place is half a message."""

from __future__ import annotations

import re

HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.\"'-]+)\s*\]\]?")
KEY = re.compile(r"^\s*([\w\"'-]+)\s*=")


class Places:
    """Lines of the tables and keys of a TOML text; tables written inline have the line of their key."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str | int, ...], int] = {}
        table: tuple[str | int, ...] = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if header := HEADER.match(line):
                name = header[2].strip("\"'")
                if header[1] == "[[":
                    counts[name] = counts.get(name, -1) + 1
                    table = (name, counts[name])
                    self._lines.setdefault((name,), number)
                else:
                    table = tuple(name.split("."))
                self._lines[table] = number
            elif key := KEY.match(line):
                self._lines.setdefault((*table, key[1].strip("\"'")), number)

    def line(self, place: tuple[str | int, ...]) -> int | None:
        """Line of ``place``, such as ``("device", 2, "name")``, else of the table around it."""
        while place:
            if place in self._lines:
                return self._lines[place]
            place = place[:-1]
        return None
