"""Serves the production version of one model over HTTP, and swaps to a new one without dropping a request."""

import io
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel

from pipelines.files import write_json
from pipelines.images import ImageError, decode_image
from pipelines.stage import StageError
from registry import evidence, state
from registry.state import Release

LARGEST_BODY = 64 * 2**20  # bytes
POLL_SECONDS = 0.2
BODIES = ("image/*", "application/octet-stream", "application/x-npy")


class Predictions(BaseModel):
    """The answer to one request, and which version gave it."""

    model: str
    version: str
    bundle: str
    predictions: list[dict[str, Any]]


class Health(BaseModel):
    """What serves. `failed` names bundles that could not be taken, with the reason."""

    status: str
    model: str
    version: str | None
    bundle: str | None
    failed: dict[str, str]


@dataclass
class Loaded:
    """A release in memory. The lock is there because not every runtime may be called by two threads at once."""

    release: Release
    model: evidence.Model
    lock: threading.Lock = field(default_factory=threading.Lock)


class Service:
    """Follows the state of a model on disk and answers with what it says."""

    def __init__(self, model: str, threads: int) -> None:
        self.model, self.threads = model, threads
        self.loaded: Loaded | None = None
        self.failed: dict[str, str] = {}
        self.registry = CollectorRegistry()
        self.requests = Counter("quantmill_requests", "Prediction requests", ["status"], registry=self.registry)
        self.seconds = Histogram("quantmill_predict_seconds", "Time of a prediction request", registry=self.registry)
        self.swaps = Counter("quantmill_swaps", "Versions taken since the start", registry=self.registry)
        self.serving = Gauge(
            "quantmill_serving", "1 for the version that serves", ["model", "version", "bundle"], registry=self.registry
        )
        self.stop = threading.Event()

    def follow(self) -> None:
        """Load what the state says now, if it is new; requests go on with the old version meanwhile."""
        found = state.read(self.model)
        release = found.current if found else None
        if release == (self.loaded.release if self.loaded else None):
            return
        if release is None:
            self._take(None)
        elif self.loaded and self.loaded.release.bundle == release.bundle:
            self._take(Loaded(release, self.loaded.model, self.loaded.lock))
        elif release.bundle not in self.failed:
            folder = state.bundle_folder(self.model, release.bundle)
            try:
                evidence.promotable(evidence.verify(folder, self.model))
                model = evidence.open_model(folder, self.threads)
                evidence.prove(folder, model)
            except StageError as error:
                self.failed[release.bundle] = str(error)
            else:
                self._take(Loaded(release, model))

    def _take(self, loaded: Loaded | None) -> None:
        self.loaded = loaded
        self.serving.clear()
        if loaded:
            self.failed.pop(loaded.release.bundle, None)
            self.swaps.inc()
            self.serving.labels(self.model, loaded.release.version, loaded.release.bundle).set(1)

    def watch(self) -> None:
        """Follow the state until the service stops."""
        while not self.stop.wait(POLL_SECONDS):
            try:
                self.follow()
            except (OSError, ValueError, KeyError, TypeError) as error:  # the state file cannot be read: keep serving
                self.failed["live.json"] = f"cannot be read: {error}"

    def predict(self, body: bytes, kind: str) -> Predictions:
        """Answer for the image, or the arrays N x H x W x C, in `body`. Raises HTTPException 415, 422 or 503."""
        loaded = self.loaded
        if loaded is None:
            raise HTTPException(503, f"no version of {self.model} is in production")
        try:
            images = list(_arrays(body)) if kind == "application/x-npy" else [decode_image(body)]
            with loaded.lock:
                found = loaded.model(images)
        except (ImageError, ValueError) as error:
            raise HTTPException(422, str(error)) from None
        release = loaded.release
        return Predictions(model=self.model, version=release.version, bundle=release.bundle, predictions=found)

    def health(self) -> Health:
        """Return what serves."""
        release = self.loaded.release if self.loaded else None
        return Health(
            status="serving" if release else "waiting",
            model=self.model,
            version=release.version if release else None,
            bundle=release.bundle if release else None,
            failed=self.failed,
        )


def create_app(model: str, url: str, threads: int = 1) -> FastAPI:
    """Return the application that serves `model`; `url` is where it can be asked for its health."""
    service = Service(model, threads)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.follow()
        watcher = threading.Thread(target=service.watch, daemon=True)
        watcher.start()
        note = state.folder(model) / "server.json"
        write_json(note, {"pid": os.getpid(), "url": url})
        yield
        service.stop.set()
        watcher.join()
        note.unlink(missing_ok=True)

    app = FastAPI(title=f"Quantmill: {model}", docs_url=None, redoc_url=None, lifespan=lifespan)
    body = {
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in BODIES},
        }
    }

    @app.post("/predict", openapi_extra=body)
    async def predict(request: Request) -> Predictions:
        """Predict one image (the bytes of an image file), or several of one size (.npy, N x H x W x C)."""
        start = time.perf_counter()
        status = "500"
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            answer = await run_in_threadpool(service.predict, await _body(request), kind)
            status = "200"
        except HTTPException as error:
            status = str(error.status_code)
            raise
        finally:
            service.requests.labels(status).inc()
            service.seconds.observe(time.perf_counter() - start)
        return answer

    @app.get("/health")
    async def health() -> Health:
        """Say what serves; 200 also while it waits for a first version."""
        return service.health()

    @app.get("/ready")
    async def ready() -> Health:
        """Say what serves, or 503 while nothing does."""
        if service.loaded is None:
            raise HTTPException(503, f"no version of {model} is in production")
        return service.health()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters in Prometheus text."""
        return str(generate_latest(service.registry).decode())

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return page(app.openapi())

    return app


def page(schema: dict[str, Any]) -> str:
    """Return the OpenAPI description as one HTML page that loads nothing from elsewhere."""
    rows = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(call.get('description', ''))}</p>"
        + "".join(
            f"<p>takes <code>{escape(kind)}</code></p>" for kind in call.get("requestBody", {}).get("content", {})
        )
        + "".join(
            f"<p>{escape(code)}: <code>{escape(', '.join(answer.get('content', {})))}</code></p>"
            for code, answer in call["responses"].items()
        )
        for path, calls in schema["paths"].items()
        for method, call in calls.items()
    ]
    title = escape(schema["info"]["title"])
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:16px system-ui;max-width:45rem;margin:2rem auto;padding:0 1rem}</style>"
        f"<h1>{title}</h1><p>Machine-readable: <a href=openapi.json>openapi.json</a></p>{''.join(rows)}"
    )


def run(model: str, host: str, port: int, threads: int) -> None:
    """Serve `model` until stopped."""
    import uvicorn

    state.folder(model).mkdir(parents=True, exist_ok=True)
    uvicorn.run(create_app(model, f"http://{host}:{port}", threads), host=host, port=port, log_level="warning")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"at most {LARGEST_BODY:,} bytes are taken")
    if not body:
        raise HTTPException(422, "the request has no body; send the bytes of an image")
    return bytes(body)


def _arrays(body: bytes) -> Any:
    images = np.load(io.BytesIO(body), allow_pickle=False)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"the array has shape {images.shape}; N x H x W x C is taken")
    return images
