"""Receives MLflow's webhooks: verifies the signature and wakes the reconciler. A hint; a schedule must follow."""

import base64
import hashlib
import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request

SECRET = "QUANTMILL_WEBHOOK_SECRET"  # noqa: S105 - the name of an environment variable
NAME = "quantmill"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
FRESH_SECONDS = 300
LARGEST_BODY = 2**20  # bytes
REMEMBERED = 10_000  # deliveries


class Forged(ValueError):
    """A delivery that MLflow did not sign, or that came before."""


class Verifier:
    """Tells MLflow's deliveries from others: signed with the secret, fresh, and not seen before."""

    def __init__(self, secret: str) -> None:
        self.secret = secret.encode()
        self.seen: OrderedDict[str, None] = OrderedDict()
        self.lock = threading.Lock()

    def __call__(self, headers: Any, body: bytes, now: float) -> str:
        """Return the delivery's id. Raises Forged.

        The signature is `v1,` and the Base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY`, as MLflow documents.
        """
        delivery, stamp = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
        signed = f"{delivery}.{stamp}.".encode() + body
        wanted = b"v1," + base64.b64encode(hmac.new(self.secret, signed, hashlib.sha256).digest())
        if not hmac.compare_digest(wanted, headers.get("x-mlflow-signature", "").encode()):
            raise Forged("the signature does not hold")
        if not stamp.isdigit() or abs(now - int(stamp)) > FRESH_SECONDS:
            raise Forged("the delivery is too old")
        with self.lock:
            if delivery in self.seen:
                raise Forged("the delivery came before")
            self.seen[delivery] = None
            if len(self.seen) > REMEMBERED:
                self.seen.popitem(last=False)
        return str(delivery)


class Waker:
    """Runs `work` in one thread, again after each call that came while it ran; calls never wait for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.called = threading.Event()
        threading.Thread(target=self._loop, daemon=True).start()

    def __call__(self) -> None:
        """Ask for a run."""
        self.called.set()

    def _loop(self) -> None:
        while True:
            self.called.wait()
            self.called.clear()
            self.work()


def create_app(secret: str, work: Callable[[], None]) -> FastAPI:
    """Return the application that calls `work` after each true delivery to `/mlflow`."""
    verify, wake = Verifier(secret), Waker(work)
    app = FastAPI(title="Quantmill webhook", docs_url=None, redoc_url=None)

    @app.post("/mlflow", status_code=202)
    async def mlflow(request: Request) -> dict[str, str]:
        """Take a delivery of MLflow's."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                raise HTTPException(413, "the delivery is too large")
        try:
            delivery = verify(request.headers, bytes(body), time.time())
        except Forged as error:
            raise HTTPException(401, str(error)) from None
        wake()
        return {"delivery": delivery}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "waiting"}

    return app


def announce(client: Any, url: str, secret: str) -> None:
    """Tell MLflow to deliver to `url`; an earlier hook of this name is replaced."""
    for hook in client.list_webhooks():
        if hook.name == NAME:
            client.delete_webhook(hook.webhook_id)
    client.create_webhook(NAME, url, list(EVENTS), secret=secret)
