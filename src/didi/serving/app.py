"""The HTTP application: routes, middleware and error handlers."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import didi
from didi.errors import DidiError, from_checkout
from didi.models.bundle import Bundle

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    from didi.serving import completions, generate
    from didi.serving.engine import Engine
    from didi.serving.metrics import Metrics
    from didi.serving.middleware import Guard, RequestLog
    from didi.serving.models import Models
    from didi.serving.problems import logged_problem, route_problem, validation_problem
    from didi.serving.scheduler import Scheduler
    from didi.serving.settings import ServerSettings
    from didi.serving.state import InjectedState, ServerState
except ImportError as error:
    raise DidiError(f"a server needs more packages: {from_checkout('serve')} ({error})") from error

STATIC = Path(__file__).parent / "static"
"""Files of the page at ``/``."""


def make_app(bundles: Mapping[str, Bundle], settings: ServerSettings | None = None) -> FastAPI:
    """The application that serves ``bundles``.

    Args:
        bundles: one or more bundles by name, on their devices; names have no colon.
        settings: limits and access.
    """
    settings = settings or ServerSettings()
    engine = Engine(Scheduler(settings.max_batch), settings.max_queue)
    state = ServerState(Models(bundles), settings, engine, Metrics(engine))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for model in state.models:
            model.check_weights()
        engine.start()
        try:
            yield
        finally:
            engine.stop()

    app = FastAPI(title="didi", version=didi.__version__, lifespan=lifespan, description=__doc__)
    app.state.server = state
    app.include_router(generate.router)
    app.include_router(completions.router)
    _add_probes(app)
    _add_error_handlers(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(RequestLog, metrics=state.metrics)
    if settings.cors_origins:
        allowed: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["authorization", "content-type"]}
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **allowed)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """The page at ``/``: one route per file, because a mount at ``/`` would also match all other paths and methods."""

    def route(file: Path) -> Callable[[], Coroutine[Any, Any, FileResponse]]:
        async def send() -> FileResponse:
            return FileResponse(file)

        return send

    for file in STATIC.iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_api_route(path, route(file), include_in_schema=False, response_class=FileResponse)


def _add_probes(app: FastAPI) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Status 200 while the process runs."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse)
    async def readyz(state: InjectedState) -> Response:
        """Status 200 if the server takes requests and all models can be sampled, otherwise 503."""
        damaged = [model.name for model in state.models if model.is_damaged]
        if damaged:
            return PlainTextResponse(f"weights or logits of {', '.join(damaged)} are not finite\n", 503)
        if not state.engine.is_running:
            return PlainTextResponse("the server is stopping\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(state: InjectedState) -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_error_handlers(app: FastAPI) -> None:
    async def on_invalid_body(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return validation_problem(error, request.url.path).response()

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code in (404, 405):  # raised by the router alone
            return route_problem(error, request.method, request.url.path).response()
        return logged_problem(error).response()

    handlers: dict[type[Exception], Callable[..., Any]] = {
        RequestValidationError: on_invalid_body,
        DidiError: on_error,
        HTTPException: on_error,
        Exception: on_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
