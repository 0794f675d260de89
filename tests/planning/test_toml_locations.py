"""Lines of tables and keys."""

from __future__ import annotations

from taskedge.planning.toml_locations import TomlLocations

TEXT = """\
title = "x"
[server]
rate = 1
[a.b]
"quoted" = 2

[[device]]
name = "one"
inline = {deep = 1}
[[device]]
name = "two"
"""


def test_lines_of_keys_and_tables() -> None:
    locations = TomlLocations(TEXT)
    assert locations.line(("title",)) == 1
    assert locations.line(("server", "rate")) == 3
    assert locations.line(("a", "b", "quoted")) == 5
    assert locations.line(("device",)) == 7
    assert locations.line(("device", 0, "name")) == 8
    assert locations.line(("device", 1, "name")) == 11


def test_a_missing_key_has_the_line_of_its_table() -> None:
    locations = TomlLocations(TEXT)
    assert locations.line(("server", "missing")) == 2
    assert locations.line(("device", 1, "missing")) == 10
    assert locations.line(("device", 0, "inline", "deep")) == 9
    assert locations.line(("nowhere",)) is None
    assert TomlLocations("").line(("server",)) is None
