"""``taskedge serve``: many tasks over one base, over HTTP."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import click

from taskedge.backbone.storage import WEIGHT_STORAGE
from taskedge.cli.named_deltas import NamedDelta, NamedPath
from taskedge.errors import InputError

EPILOG = """\b
Examples:
  taskedge serve --task sentiment=a.safetensors --task spam=b.safetensors
  taskedge serve --model ./bert-base --watch tasks/ --port 9000
  taskedge serve --watch tasks/ --host 0.0.0.0 --token-file token.txt
  curl -d '{"task": "spam", "inputs": ["..."]}' localhost:8080/v1/predict
"""
TOKEN_VARIABLE = "TASKEDGE_TOKEN"


@click.command(epilog=EPILOG)
@click.option("--task", "tasks", multiple=True, type=NamedDelta(), help="A task: its name in requests, and its delta.")
@click.option(
    "--watch",
    type=click.Path(path_type=Path),
    help="Folder of tasks: files NAME.safetensors may come, change and go. Uploaded tasks are stored here.",
)
@click.option(
    "--model",
    default="",
    help="Base model: a folder, a hub id or a GGUF file.  [default: the one the first delta names]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 for a free one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help=f"File with the token that clients must send; or set {TOKEN_VARIABLE}. Addresses other than this machine's "
    "need one.",
)
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), help="Of the base.  [default: as in training]")
@click.option("--weight-storage", default="resident", show_default=True, type=click.Choice(WEIGHT_STORAGE),
              help="How base weights are stored.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Threads of the model.  [default: all cores]")
@click.option("--max-batch", default=64, show_default=True, type=click.IntRange(1), help="Rows of a batch.")
@click.option("--max-batch-tokens", default=8192, show_default=True, type=click.IntRange(1), help="Tokens of a batch.")
@click.option("--max-waiting", default=1024, show_default=True, type=click.IntRange(1),
              help="Rows in the queue; a request beyond gets status 429.")  # fmt: skip
@click.option("--max-inputs", default=256, show_default=True, type=click.IntRange(1), help="Inputs of a request.")
@click.option("--max-body-mb", default=16, show_default=True, type=click.IntRange(1), help="Size of a request.")
@click.option("--max-task-mb", default=256, show_default=True, type=click.IntRange(1), help="Size of an uploaded task.")
@click.option("--timeout", default=30.0, show_default=True, type=click.FloatRange(0.1), help="Seconds of a request.")
def command(
    tasks: tuple[NamedPath, ...], watch: Path | None, model: str, host: str, port: int, token_file: Path | None,
    dtype: str | None, weight_storage: str, threads: int | None, max_batch: int, max_batch_tokens: int,
    max_waiting: int, max_inputs: int, max_body_mb: int, max_task_mb: int, timeout: float,
) -> None:  # fmt: skip
    """Answer requests for many tasks over HTTP, with one base in memory.

    Requests of different tasks share a batch. The log is JSON lines on standard error.
    """
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client", "multipart") if not _is_there(name)]
    if missing:
        raise InputError(f"{', '.join(missing)} not installed: pip install 'taskedge[serve]'")
    if not tasks and watch is None:
        raise InputError("there is no task to serve: give --task NAME=FILE, or a folder with --watch")
    import torch

    from taskedge.serving.engine import EngineLimits
    from taskedge.serving.http_guard import HttpLimits
    from taskedge.serving.run_server import JsonLog, ServerSettings, check_address, serve

    token = _token(token_file)
    check_address(host, token)
    if threads:
        torch.set_num_threads(threads)
    settings = ServerSettings(
        model=model, tasks=tasks, folder=watch, host=host, port=port, token=token, dtype=dtype or "",
        weight_storage=weight_storage, engine=EngineLimits(max_batch, max_batch_tokens, max_waiting),
        http=HttpLimits(max_body_mb * 2**20, max_task_mb * 2**20, max_inputs, timeout),
    )  # fmt: skip
    serve(settings, JsonLog())


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False


def _token(path: Path | None) -> str | None:
    """Return the token from the file or the environment; None if neither names one."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the token cannot be read ({error})") from None
    if not token:
        raise InputError(f"{path}: the file is empty: write a token into it")
    return token
