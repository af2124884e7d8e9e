"""The HTTP side: OpenAI's two routes, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sdopt.service import failures, requests
from sdopt.service.door import Door, request_id
from sdopt.service.failures import ApiError
from sdopt.service.logs import log
from sdopt.service.queueing import Job, Made
from sdopt.service.service import Service
from sdopt.weights.sources import any_prompt, check_embedded_prompt

MOST_BODY_BYTES = 2**17
BODY_S = 10.0
"""How long a client may take to send a body."""
CLIENT_GONE = 499
JSON = "application/json"


def app_of(service: Service) -> Door:
    """The application of a service."""
    app = FastAPI(title="sdopt", docs_url=None, redoc_url=None)  # their pages load foreign scripts
    schema = {"application/json": {"schema": requests.ImagesRequest.model_json_schema()}}
    api = _Api(service)
    body = {"requestBody": {"required": True, "content": schema}}
    app.post("/v1/images/generations", openapi_extra=body)(api.generations)
    app.get("/v1/models")(api.models)
    app.get("/v1/models/{name:path}")(api.model)
    app.get("/healthz")(api.health)
    app.get("/healthz/live")(api.live)
    app.get("/healthz/ready")(api.health)
    app.get("/metrics")(api.metrics)
    app.exception_handler(ApiError)(_api_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(Exception)(_unexpected)
    return Door(app, service.settings.host)


class _Api:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.keys = [key.encode() for key in service.settings.api_keys]
        self.created = int(time.time())

    async def generations(self, request: Request) -> Response:
        """Generate images of a prompt."""
        begin = time.perf_counter()
        told: dict[str, Any] = {"id": request_id(request)}
        status, code = 500, "internal_error"
        try:
            self._check_key(request)
            made, jobs = await self._generated(request, told)
            status, code = 200, ""
            return Response(_body(jobs, made), media_type=JSON)
        except ApiError as error:
            status, code = error.status, error.code
            raise
        except ClientDisconnect:
            status, code = CLIENT_GONE, "client_gone"
            return Response(status_code=CLIENT_GONE)  # which nobody reads
        finally:
            self.service.metrics.requests.labels(str(status)).inc()
            if code:
                self.service.metrics.errors.labels(code).inc()
                told["code"] = code
            ms = round(1e3 * (time.perf_counter() - begin), 2)
            log("request", **told, status=status, ms=ms)

    async def _generated(
        self, request: Request, told: dict[str, Any]
    ) -> tuple[Sequence[Made], Sequence[Job]]:
        limits = self.service.limits
        if limits is None:
            raise failures.not_ready()
        body = await _read(request)
        wanted = requests.parsed(body)
        jobs = requests.jobs_of(wanted, limits, _check_of(limits.facts.embedded))
        kind = jobs[0].kind
        told.update(n=len(jobs), size=f"{kind.width}x{kind.height}", steps=kind.steps)
        try:
            self.service.submit(jobs)
            made = await _unless_gone(request, jobs)
        finally:
            self.service.withdraw(jobs)
        told.update(
            batches=[one.batch for one in made],
            device=made[0].device,
            queue_ms=round(1e3 * max(one.queue_s for one in made), 2),
            generate_ms=round(1e3 * max(one.generate_s for one in made), 2),
        )
        return made, jobs

    async def models(self, request: Request) -> dict[str, Any]:
        """The one level that is served."""
        self._check_key(request)
        return {"object": "list", "data": [self._model()]}

    async def model(self, request: Request, name: str) -> dict[str, Any]:
        """One model, if it is the one."""
        self._check_key(request)
        if name != self.service.settings.level:
            own = self.service.settings.level
            message = f"model {name[:60]!r} is not served here; this is {own!r}"
            raise ApiError(404, "model_not_found", message, param="model")
        return self._model()

    def _model(self) -> dict[str, Any]:
        level = self.service.settings.level
        return {"id": level, "object": "model", "created": self.created, "owned_by": "sdopt"}

    async def live(self) -> dict[str, bool]:
        """200 as long as the event loop runs."""
        return {"live": True}

    async def health(self) -> JSONResponse:
        """200 while a worker takes requests, else 503; and how each worker is."""
        service = self.service
        told = {
            "live": True,
            "ready": service.is_ready,
            "stopping": service.stopping,
            "queued": len(service.queue),
            "workers": [worker.told() for worker in service.workers],
        }
        return JSONResponse(told, status_code=200 if service.is_ready else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        for worker in self.service.workers:
            with suppress(psutil.Error):
                resident = psutil.Process(worker.pid).memory_info().rss if worker.pid else 0
                gauge = self.service.metrics.resident.labels(worker.name, worker.device)
                gauge.set(resident)
        return Response(self.service.metrics.text(), media_type="text/plain; version=0.0.4")

    def _check_key(self, request: Request) -> None:
        if not self.keys:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        # Every key is compared, in constant time: the time tells nothing about any.
        equal = [hmac.compare_digest(given, key) for key in self.keys]
        if not any(equal):
            raise ApiError(
                401, "invalid_api_key", "give a key of --api-key-file: Authorization: Bearer KEY"
            )


def _check_of(embedded: bool) -> Callable[[str], None]:
    return check_embedded_prompt if embedded else any_prompt


async def _read(request: Request) -> bytes:
    """The body. Raises ApiError for another type, for too large a one and for a slow client.

    A page of another site cannot send this type without asking first, which is not answered.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise ApiError(415, "unsupported_media_type", f"send the body as {JSON}")
    too_large = ApiError(413, "body_too_large", f"the body has more than {MOST_BODY_BYTES} bytes")
    announced = request.headers.get("content-length", "0")
    if len(announced) > 12 or (announced.isdecimal() and int(announced) > MOST_BODY_BYTES):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        message = f"the body did not come within {BODY_S:g} s"
        raise ApiError(408, "body_too_slow", message) from None
    return bytes(body)


async def _unless_gone(request: Request, jobs: Sequence[Job]) -> list[Made]:
    """The images; ClientDisconnect as soon as nobody waits for them any more."""
    images = asyncio.gather(*(job.future for job in jobs))
    images.add_done_callback(_retrieve)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((images, gone), return_when=asyncio.FIRST_COMPLETED)
        if not images.done():
            raise ClientDisconnect
        return images.result()
    finally:
        gone.cancel()
        images.cancel()


def _retrieve(images: asyncio.Future[Any]) -> None:
    """Else asyncio complains of an error that nobody is left to be told of."""
    if not images.cancelled():
        images.exception()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _body(jobs: Sequence[Job], made: Sequence[Made]) -> bytes:
    """OpenAI's response, joined from bytes: an encoder would look at each of a million again."""
    parts = [b'{"created":%d,"output_format":"png","data":[' % time.time()]
    for index, (job, one) in enumerate(zip(jobs, made, strict=True)):
        parts += [b"," if index else b"", b'{"b64_json":"', one.png_base64]
        parts += [b'","seed":%d,"batch":%d}' % (job.seed, one.batch)]
    return b"".join([*parts, b"]}"])


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(error.body, error.status, headers=dict(error.headers), media_type=JSON)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return await _api_error(request, ApiError(error.status_code, code, message))


async def _unexpected(request: Request, error: Exception) -> Response:
    """Its traceback is in the log, not in the answer."""
    return await _api_error(
        request, ApiError(500, "internal_error", "an error of the service; its log has more")
    )
