"""A self-contained page: one HTML file with its style and pictures, no script, and no access to a network.

Values that come from files are text, never markup: :func:`markup_table` and the other functions escape what they get.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

MAX_ROWS = 200
"""Rows of a table; of a longer one, the page says how many are left out."""
_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--soft:#5d6670;--line:#d8dde3;--box:#f5f7f9;
--c1:#2f6fb7;--c2:#c8553d;--c3:#3a8f5c;--c4:#8a63b8;--c5:#b0812a;--c6:#4a9aa8}
@media (prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e4e8ec;--soft:#98a2ad;--line:#343b43;--box:#1d2228;
--c1:#6aa6e8;--c2:#e98a72;--c3:#6cc08e;--c4:#b794e0;--c5:#d9ad5a;--c6:#7cc6d2}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:60rem;
margin:0 auto;padding:1.5rem}
h1{font-size:1.5rem;margin:0 0 .3rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .6rem;
border-bottom:1px solid var(--line)}
.note,.legend{color:var(--soft);margin:.3rem 0}.scroll{overflow-x:auto;
margin:.4rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.2rem .7rem .2rem 0;text-align:right;
border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--soft);font-weight:600}
th.l,td.l{text-align:left}td.l{overflow-wrap:break-word;white-space:pre-wrap}
svg{max-width:100%;height:auto;display:block}svg text{fill:var(--fg);font:11px system-ui,sans-serif}
polyline{fill:none;stroke-width:1.8}.grid{stroke:var(--line)}.mark{stroke:var(--fg);stroke-width:1}
.cell{stroke:var(--line)}.legend span{margin-right:1.1rem}.legend i{display:inline-block;width:.8em;height:.8em;
margin-right:.4em;border-radius:2px}
""".replace("\n", "")


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """Return the page. ``sections`` are markup of this module and of ``charts``; the other texts are escaped."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{escape(title)}</h1><p class="note">{escape(subtitle)}</p>\n' + "\n".join(filter(None, sections)) + "\n"
        "</body></html>\n"
    )


def section(title: str, *content: str) -> str:
    """Return a section with a heading; ``""`` if there is no content."""
    body = "\n".join(filter(None, content))
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def note(text: str) -> str:
    """Return a line of text."""
    return f'<p class="note">{escape(text)}</p>'


def markup_table(rows: Sequence[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """Return a table, whose first row is its head. Cells are escaped; those of ``left`` are aligned to the left."""
    head, body = rows[0], rows[1:]

    def cells(row: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=l' if index in left else ''}>{escape(str(cell))}</{tag}>" for index, cell in enumerate(row)
        )

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body[:MAX_ROWS])
    more = note(f"{len(body) - MAX_ROWS:,} more rows are not shown") if len(body) > MAX_ROWS else ""
    return f'<div class="scroll"><table><tr>{cells(head, "th")}</tr>{lines}</table></div>{more}'


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Return names with their values, one in a line."""
    lines = "".join(
        f"<tr><th class=l>{escape(name)}</th><td class=l>{escape(str(value))}</td></tr>" for name, value in pairs
    )
    return f'<div class="scroll"><table>{lines}</table></div>'
