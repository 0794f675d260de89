"""The outer layer of the HTTP server: who may send, how much, how long; errors as JSON; one log line a request."""

from __future__ import annotations

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
_OPEN_PATHS = ("/healthz",)
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (Overloaded, 429), (Stopped, 503), (DeadlinePassed, 504), (UnknownTask, 404), (TaskEdgeError, 400),
)  # fmt: skip


class BodyTooLarge(InputError):
    """A request with more bytes than the server takes."""


@dataclass(frozen=True)
class HttpLimits:
    """Limits of requests.

    Attributes:
        body_bytes: of a request other than a task file.
        task_bytes: of a task file.
        inputs: rows of one request.
        seconds: until a request is given up.
    """

    body_bytes: int = 16 * 2**20
    task_bytes: int = 256 * 2**20
    inputs: int = 256
    seconds: float = 30.0


class HttpGuard:
    """An ASGI layer around the routes.

    Args:
        app: the routes.
        limits: of requests.
        token: required as ``Authorization: Bearer TOKEN``, except for the health check; None: anybody may send, and the
            ``Host`` must be a name of this machine, so that no web page can reach the server under a name of its own.
        metrics: counts requests.
        log: called with an event and its fields.
    """

    def __init__(
        self, app: Any, limits: HttpLimits, token: str | None, metrics: ServingMetrics, log: Callable[..., object]
    ) -> None:
        self._app, self._limits, self._token = app, limits, token
        self._metrics, self._log = metrics, log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

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
                await self._app(scope, self._limited(scope, receive), counted)
        except Exception as error:
            code, kind = error_status(error)
            if code == 500:
                self._log("fault", path=scope["path"], error=f"{type(error).__name__}: {error}")
            if not status:
                message = str(error) if code != 500 else "a fault in the server; its log has the reason"
                await answer_error(counted, code, kind, message)
        finally:
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
            if scope["path"] in _OPEN_PATHS or hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return None
            return 401, "unauthorized", "send the server's token: Authorization: Bearer TOKEN"
        host = headers.get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in LOOPBACK_NAMES:
            return 403, "forbidden", f"host {host[:100]!r}: this server answers as localhost only; see --token-file"
        return None

    def _limited(self, scope: Any, receive: Any) -> Any:
        """Return a ``receive`` that counts bytes and refuses too many."""
        most = self._limits.task_bytes if scope["method"] == "PUT" else self._limits.body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise BodyTooLarge(f"the body has {int(length):,} bytes, and at most {most:,} are taken")
        total = 0

        async def counted() -> Any:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > most:
                raise BodyTooLarge(f"the body has over {total:,} bytes, and at most {most:,} are taken")
            return message

        return counted


def error_status(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the kind of an error."""
    if isinstance(error, BodyTooLarge):
        return 413, "too_large"
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
