"""A server from its settings: loads the base and the tasks, and answers until a signal stops it."""

from __future__ import annotations

import ipaddress
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from taskedge.delta.file import load
from taskedge.errors import InputError, TaskEdgeError
from taskedge.serving.engine import Engine, EngineLimits
from taskedge.serving.http_guard import HttpLimits
from taskedge.serving.http_routes import http_app
from taskedge.serving.served_base import ServedBase
from taskedge.serving.serving_metrics import ServingMetrics
from taskedge.serving.task_files import SUFFIX, ServedTasks, remove_leftovers

MIN_TOKEN = 16
"""Shortest token in characters."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        model: folder or hub id of the base; empty for the one that the first delta names.
        tasks: (name, delta file); each must be servable.
        folder: further tasks; files in it may come, change and go.
        host, port: where to listen.
        token: required of clients; without one, only this machine can reach the server.
        dtype: of the base; empty for that of the first delta's training.
        weight_storage: one of ``taskedge.backbone.storage.WEIGHT_STORAGE``.
        engine, http: limits.
    """

    model: str = ""
    tasks: Sequence[tuple[str, Path]] = ()
    folder: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    dtype: str = ""
    weight_storage: str = "resident"
    engine: EngineLimits = field(default_factory=EngineLimits)
    http: HttpLimits = field(default_factory=HttpLimits)


class JsonLog:
    """Writes one JSON object a line: time, event, and the event's fields.

    Args:
        stream: to write to; a stream that fails loses lines and ends nothing.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._writing = threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one event."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z"
        line = json.dumps({"time": stamp, "event": event, **fields}, default=str)
        with self._writing:
            try:
                print(line, file=self._stream or sys.stderr, flush=True)
            except (OSError, ValueError):
                return


def check_address(host: str, token: str | None) -> None:
    """Check that a server that others can reach has a token.

    Raises:
        InputError: it has none, or a short one.
    """
    if token is not None and len(token) < MIN_TOKEN:
        raise InputError(f"the token has {len(token)} characters: use {MIN_TOKEN} or more random ones")
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token):
        raise InputError(
            "the token has blanks at its ends or characters that no header can hold: use letters and digits"
        )
    if token is None and not _is_loopback(host):
        raise InputError(
            f"{host} can be reached from other machines: require a token (--token-file), or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(settings: ServerSettings, log: JsonLog) -> tuple[Any, ServedTasks]:
    """Return the ASGI application with all tasks loaded, and its tasks.

    Raises:
        TaskEdgeError: the base or one of ``settings.tasks`` cannot be served, or the address needs a token. Files in
            the folder that cannot be served are logged and shown, and do not stop the server.
    """
    check_address(settings.host, settings.token)
    names = [name for name, _ in settings.tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two tasks are named {name!r}: name them with NAME=FILE")
    if settings.folder is not None and not settings.folder.is_dir():
        raise InputError(f"{settings.folder}: there is no such folder to watch: make it first")
    if settings.folder is not None and (leftovers := remove_leftovers(settings.folder)):
        log("leftovers of killed uploads removed", files=leftovers)
    model, dtype = _base_of(settings)
    base = ServedBase(
        model, dtype=dtype, weight_storage=settings.weight_storage, log=lambda line: log("base", note=line)
    )
    metrics = ServingMetrics()
    engine = Engine(settings.engine, metrics.on_batch)
    tasks = ServedTasks(base, engine, settings.folder, log)
    try:
        for name, path in settings.tasks:
            tasks.add(name, path)
        tasks.scan()
    except BaseException:
        engine.close()
        raise
    metrics.watch(engine, tasks)
    return http_app(tasks, engine, metrics, limits=settings.http, token=settings.token, log=log), tasks


def _base_of(settings: ServerSettings) -> tuple[str, str]:
    """Return the base's location and dtype: as given, else those of the first delta that can be read."""
    from taskedge.delta.load_with_delta import base_location, recorded_dtype

    paths = [path for _, path in settings.tasks]
    if settings.folder is not None:
        paths += sorted(settings.folder.glob(f"*{SUFFIX}"))
    error: TaskEdgeError | None = None
    for path in paths:
        try:
            delta = load(path)
            heads = [head.provenance for head in delta.heads.values()] or [delta.provenance]
            model = settings.model or base_location(path, delta.provenance)
        except TaskEdgeError as unreadable:
            error = error or unreadable
            continue
        if model:
            given = str(heads[0].training.get("dtype", "auto"))
            return model, settings.dtype or recorded_dtype(delta) or given
    if settings.model:
        return settings.model, settings.dtype or "auto"
    raise error or InputError("no delta names the base: give it with --model")


def serve(settings: ServerSettings, log: JsonLog) -> None:
    """Serve until a signal ends the process; running requests are answered first.

    Raises:
        TaskEdgeError: see :func:`make_app`; the address is in use.
    """
    import uvicorn

    app, tasks = make_app(settings, log)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.http.seconds) + 1,
        limit_concurrency=4096,
        h11_max_incomplete_event_size=65536,
        server_header=False,
    )
    try:
        listening = config.bind_socket()
    except SystemExit:  # how uvicorn ends on an error here
        raise InputError(
            f"{settings.host} port {settings.port} cannot be listened on: it is in use, or not this machine's; name "
            "another with --port"
        ) from None
    listening.listen(config.backlog)  # from here on clients wait instead of being refused
    port = listening.getsockname()[1]
    log("listening", address=f"http://{settings.host}:{port}", tasks=[task.name for task in tasks.all()])
    uvicorn.Server(config).run(sockets=[listening])
    log("stopped")
