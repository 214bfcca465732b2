"""What every request passes through: an id, a log line, the HTTP metrics, spans, and a last resort for errors.

Plain ASGI: Starlette's BaseHTTPMiddleware hides from an endpoint that its client has left.
"""

from __future__ import annotations

import logging
import random
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import METHODS, problem_response
from app.logs import fields
from app.metrics import Metrics
from app.timings import Timings
from app.traces import Answered, Spans, trace_context

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Asked every few seconds by machines, they would be most of all traces and say nothing.
UNTRACED = ("/livez", "/readyz", "/health", "/metrics")


class RequestMiddleware:
    def __init__(self, app: ASGIApp, metrics: Metrics, spans: Spans | None = None) -> None:
        """
        Args:
            spans: None if no spans are written
        """
        self.app = app
        self.metrics = metrics
        self.spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"]
        if method == "HEAD":  # FastAPI routes GET alone; the HTTP server leaves the body out (RFC 9110, section 9.3.2)
            scope = {**scope, "method": "GET"}
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        # The last resort: a bug in an endpoint is answered like any other error, without its traceback.
        except Exception as exc:
            log.exception("%s: unexpected error", request_id, extra=fields(request_id=request_id))
            if status:
                raise
            scope["state"]["noted"] = {**scope["state"].get("noted", {}), "error": "internal-error"}
            response = problem_response("internal-error", 500, "an unexpected error; the log has it", request_id)
            await response(scope, receive, send_with_id)
            exc.__traceback__ = None  # its frames hold what the request held, and what holds it in turn
        finally:
            self._note(scope, method, status, started)

    def _note(self, scope: Scope, method: str, status: int, started: float) -> None:
        ended = time.perf_counter()
        # A template, never the path itself: ids in labels would make a series a request. Of files, their folder.
        route: str = getattr(scope.get("route"), "path", None) or scope.get("root_path") or "unmatched"
        # So would a method, which a client makes up as it likes.
        method = method if method in METHODS else "other"
        self.metrics.http_request(method, route, status, ended - started)
        if self.spans is None and not log.isEnabledFor(logging.INFO):
            return
        headers, state = Headers(scope=scope), scope["state"]
        request_id = state["request_id"]
        timings: Timings = state.get("timings") or Timings()
        noted = {"request_id": request_id, **state.get("noted", {}), "batch_size": timings.batch_size or None}
        noted = {name: value for name, value in noted.items() if value is not None}
        context = trace_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
        trace = self._trace(Answered(method, route, status, context, started, ended, timings, noted))
        # The path is the client's own text, and its ids open results: neither belongs in a log.
        milliseconds = (ended - started) * 1000
        about = {"method": method, "route": route, "status": status, "duration_ms": round(milliseconds, 1)}
        about |= {"trace_id": trace} if trace else {}
        about |= {"timings_ms": timings.milliseconds()} if timings.stages else {}
        extra = fields(**noted, **about)
        log.info("%s %s %s %d %.1f ms", request_id, method, route, status, milliseconds, extra=extra)

    def _trace(self, request: Answered) -> str | None:
        """The request's spans, if any are written.

        Returns:
            the id of its trace, whoever began it
        """
        if self.spans is None or request.route in UNTRACED:
            return request.trace_id
        return self.spans.write(request)
