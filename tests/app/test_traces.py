"""Spans by OpenTelemetry's own SDK, kept in memory or sent to a receiver of OTLP; and what is done without it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.api.middleware import UNTRACED
from app.timings import Timings
from app.traces import Answered, Spans, are_asked_for, lay_out, open_spans, trace_context
from tests.servers import SPEC, picture

Serving = Callable[..., AbstractContextManager[tuple[str, Path, "subprocess.Popen[bytes]"]]]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.mark.parametrize("given", [SAMPLED, UNSAMPLED, f"cc-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-more"])
def test_a_valid_traceparent_is_taken_up(given: str) -> None:
    assert trace_context([given], ["a=1", "b=2"]) == {"traceparent": given, "tracestate": "a=1,b=2"}


@pytest.mark.parametrize(
    "given",
    [
        [],
        [""],
        [SAMPLED, SAMPLED],
        [SAMPLED.upper()],
        [SAMPLED[:-1]],
        [f"{SAMPLED}-more"],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"cc-{TRACE}-{PARENT}-01more"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE}-{PARENT}-01\n"],
    ],
)
def test_any_other_is_none(given: list[str]) -> None:
    assert trace_context(given, []) == {}


def a_record() -> Timings:
    """A request that came at 100 s; decoded twice as late as its body was read, and encoded after a pause."""
    return Timings(
        {
            "read": 0.5,
            "decode": 0.25,
            "queue": 1.0,
            "preprocess": 0.1,
            "forward": 2.0,
            "postprocess": 0.5,
            "encode": 0.2,
        },
        {"stem": 0.75, "cca_1": 1.0, "upsample_argmax": 0.4},
        batch_size=3,
        began={"read": 100.0, "decode": 101.0, "encode": 105.0},
    )


def test_each_piece_is_where_it_was_or_after_the_one_before() -> None:
    pieces = {piece.name: (piece.within, round(piece.began, 6), piece.seconds) for piece in lay_out(a_record(), 99.5)}
    assert pieces == {
        "read": (None, 100.0, 0.5),
        "decode": (None, 101.0, 0.25),
        "queue": (None, 101.25, 1.0),
        "preprocess": (None, 102.25, 0.1),
        "forward": (None, 102.35, 2.0),
        "postprocess": (None, 104.35, 0.5),
        "encode": (None, 105.0, 0.2),
        "module.stem": ("forward", 102.35, 0.75),
        "module.cca_1": ("forward", 103.1, 1.0),
        "module.upsample_argmax": ("postprocess", 104.35, 0.4),
    }


def test_a_request_without_stages_has_no_pieces() -> None:
    assert list(lay_out(Timings(), 1.0)) == []


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(kept: InMemorySpanExporter) -> Spans:
    return Spans(SimpleSpanProcessor(kept))


def answered(status: int = 200, traceparent: str | None = None, **changes: Any) -> Answered:
    context = {} if traceparent is None else trace_context([traceparent], ["vendor=x"])
    given = {"method": "POST", "route": "/segment", "timings": a_record(), "attributes": {"model": "m"}, **changes}
    return Answered(status=status, context=context, started=99.5, ended=105.5, **given)


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def named(kept: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in kept.get_finished_spans()}


def test_spans_are_nested_and_as_long_as_the_record_says(spans: Spans, kept: InMemorySpanExporter) -> None:
    trace = spans.write(answered())
    found = named(kept)
    root = found.pop("POST /segment")
    assert root.parent is None
    assert root.kind is SpanKind.SERVER
    assert seconds(root) == pytest.approx(6.0)
    record = a_record()
    expected = record.stages | {f"module.{name}": value for name, value in record.modules.items()}
    assert {name: seconds(span) for name, span in found.items()} == pytest.approx(expected)
    for name, span in found.items():
        within = root
        if name.startswith("module."):
            within = found["postprocess" if name == "module.upsample_argmax" else "forward"]
        assert span.parent is not None
        assert span.parent.span_id == within.context.span_id
        assert f"{span.context.trace_id:032x}" == trace


def test_spans_are_by_the_clock_of_the_day(spans: Spans, kept: InMemorySpanExporter) -> None:
    now, moment = time.time_ns(), time.perf_counter()
    request = answered()
    spans.write(Answered(**{**vars(request), "started": moment - 2.0, "ended": moment, "timings": Timings()}))
    (root,) = kept.get_finished_spans()
    assert root.end_time == pytest.approx(now, abs=1e9)
    assert seconds(root) == pytest.approx(2.0)


def test_the_callers_trace_goes_on(spans: Spans, kept: InMemorySpanExporter) -> None:
    assert spans.write(answered(traceparent=SAMPLED)) == TRACE
    root = named(kept)["POST /segment"]
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.context.trace_state.get("vendor") == "x"
    assert len(kept.get_finished_spans()) == 11


def test_what_the_caller_does_not_sample_is_not_written(spans: Spans, kept: InMemorySpanExporter) -> None:
    assert spans.write(answered(traceparent=UNSAMPLED)) == TRACE
    assert kept.get_finished_spans() == ()


def test_attributes_are_the_conventions(spans: Spans, kept: InMemorySpanExporter) -> None:
    spans.write(answered(timings=Timings()))
    (span,) = kept.get_finished_spans()
    assert span.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/segment",
        "seglens.model": "m",
    }
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(("status", "is_error"), [(429, False), (499, False), (500, True), (504, True)])
def test_only_the_servers_own_faults_are_errors(
    spans: Spans, kept: InMemorySpanExporter, status: int, is_error: bool
) -> None:
    spans.write(answered(status, timings=Timings(), method="other", route="unmatched"))
    (span,) = kept.get_finished_spans()
    assert span.attributes is not None
    assert (span.status.status_code is StatusCode.ERROR) == is_error
    assert span.attributes.get("error.type") == (str(status) if is_error else None)
    assert span.attributes["http.request.method"] == "_OTHER"
    assert "http.route" not in span.attributes


def test_a_service_can_be_given_another_name(
    monkeypatch: pytest.MonkeyPatch, kept: InMemorySpanExporter, spans: Spans
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "masks")
    for one in (spans, Spans(SimpleSpanProcessor(kept))):
        one.write(answered(timings=Timings()))
    usual, renamed = (span.resource.attributes for span in kept.get_finished_spans())
    assert usual["service.name"] == "seglens"
    assert (renamed["service.name"], renamed["deployment.environment.name"]) == ("masks", "test")


WHERE = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({WHERE: ""}, False),
        ({WHERE: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", WHERE: "http://collector:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, False),
        ({"OTEL_SDK_DISABLED": "True", WHERE: "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "false", WHERE: "http://collector:4318"}, True),
    ],
)
def test_opentelemetrys_own_variables_decide(environment: dict[str, str], asked: bool) -> None:
    assert are_asked_for(environment) == asked


UNASKED = """
import sys
from app.main import create_app
from app.settings import Settings
assert create_app(Settings()).state.spans is None
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""


