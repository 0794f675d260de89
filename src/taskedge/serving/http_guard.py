"""The outer layer of the HTTP server: who may send, how much, how long; errors as JSON; one log line a request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taskedge.errors import InputError, TaskEdgeError
from taskedge.serving.engine import DeadlinePassed, Overloaded, Stopped
from taskedge.serving.serving_metrics import ServingMetrics
from taskedge.serving.task_files import UnknownTask

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OPEN_PATHS = ("/", "/healthz")
"""Paths that need no token: the page asks for it, and holds nothing else."""
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (Overloaded, 429), (Stopped, 503), (DeadlinePassed, 504), (UnknownTask, 404), (TaskEdgeError, 400),
)  # fmt: skip


class BodyTooLarge(InputError):
    """A request with more bytes than the server takes."""


class BodyTooSlow(InputError):
    """A request whose body does not come in time."""


@dataclass(frozen=True)
class HttpLimits:
    """Limits of requests.

    Attributes:
        body_bytes: of a request other than a task file.
        task_bytes: of a task file.
        inputs: rows of one request.
        seconds: until a request is given up. A task file may take longer, if no part of it does.
        held_bytes: of all bodies that are being read at once; a further request gets status 429.
    """

    body_bytes: int = 16 * 2**20
    task_bytes: int = 256 * 2**20
    inputs: int = 256
    seconds: float = 30.0
    held_bytes: int = 512 * 2**20


class HttpGuard:
    """An ASGI layer around the routes.

    Args:
        app: the routes.
        limits: of requests.
        token: required as ``Authorization: Bearer TOKEN``, except for the page and the health check; None: anybody may
            send, and ``Host`` and ``Origin`` must be names of this machine, so that no web page of another site can
            reach the server.
        metrics: counts requests.
        log: called with an event and its fields.
    """

    def __init__(
        self, app: Any, limits: HttpLimits, token: str | None, metrics: ServingMetrics, log: Callable[..., object]
    ) -> None:
        self._app, self._limits = app, limits
        self._token = None if token is None else _digest(f"Bearer {token}".encode())
        self._held = 0
        self._metrics, self._log = metrics, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0
        held = _Held(self)

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await answer_error(counted, *refusal)
            else:
                await self._app(scope, self._limited(scope, receive, held), counted)
        except Exception as error:
            code, kind = error_status(error)
            if code == 500:
                self._log("fault", path=scope["path"], error=f"{type(error).__name__}: {error}")
            if not status:
                message = str(error) if code != 500 else "a fault in the server; its log has the reason"
                await answer_error(counted, code, kind, message)
        finally:
            held.release()
            path = scope.get("taskedge.path", "other")
            seconds = time.monotonic() - started
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            self._log(
                "request", method=scope["method"], path=path, status=status, ms=round(1000 * seconds, 1),
                **scope.get("taskedge.log", {}),
            )  # fmt: skip

    def _refusal(self, scope: Any) -> tuple[int, str, str] | None:
        headers = dict(scope["headers"])
        if self._token is not None:
            given = headers.get(b"authorization", b"")
            # digests have one length, so the time tells nothing of the token, its length included
            if scope["path"] in _OPEN_PATHS or hmac.compare_digest(_digest(given), self._token):
                return None
            return 401, "unauthorized", "send the server's token: Authorization: Bearer TOKEN"
        host = headers.get(b"host", b"").decode("latin-1")
        if not _is_loopback_name(host):
            return 403, "forbidden", f"host {host[:100]!r}: this server answers as localhost only; see --token-file"
        origin = headers.get(b"origin")
        if origin is not None and not _is_loopback_name(origin.decode("latin-1").partition("://")[2]):
            return 403, "forbidden", "a page of another site sent this request: use the server's own page, or a token"
        return None

    def _limited(self, scope: Any, receive: Any, held: _Held) -> Any:
        """Return a ``receive`` that counts bytes and refuses too many, and bodies that do not come to an end."""
        most = self._limits.task_bytes if scope["method"] == "PUT" else self._limits.body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise BodyTooLarge(f"the body has {int(length):,} bytes, and at most {most:,} are taken")
        total, is_complete = 0, False
        deadline = time.monotonic() + self._limits.seconds

        async def counted() -> Any:
            nonlocal total, is_complete
            if is_complete:  # from here on only a disconnection can come
                return await receive()
            left = self._limits.seconds if scope["method"] == "PUT" else deadline - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except TimeoutError:
                raise BodyTooSlow(f"the body did not come within {self._limits.seconds:g} s: send it faster") from None
            is_complete = not message.get("more_body", False)
            held.add(len(message.get("body", b"")))
            total += len(message.get("body", b""))
            if total > most:
                raise BodyTooLarge(f"the body has over {total:,} bytes, and at most {most:,} are taken")
            return message

        return counted


class _Held:
    """Bytes of one body in memory.

    Args:
        guard: counts those of all requests.
    """

    def __init__(self, guard: HttpGuard) -> None:
        self._guard, self._bytes = guard, 0

    def add(self, count: int) -> None:
        """Count bytes; raise Overloaded if all requests hold too many."""
        if self._guard._held + count > self._guard._limits.held_bytes:
            raise Overloaded(
                f"the requests that run hold {self._guard._held:,} bytes, and at most "
                f"{self._guard._limits.held_bytes:,} may be held: send the request again later"
            )
        self._guard._held += count
        self._bytes += count

    def release(self) -> None:
        """Forget the bytes of this body."""
        self._guard._held -= self._bytes
        self._bytes = 0


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _is_loopback_name(host: str) -> bool:
    """Return whether a host, with or without a port, is a name of this machine."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower() in LOOPBACK_NAMES


def error_status(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the kind of an error."""
    if isinstance(error, BodyTooLarge):
        return 413, "too_large"
    if isinstance(error, BodyTooSlow):
        return 408, "too_slow"
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status, {429: "overloaded", 503: "stopping", 504: "timeout", 404: "not_found"}.get(status, "invalid")
    return 500, "fault"


def error_body(kind: str, message: str) -> dict[str, Any]:
    """Return the JSON of an error, in the shape of the OpenAI API."""
    return {"error": {"message": message, "type": kind, "code": kind, "param": None}}


async def answer_error(send: Any, status: int, kind: str, message: str) -> None:
    """Send an error as JSON."""
    content = json.dumps(error_body(kind, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
