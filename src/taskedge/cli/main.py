"""``taskedge VERB``: finds the verb's module, imports it when it is called, and turns errors into exit codes.

A verb is one module beside this one with a click command named ``command``; its line in ``VERBS`` is its
registration, so that ``taskedge --help`` imports none of them. A verb that is a word of Python's has a module with an
underscore: ``import_``.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys

import click

from taskedge import __version__
from taskedge.errors import TaskEdgeError, did_you_mean

VERBS = {
    "tune": "Train a share of a model's own weights for a task.",
    "estimate": "Predict the memory and the time of a run of tune, and of ways to run it within less.",
    "eval": "Measure a delta on labelled data.",
    "predict": "Label new data with a delta.",
    "info": "Say what a delta holds and which base it needs.",
    "import": "Turn a PEFT LoRA adapter folder into a delta.",
    "merge": "Write a plain model folder with the delta's values in it.",
    "export": "Write a delta for others: a PEFT adapter, a plain folder, a sparse weight patch.",
    "measure": "Run a model a few seconds: what a training step costs on this machine.",
    "bench": "Measure this machine: tokens per second, MFU, tokens per joule, granularity.",
    "plan": "Plan a fleet: who trains which block, with which share of the bandwidth.",
    "simulate": "Replay rounds of a fleet whose links fade and whose devices come and go.",
    "cooperate": "Fine-tune one model on many devices, whose data stays where it is.",
    "doctor": "Check the installation, and say what is slow and why.",
    "demo": "Fetch a small real model and data, tune, and print one table.",
}


def module_of(verb: str) -> str:
    """The name of a verb's module."""
    return f"{verb}_" if keyword.iskeyword(verb) else verb


class VerbGroup(click.Group):
    """A click group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"taskedge.cli.{module_of(cmd_name)}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"no such verb {args[0]!r}{did_you_mean(args[0], VERBS)} (verbs: {', '.join(VERBS)})")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


EPILOG = """\b
Examples:
  taskedge demo
  taskedge tune --model bert-base-uncased --train reviews.csv --text review --label sentiment
  taskedge info task.safetensors
\b
Exit codes: 0 done; 1 a fault of taskedge itself; 2 something given cannot be used;
3 the input is sound but has no solution; 130 interrupted.
"""


@click.group(cls=VerbGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="taskedge")
def cli() -> None:
    """Adapt large pretrained models where the data is.

    Chooses a small share of a model's own weights for a task, trains only these in place, and keeps the result
    as a file of some 100 kB that is applied in milliseconds and reverted bit for bit.
    """


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code (docs/exit-codes.md)."""
    try:
        result = cli.main(args=arguments, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except TaskEdgeError as error:
        click.echo(f"taskedge: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:  # `taskedge info ... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _interrupted() -> int:
    click.echo("taskedge: interrupted", err=True)
    return 130


if __name__ == "__main__":
    sys.exit(main())