def test_unasked_for_the_sdk_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", UNASKED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_without_the_extra_it_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert open_spans({WHERE: "http://collector:4318"}) is None
    assert "the extra `otel` has it" in caplog.text


def test_a_variable_that_the_sdk_refuses_stops_no_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    assert open_spans({WHERE: "http://collector:4318"}) is None
    assert "max_queue_size" in caplog.text


@dataclass
class Receiver:
    """What speaks OTLP over HTTP, and keeps what it is sent."""

    url: str = ""
    received: list[ExportTraceServiceRequest] = field(default_factory=list)

    def spans(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for request in self.received:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.name, []).append(span)
        return found


@contextmanager
def receiver(until: threading.Event | None = None) -> Iterator[Receiver]:
    """A receiver, which keeps its answers to itself until an event comes."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            receiver.received.append(ExportTraceServiceRequest.FromString(body))
            if until is not None:
                until.wait(30)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_real_server_sends_its_spans_by_its_end(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as collector:
        monkeypatch.setenv(WHERE, collector.url)
        with serving(log_format="json", models=SPEC.name) as (url, log, _):
            reply = httpx.post(f"{url}/segment", content=picture(9), headers={"traceparent": SAMPLED}, timeout=60)
            httpx.post(f"{url}/segment", content=b"no picture", headers={"traceparent": SAMPLED}, timeout=60)
            httpx.get(
                f"{url}{reply.json()['links']['attention']}?x=1&y=1", headers={"traceparent": SAMPLED}, timeout=60
            )
            for path in UNTRACED:
                httpx.get(f"{url}{path}", follow_redirects=True, timeout=60)
        assert f'"trace_id": "{TRACE}"' in log.read_text()
    found = collector.spans()
    assert {span.trace_id.hex() for spans in found.values() for span in spans} == {TRACE}
    good, bad = sorted(found["POST /segment"], key=lambda span: span.start_time_unix_nano)
    assert good.parent_span_id.hex() == PARENT
    names = {span.name for spans in found.values() for span in spans if span.parent_span_id == good.span_id}
    assert names == {"read", "decode", "queue", "preprocess", "forward", "postprocess", "encode"}
    (forward,) = found["forward"]
    within = {span.name for spans in found.values() for span in spans if span.parent_span_id == forward.span_id}
    assert {"module.stem", "module.cca_1", "module.cca_2", "module.classifier"} <= within
    assert {span.name for spans in found.values() for span in spans if span.parent_span_id == bad.span_id} == {
        "read",
        "decode",
    }
    for spans in found.values():
        for span in spans:
            if span.parent_span_id == good.span_id:
                assert good.start_time_unix_nano <= span.start_time_unix_nano
                assert span.end_time_unix_nano <= good.end_time_unix_nano
    assert len(found["GET /attention/{result_id}"]) == 1
    assert not [name for name in found if any(path in name for path in UNTRACED)]


def test_a_collector_that_does_not_answer_holds_up_no_end(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    with receiver(until=opened) as collector:
        monkeypatch.setenv(WHERE, collector.url)
        with serving(models=SPEC.name) as (url, _, process):
            assert httpx.post(f"{url}/segment", content=picture(9), timeout=60).status_code == 200
            process.terminate()
            assert process.wait(20) == 0, "by itself the exporter would go on trying for longer"
        opened.set()
    assert collector.received
