"""``taskedge VERB``: finds the verb's module, imports it when it is called, and turns errors into exit codes.

A verb is a module beside this one with a click command named ``command``. Its line in ``VERBS`` registers it, so that
``taskedge --help`` imports no verb. A module has underscores where its verb has dashes, and one more after a Python
keyword: ``import_``.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import keyword
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

from taskedge import __version__
from taskedge.errors import TaskEdgeError, did_you_mean

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a write that the user can mend: no space, a quota, a limit of file sizes, a broken disk or terminal."""


class OutputError(TaskEdgeError):
    """Standard output that cannot be written."""


class OutputClosed(Exception):
    """A reader of standard output that closed its pipe, as ``taskedge info FILE | head -1`` does."""


VERBS = {
    "tune": "Train a share of a model's own weights for a task.",
    "tune-many": "Train several tasks at once over one base, as one file.",
    "search": "Find learning rates by held-out loss.",
    "select": "Choose the weights to train, as a file for other machines.",
    "estimate": "Predict memory and time of a run of tune, and of configurations that need less memory.",
    "eval": "Measure a delta on labeled data.",
    "predict": "Answer new data with a delta.",
    "info": "Describe a delta and the base it needs.",
    "report": "Write a page about a delta, or compare several.",
    "import": "Convert a PEFT LoRA adapter folder to a delta.",
    "merge": "Write a plain model folder with the delta's values in it.",
    "combine": "Combine deltas of one base into one, or forget a task.",
    "serve": "Answer requests for many tasks over HTTP, with one base in memory.",
    "place": "Place the tensors of a base and its tasks in the memories of a chip.",
    "export": "Write a delta for other programs: a PEFT adapter, a plain folder, a sparse weight patch.",
    "measure": "Measure what a training step of a model costs on this machine.",
    "bench": "Measure this machine: tokens per second, MFU, tokens per joule, granularity.",
    "plan": "Plan a fleet: which device trains which block, with which share of the bandwidth.",
    "simulate": "Replay rounds of a fleet whose links fade and whose devices come and go.",
    "cooperate": "Fine-tune one model on many devices; data stays on its device.",
    "cut": "Train on a device with the model in the cloud; data and labels stay on the device.",
    "doctor": "Check the installation, and report what is slow and why.",
    "demo": "Fetch a small real model and data, tune, and print one table.",
}


def module_of(verb: str) -> str:
    """Return the name of a verb's module."""
    return f"{verb}_" if keyword.iskeyword(verb) else verb.replace("-", "_")


class VerbGroup(click.Group):
    """A click group that imports a command when it is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the arguments; print help and version."""
        with _explain_output_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        with _explain_output_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module and return its command."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"taskedge.cli.{module_of(cmd_name)}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of an argument list; suggest a verb for an unknown one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"no such verb {args[0]!r}{did_you_mean(args[0], VERBS)} (verbs: {', '.join(VERBS)})")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


EPILOG = """\b
Examples:
  taskedge demo
  taskedge tune --model bert-base-uncased --train reviews.csv --text review --label sentiment
  taskedge info task.safetensors
\b
Exit codes: 0 done; 1 a fault in taskedge; 2 an input or option cannot be used;
3 the input is valid but has no solution; 130 interrupted.
"""


@click.group(cls=VerbGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="taskedge")
def cli() -> None:
    """Adapt large pretrained models where the data is.

    Selects a small share of a model's own weights for a task, trains only these in place, and stores the result
    in a file of about 100 kB, which is applied in milliseconds and reverted bit for bit.
    """


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code (docs/exit-codes.md)."""
    try:
        with _explain_output_errors():
            code = _run(args)
            if sys.stdout is not None:  # None: closed by the caller
                sys.stdout.flush()  # here, where an error still has an effect on the exit code
    except OutputClosed:
        _discard(sys.stdout)
        code = 0
    except OutputError as error:
        _discard(sys.stdout)
        with contextlib.suppress(OSError):
            click.echo(f"taskedge: {error}", err=True)
        code = error.exit_code
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # messages are on a full disk, too
        _discard(sys.stderr)
    return code


def _run(args: list[str] | None) -> int:
    try:
        result = cli.main(args=args, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except OutputError:
        raise
    except TaskEdgeError as error:
        click.echo(f"taskedge: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _interrupted()


@contextlib.contextmanager
def _explain_output_errors() -> Iterator[None]:
    """Turn errors of writing into OutputClosed and OutputError, before click ends the program with exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        name = "output" if error.filename is None else error.filename
        raise OutputError(f"{name} cannot be written ({error.strerror}): make room, or write elsewhere") from None


def _discard(stream: TextIO) -> None:
    """Send what is still in the stream's buffer to the null device, so that Python can flush it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):  # a stream that is no file, such as a test's
        os.dup2(null, stream.fileno())
    os.close(null)


def _interrupted() -> int:
    click.echo("taskedge: interrupted", err=True)
    return 130


if __name__ == "__main__":
    sys.exit(main())
