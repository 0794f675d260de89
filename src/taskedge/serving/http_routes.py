"""The routes of the HTTP server: tasks, answers, OpenAI's chat API, health, metrics, a page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskedge.errors import InputError, TaskEdgeError
from taskedge.serving.engine import DeadlinePassed, Engine, Work
from taskedge.serving.http_guard import HttpGuard, HttpLimits, error_body, error_status
from taskedge.serving.request_bodies import (
    ChatBody,
    PredictBody,
    base64_images,
    chat_rows,
    image_rows,
    parse_json,
    text_rows,
)
from taskedge.serving.served_task import ServedTask
from taskedge.serving.serving_metrics import ServingMetrics
from taskedge.serving.task_files import ServedTasks
from taskedge.serving.web_page import PAGE, PAGE_HEADERS
from taskedge.training.data.text_data import Row
from taskedge.training.tasks.text_generation import TextGeneration
from taskedge.training.tasks.text_to_text import TextToText

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

GRACE_SECONDS = 1.0
"""How long a request waits after its deadline for the batch that is running."""


def http_app(
    tasks: ServedTasks,
    engine: Engine,
    metrics: ServingMetrics,
    *,
    limits: HttpLimits,
    token: str | None = None,
    log: Callable[..., object] = lambda *_, **__: None,
    watch_seconds: float = 1.0,
) -> Any:
    """Return the ASGI application.

    Args:
        tasks: the tasks; their folder is scanned while the application runs.
        engine: answers rows.
        metrics: counts.
        limits: of requests.
        token: see :class:`HttpGuard`.
        log: called with an event and its fields.
        watch_seconds: between two scans of the folder.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    routes = _Routes(tasks, engine, metrics, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        scanning = asyncio.create_task(_scan(tasks, watch_seconds))
        try:
            yield
        finally:
            scanning.cancel()
            await asyncio.to_thread(engine.close)

    def route(path: str, handler: Any, *methods: str) -> Route:
        async def named(request: Request) -> Response:
            request.scope["taskedge.path"] = path
            response: Response = await handler(request)
            return response

        return Route(path, named, methods=list(methods))

    app = Starlette(
        routes=[
            route("/", routes.page, "GET"),
            route("/healthz", routes.health, "GET"),
            route("/metrics", routes.metrics_text, "GET"),
            route("/v1/tasks", routes.list_tasks, "GET"),
            route("/v1/tasks/{name}", routes.one_task, "GET"),
            route("/v1/tasks/{name}", routes.put_task, "PUT"),
            route("/v1/tasks/{name}", routes.delete_task, "DELETE"),
            route("/v1/predict", routes.predict, "POST"),
            route("/v1/models", routes.list_models, "GET"),
            route("/v1/chat/completions", routes.chat, "POST"),
        ],
        lifespan=lifespan,
        exception_handlers={404: _no_such_path, 405: _wrong_method, TaskEdgeError: _failed, Exception: _failed},
    )
    return HttpGuard(app, limits, token, metrics, log)


async def _scan(tasks: ServedTasks, seconds: float) -> None:
    while True:
        await asyncio.to_thread(tasks.scan)
        await asyncio.sleep(seconds)


async def _failed(_request: Request, error: Exception) -> Response:
    status, kind = error_status(error)
    message = str(error) if status != 500 else "a fault in the server; its log has the reason"
    return _json(error_body(kind, message), status, {"retry-after": "1"} if status == 429 else None)


async def _no_such_path(request: Request, _error: Exception) -> Response:
    return _json(error_body("not_found", f"there is no path {request.url.path[:200]!r}"), 404)


async def _wrong_method(request: Request, _error: Exception) -> Response:
    return _json(error_body("wrong_method", f"{request.url.path[:200]!r} does not take {request.method}"), 405)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status, headers)


