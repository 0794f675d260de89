"""Pages of the documentation site that are generated when mkdocs builds it (see ``hooks`` in mkdocs.yml).

* ``command-line.md`` gets the help text of every verb, from the click commands.
* ``contributing.md`` and ``changelog.md`` are CONTRIBUTING.md and CHANGELOG.md of the repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site, and the files of the repository that they show."""
COMMANDS = "<!-- commands -->"
WIDTH = 100
"""Columns of a help text."""
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):(?=<code>)")
"""A Sphinx role in a docstring, as mkdocstrings renders it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand in the root of the repository."""
    from mkdocs.structure.files import File

    for name, source in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=with_links_of_the_site(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of the command-line page with the reference."""
    if COMMANDS not in markdown:
        return markdown
    from taskedge.cli.main import cli

    return markdown.replace(COMMANDS, "\n".join(command_reference("taskedge", cli)))


def on_page_content(html: str, **_: Any) -> str:
    """Remove the names of Sphinx roles, which mkdocstrings does not know."""
    return ROLE.sub("", html)


def with_links_of_the_site(text: str) -> str:
    """Return the text of a file in the root with its links as seen from docs/."""
    text = text.replace("](docs/", "](")
    for name, source in FROM_ROOT.items():
        text = text.replace(f"]({source})", f"]({name})")
    return text


def command_reference(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[str]:
    """Yield the lines of a command's section, then the sections of its subcommands."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        max_content_width=WIDTH,
        terminal_width=WIDTH,
        **command.context_settings,
    )
    help_text = command.get_help(context).replace("\b", "")
    heading = "#" * min(1 + len(context.command_path.split()), 4)
    yield from (f"{heading} {context.command_path}", "", "```text", help_text, "```", "")
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            subcommand = command.get_command(context, verb)
            if subcommand is not None and not subcommand.hidden:
                yield from command_reference(verb, subcommand, context)
