"""Options, output and progress lines that all verbs share; options made from settings classes."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from taskedge.errors import InputError
from taskedge.reporting.progress import show_progress
from taskedge.training.config import Config

Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
other_base_option = click.option("--force", is_flag=True, help="Apply the delta even to a base with other values.")
head_option = click.option("--head", "--task", "head", help="Name of the task, of a delta for several tasks.")
replace_option = click.option("--replace", is_flag=True, help="Replace --out if it exists.")
force_option = click.option("--replace", "--force", "force", is_flag=True, help="Replace files that exist.")
"""For verbs that apply no delta, so that there is no check of a base for ``--force`` to skip."""


# --- options made from settings ---------------------------------------------------------------------------------------


class Number(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click only
    """A number, or a fraction such as ``1/8``."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fail with what to write instead."""
        if isinstance(value, float):
            return value
        numerator, *denominator = value.split("/", 1)
        try:
            return float(numerator) / (float(denominator[0]) if denominator else 1)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no number; write it as 0.125 or 1/8", param, ctx)


def options_of(
    config_class: type[Config], *leave_out: str, narrowed: Mapping[str, tuple[Sequence[str], str]] | None = None
) -> Callable[[Command], Command]:
    """Return a decorator that adds one option for every field of ``config_class`` but those in ``leave_out``.

    The option has the name, type and help of the field. The command gets None for an option that is not given, so that
    a settings file is not overruled by defaults (:func:`given_flags`).

    Args:
        config_class: the settings.
        leave_out: names of fields.
        narrowed: by field, the choices that this verb accepts (none: any text) and their help, where it is not all.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(config_class.model_fields.items()):
            if name not in leave_out:
                command = _option(name, field, (narrowed or {}).get(name))(command)
        return command

    return decorate


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that the command line gives, without flags that are None or empty."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _option(name: str, field: FieldInfo, narrowed: tuple[Sequence[str], str] | None) -> Callable[[Command], Command]:
    option_type, choices, repeatable = _click_type(field.annotation)
    text = field.description or ""
    if narrowed is not None:
        choices, text = tuple(narrowed[0]), narrowed[1]
    if field.is_required():
        text += "  [required]"
    elif field.default is not None and option_type is not bool:
        text += f"  [default: {field.default}]"
    flag = f"--{name.replace('_', '-')}"
    if option_type is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    shown = click.Choice(choices) if choices else option_type
    return click.option(flag, name, type=shown, multiple=repeatable, default=None, help=text)


def _click_type(annotation: Any) -> tuple[Any, tuple[str, ...], bool]:
    """Return (click type, choices, whether the option may be repeated) for a field's annotation."""
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in annotation.__args__ if part is not type(None))
    if typing.get_origin(annotation) is list:
        return str, (), True
    if typing.get_origin(annotation) is typing.Literal:
        return str, typing.get_args(annotation), False
    return {Path: click.Path(path_type=Path), float: Number()}.get(annotation, annotation), (), False


# --- files and output -------------------------------------------------------------------------------------------------


def refuse_existing(paths: Iterable[Path | None], force: bool) -> None:
    """Check that all files can be written, before any work.

    Raises:
        InputError: a file exists (and not ``force``), or its folder does not. The message names all of them. Or a
            folder cannot be written to, or is named as a file.
    """
    from taskedge.io.atomic import require_writable

    present = [path for path in paths if path is not None]
    existing = [str(path) for path in present if path.exists()]
    if existing and not force:
        raise InputError(f"{', '.join(existing)} exists; give --replace to overwrite, or another name")
    missing = [str(path.parent) for path in present if not path.parent.is_dir()]
    if missing:
        raise InputError(f"there is no folder {', '.join(missing)}; make it first")
    for path in present:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a file")
        require_writable(path)


def refuse_input_as_output(out: Path, *inputs: Path) -> None:
    """Check that ``out`` neither is nor contains a file that the command reads, which ``--replace`` would destroy.

    Raises:
        InputError: it does.
    """
    for path in inputs:
        if out.exists() and path.exists() and any(out.samefile(part) for part in (path, *path.resolve().parents)):
            what = "is" if out.samefile(path) else "holds"
            raise InputError(f"{out} {what} {path}, which this command reads: name another with --out")


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=1, default=str))


def print_status(message: str) -> None:
    """Print a line on standard error, so that programs that read standard output do not see it.

    A log on a full disk loses lines. It does not end a run.
    """
    try:
        click.echo(message, err=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


@contextmanager
def progress(total: int, description: str, unit: str = "row") -> Iterator[Callable[[int], object]]:
    """Show the progress of a long task on standard error: one line on a terminal, else a line every ten seconds.

    Yields:
        A function to call with the number of units done since its last call.
    """
    display = show_progress(total, description, unit, print_status)
    try:
        yield display.update
    finally:
        display.close()
