"""Command-line options made from a settings class, so that names, defaults and help stand in one place only."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Command = Callable[..., Any]


def options_of(settings: type[Any], *leave_out: str) -> Callable[[Command], Command]:
    """A decorator: one option for every field of ``settings``. An option that is not given is passed as None.

    Args:
        settings: a pydantic model, or a dataclass whose fields are annotated as those of one.
    """
    known = settings.model_fields if issubclass(settings, BaseModel) else _fields(settings)

    def decorate(command: Command) -> Command:
        for name, field in reversed(known.items()):
            if name not in leave_out:
                command = _option(name, field)(command)
        return command

    return decorate


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Those flags that were given on the command line."""
    kept = {name: value for name, value in flags.items() if value not in (None, ())}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


class Number(click.ParamType):  # type: ignore[type-arg]  # generic in later versions only
    """A number, or a fraction such as ``1/8``."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        above, *below = value.split("/", 1)
        try:
            return float(above) / (float(below[0]) if below else 1)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no number; write it as 0.125 or 1/8", param, ctx)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
force_option = click.option("--force", is_flag=True, help="Replace what is there.")


def print_json(value: Any) -> None:
    """JSON on standard output, and nothing else there."""
    click.echo(json.dumps(value, indent=1, default=str))


def note(message: str) -> None:
    """A line on standard error: what a program that reads standard output must not see."""
    click.echo(message, err=True)


def _fields(settings: type[Any]) -> dict[str, FieldInfo]:
    """Those of a dataclass, as pydantic describes them."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {
        field.name: FieldInfo.from_annotated_attribute(hints[field.name], field.default)
        for field in dataclasses.fields(settings)
    }


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    kind, choices, many = _kind(field.annotation)
    text = field.description or ""
    if field.is_required():
        text += "  [needed]"
    elif field.default is not None and kind is not bool:
        text += f"  [default: {field.default}]"
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    shown = click.Choice(choices) if choices else kind
    return click.option(flag, name, type=shown, multiple=many, default=None, help=text)


def _kind(annotation: Any) -> tuple[Any, tuple[str, ...], bool]:
    """(click type, choices, whether it may be repeated) of a field's annotation."""
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in annotation.__args__ if part is not type(None))
    if typing.get_origin(annotation) is list:
        return str, (), True
    if typing.get_origin(annotation) is typing.Literal:
        return str, typing.get_args(annotation), False
    return {Path: click.Path(path_type=Path), float: Number()}.get(annotation, annotation), (), False