class _Routes:
    """One method for each route."""

    def __init__(self, tasks: ServedTasks, engine: Engine, metrics: ServingMetrics, limits: HttpLimits) -> None:
        self._tasks, self._engine, self._metrics, self._limits = tasks, engine, metrics, limits

    async def page(self, _request: Request) -> Response:
        from starlette.responses import HTMLResponse

        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    async def health(self, _request: Request) -> Response:
        alive = self._engine.is_alive
        return _json({"status": "ok" if alive else "the engine has ended"}, 200 if alive else 503)

    async def metrics_text(self, _request: Request) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST
        from starlette.responses import Response

        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def list_tasks(self, _request: Request) -> Response:
        return _json(self._tasks.describe())

    async def one_task(self, request: Request) -> Response:
        return _json(self._tasks.get(request.path_params["name"]).describe())

    async def put_task(self, request: Request) -> Response:
        name = request.path_params["name"]
        content = await request.body()
        served = await asyncio.to_thread(self._tasks.put, name, content)
        request.scope["taskedge.log"] = {"task": name, "bytes": len(content)}
        return _json({"tasks": [task.describe() for task in served], "stored": self._tasks.folder is not None})

    async def delete_task(self, request: Request) -> Response:
        removed = await asyncio.to_thread(self._tasks.remove, request.path_params["name"])
        return _json({"removed": removed})

    async def list_models(self, _request: Request) -> Response:
        names = [task.name for task in self._tasks.all() if isinstance(task.task, TextGeneration)]
        return _json({"object": "list", "data": [{"id": name, "object": "model", "created": 0} for name in names]})

    async def predict(self, request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            served, images, new_tokens = await self._form(request)
            texts: Sequence[str] = ()
        else:
            body: PredictBody = parse_json(await request.body(), PredictBody)
            served, texts, new_tokens = self._tasks.get(body.task), body.inputs, body.max_new_tokens or 0
            images = base64_images(texts) if served.task.max_length is None else {}
        count = len(images or texts)
        if count > self._limits.inputs:
            raise InputError(f"{count} inputs, and at most {self._limits.inputs} are taken: send them in parts")
        if new_tokens and not isinstance(served.task, TextGeneration | TextToText):
            raise InputError(f"max_new_tokens: task {served.name!r} is for {served.task.name} and generates no text")
        notes: list[str] = []
        if served.task.max_length is None:
            rows = await asyncio.to_thread(image_rows, served, images)
        else:
            rows, notes = await asyncio.to_thread(text_rows, served, list(texts))
        answers = await self._answers(request, self._works(served, rows, new_tokens))
        return _json({"task": served.name, "answers": answers, "notes": [*notes, *_shortened(served, new_tokens)]})

    async def _form(self, request: Request) -> tuple[ServedTask, dict[str, bytes], int]:
        """Return task and images of a multipart request."""
        from starlette.datastructures import UploadFile
        from starlette.exceptions import HTTPException

        most = self._limits.inputs
        try:
            async with request.form(max_files=most + 1, max_fields=4) as form:
                files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
                images = {f"file {n} ({file.filename})": await file.read() for n, file in enumerate(files, start=1)}
                served = self._tasks.get(str(form.get("task", "")))
        except HTTPException as error:
            raise InputError(f"the form cannot be read ({error.detail}): send fields 'task' and files") from None
        if served.task.max_length is not None:
            raise InputError(f"task {served.name!r} reads texts: send JSON, not files")
        if not images:
            raise InputError("the form has no file: send one or more images")
        return served, images, 0

    def _works(self, served: ServedTask, rows: Sequence[Row], new_tokens: int, **more: Any) -> list[Work]:
        deadline = time.monotonic() + self._limits.seconds
        return [Work(served, row, deadline, new_tokens, **more) for row in rows]

    async def _answers(self, request: Request, works: Sequence[Work]) -> list[dict[str, Any]]:
        """Queue rows and wait for their answers; give up when the client goes or the time is over."""
        request.scope["taskedge.log"] = {"task": works[0].task.name, "rows": len(works)}
        self._engine.submit(works)
        waiting = asyncio.gather(*(asyncio.wrap_future(work.answer) for work in works), return_exceptions=True)
        gone = asyncio.create_task(_disconnected(request))
        try:
            pending: set[asyncio.Future[Any]] = {waiting, gone}
            await asyncio.wait(
                pending, timeout=self._limits.seconds + GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not waiting.done():
                raise DeadlinePassed("the request was not answered in time: send fewer or shorter rows")
            answers = waiting.result()
        finally:
            gone.cancel()
            for work in works:
                work.cancelled.set()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, dict)]

    async def chat(self, request: Request) -> Response:
        body: ChatBody = parse_json(await request.body(), ChatBody)
        served = self._tasks.get(body.model)
        rows, notes = await asyncio.to_thread(chat_rows, served, body.messages)
        notes += _shortened(served, body.new_tokens)
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        if body.stream:
            return self._stream(request, served, rows, body, about, notes)
        (answer,) = await self._answers(request, self._works(served, rows, body.new_tokens))
        message = {"role": "assistant", "content": answer["response"]}
        choice = {"index": 0, "message": message, "finish_reason": answer["finish"]}
        return _json(
            about | {"object": "chat.completion", "choices": [choice], "usage": _usage(answer), "notes": notes}
        )

    def _stream(
        self, request: Request, served: ServedTask, rows: Sequence[Row], body: ChatBody, about: dict[str, Any],
        notes: list[str],
    ) -> Response:  # fmt: skip
        """Return a response that sends the text as server-sent events while it is generated."""
        from starlette.responses import StreamingResponse

        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def on_text(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(texts.put_nowait, text)

        (work,) = self._works(served, rows, body.new_tokens, on_text=on_text)
        self._engine.submit([work])
        request.scope["taskedge.log"] = {"task": served.name, "rows": 1, "stream": True}
        answer = asyncio.wrap_future(work.answer)
        answer.add_done_callback(lambda _: texts.put_nowait(None))
        lead = getattr(getattr(served.task, "template", None), "lead", "")

        def chunk(delta: dict[str, str], finish: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            value = about | {"object": "chat.completion.chunk", "choices": [choice]} | more
            return f"data: {json.dumps(value)}\n\n"

        async def events() -> AsyncIterator[str]:
            sent = ""
            try:
                yield chunk({"role": "assistant", "content": ""}, notes=notes)
                while (text := await texts.get()) is not None:
                    # a part of a character, or of what the template writes first, is not sent yet
                    if text.endswith("\ufffd") or len(text) <= len(lead) or not text.startswith(sent):
                        continue
                    if text != sent:
                        yield chunk({"content": text[len(sent) :]})
                        sent = text
                try:
                    done = answer.result()
                except Exception as error:
                    yield f"data: {json.dumps(error_body(error_status(error)[1], str(error)))}\n\n"
                    return
                if done["response"] != sent and done["response"].startswith(sent):
                    yield chunk({"content": done["response"][len(sent) :]})
                yield chunk({}, done["finish"])
                if (body.stream_options or {}).get("include_usage"):
                    yield f"data: {json.dumps(about | {'choices': [], 'usage': _usage(done)})}\n\n"
                yield "data: [DONE]\n\n"
            finally:
                work.cancelled.set()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _shortened(served: ServedTask, new_tokens: int) -> list[str]:
    limit = getattr(served.task, "new_tokens", 0)
    return [f"at most {limit} tokens are generated, as in training, not {new_tokens}"] if new_tokens > limit else []


def _usage(answer: dict[str, Any]) -> dict[str, int]:
    prompt, new = answer["prompt_tokens"], answer["tokens"]
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)
