"""Line numbers of tables and keys in a TOML text, for messages. tomllib does not keep them."""

from __future__ import annotations

import re

Location = tuple[str | int, ...]
"""Path of a key, such as ``("device", 2, "name")``; rows of an array of tables count from 0."""

_HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.\"'-]+)\s*\]\]?")
_KEY = re.compile(r"^\s*([\w\"'-]+)\s*=")


class TomlLocations:
    """Line numbers in a TOML text. Inline tables have the line of their key."""

    def __init__(self, text: str) -> None:
        self._lines: dict[Location, int] = {}
        table: Location = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if header := _HEADER.match(line):
                name = header[2].strip("\"'")
                if header[1] == "[[":
                    counts[name] = counts.get(name, -1) + 1
                    table = (name, counts[name])
                    self._lines.setdefault((name,), number)
                else:
                    table = tuple(name.split("."))
                self._lines[table] = number
            elif key := _KEY.match(line):
                self._lines.setdefault((*table, key[1].strip("\"'")), number)

    def line(self, location: Location) -> int | None:
        """Return the line of a key, or of the innermost table around it that has a line; None if there is none."""
        while location:
            if location in self._lines:
                return self._lines[location]
            location = location[:-1]
        return None
