"""Traces: the caller's trace id (W3C Trace Context), and a request's spans, written once it has been answered.

Spans are OpenTelemetry's, whose SDK the extra `otel` brings. It is not imported unless its variables ask for them.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from app import __version__
from app.timings import Timings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSHING_TIMEOUT = 2.0  # seconds that the last spans may take at the end
TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
# Timed like a module of the network, but not in its forward pass.
MODULES_ELSEWHERE = {"upsample_argmax": "postprocess"}


def trace_context(traceparents: Sequence[str], tracestates: Sequence[str]) -> dict[str, str]:
    """What a request says of the trace that it belongs to, by all its headers of these names; empty if not valid."""
    match = TRACEPARENT.fullmatch(traceparents[0]) if len(traceparents) == 1 else None
    if match is None or (match[1] == "00" and match[3]):  # later versions alone may have more
        return {}
    return {"traceparent": match[0], "tracestate": ",".join(tracestates)}


class Piece(NamedTuple):
    """A span to be: `began` by `time.perf_counter`; within another piece, or within the request."""

    name: str
    within: str | None
    began: float
    seconds: float


def lay_out(timings: Timings, started: float) -> Iterator[Piece]:
    """Stages, and modules within their stage, from a request's record.

    When a stage began is known if the host timed it. A device says how long its stages and modules took: each is put
    where the one before ended.

    Args:
        started: when the request came, by `time.perf_counter`
    """
    began, at = {}, started
    for name, seconds in list(timings.stages.items()):  # a codec thread whose caller left may still add one
        began[name] = timings.began.get(name, at)
        at = began[name] + seconds
        yield Piece(name, None, began[name], seconds)
    ends: dict[str, float] = {}
    for name, seconds in timings.modules.items():
        stage = MODULES_ELSEWHERE.get(name, "forward")
        at = ends.get(stage, began.get(stage, started))
        ends[stage] = at + seconds
        yield Piece(f"module.{name}", stage, at, seconds)


@dataclass(frozen=True)
class Answered:
    """A request at its end.

    Attributes:
        context: what `trace_context` gave
        started, ended: by `time.perf_counter`
    """

    method: str
    route: str
    status: int
    context: Mapping[str, str]
    started: float
    ended: float
    timings: Timings
    attributes: Mapping[str, str | int]

    @property
    def trace_id(self) -> str | None:
        """Of the caller's trace, if it has one."""
        return self.context["traceparent"].split("-")[1] if self.context else None


class Spans:
    """Writes spans; its processor brings them to where they are collected."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ours = Resource({"service.name": "seglens", "service.version": __version__})
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES have the last word.
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._api = trace
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("seglens", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def write(self, request: Answered) -> str:
        """The spans of a request, unless it is not sampled.

        Returns:
            its trace's id
        """
        epoch = time.time_ns() - time.perf_counter_ns()
        root = self._tracer.start_span(
            f"{request.method} {request.route}",
            self._propagator.extract(request.context),
            self._api.SpanKind.SERVER,
            _attributes(request),
            start_time=epoch + _nanoseconds(request.started),
        )
        if root.is_recording():
            if request.status >= 500:
                root.set_status(self._api.StatusCode.ERROR)
            parents: dict[str | None, Context] = {None: self._api.set_span_in_context(root)}
            for piece in lay_out(request.timings, request.started):
                began = epoch + _nanoseconds(piece.began)
                span = self._tracer.start_span(piece.name, parents[piece.within], start_time=began)
                if piece.within is None:
                    parents[piece.name] = self._api.set_span_in_context(span)
                span.end(began + _nanoseconds(piece.seconds))
            root.end(epoch + _nanoseconds(request.ended))
        return self._api.format_trace_id(root.get_span_context().trace_id)

    def close(self) -> None:
        """Send what has not been sent. A collector that does not answer in time holds up no shutdown."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSHING_TIMEOUT)


def are_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables name where spans go to, or the exporter, and none switches them off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    )
    return exporter == "otlp"


def open_spans(environment: Mapping[str, str]) -> Spans | None:
    """What writes spans, by OTLP over HTTP; None unless they are asked for and the extra is installed."""
    if not are_asked_for(environment):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as exc:
        log.warning("OTEL_* variables ask for spans, but %s is not installed: the extra `otel` has it", exc.name)
        return None
    try:
        return Spans(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as exc:
        log.warning("OTEL_* variables ask for spans, but none are written: %s", exc)
        return None


def _attributes(request: Answered) -> dict[str, str | int]:
    """By OpenTelemetry's conventions for HTTP, but for the path: ids in it open results."""
    method = request.method if request.method != "other" else "_OTHER"
    attributes: dict[str, str | int] = {"http.request.method": method, "http.response.status_code": request.status}
    if request.route != "unmatched":
        attributes["http.route"] = request.route
    if request.status >= 500:
        attributes["error.type"] = str(request.status)
    return attributes | {f"seglens.{name}": value for name, value in request.attributes.items()}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
