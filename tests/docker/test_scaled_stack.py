"""Two instances behind a proxy, by an image that sends spans, once they are up: `make e2e` runs this."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image

from tests.docker.prometheus import Prometheus
from tests.docker.test_stack import PROMETHEUS, SERVICE, compose, until
from training.scenes import draw_street

pytestmark = [
    pytest.mark.skipif(os.environ.get("STACK") != "scaled", reason="`make e2e` brings the containers up for it"),
    pytest.mark.timeout(200),
]
COLLECTOR = f"http://127.0.0.1:{os.environ.get('COLLECTOR_PORT', '0')}"
CALLERS = 3
ASK = """
import http.client, sys
for path in sys.argv[1:]:
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.request("GET", path)
    print(connection.getresponse().status)
"""
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_street(1, 240, 180)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def instances() -> list[str]:
    """Containers of the service that run."""
    return compose("ps", "--quiet", "--status", "running", "api").split()


def asked_itself(container: str, *paths: str) -> list[int]:
    """Statuses of an instance's own answers, past the proxy; none if it does not listen."""
    done = subprocess.run(
        ["docker", "exec", container, "python", "-c", ASK, *paths],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return [int(status) for status in done.stdout.split()]


def both_ready() -> bool:
    return [asked_itself(one, "/readyz") for one in instances()] == [[200], [200]]


def holders(results: list[str]) -> list[list[str]]:
    """Of each result, the instances that have it."""
    paths = [f"/results/{result}?format=png" for result in results]
    have = {one: asked_itself(one, *paths) for one in instances()}
    return [[one for one, statuses in have.items() if statuses[index] == 200] for index in range(len(results))]


def made_by_both(picture: bytes) -> dict[str, str]:
    """Results and the instance that has each, once the proxy gives both work: it sees an instance later than we do."""
    where: dict[str, str] = {}

    def spread() -> bool:
        made = [httpx.post(f"{SERVICE}/segment", content=picture, timeout=60).json()["id"] for _ in range(6)]
        where.update(zip(made, (found[0] for found in holders(made)), strict=True))
        return len(set(where.values())) == 2

    until(spread, "both instances are given work")
    return where


def refused() -> list[str]:
    """The proxy's lines of those that were told 503, and by whom: its servers, or none that it had."""
    return [line for line in compose("logs", "--no-log-prefix", "proxy").splitlines() if " POST 503 " in line]


@contextmanager
def load(picture: bytes) -> Iterator[Counter[str]]:
    """Callers that post one image after the other through the proxy; counts statuses, and what broke."""
    seen: Counter[str] = Counter()
    done = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=60) as http:
            while not done.is_set():
                try:
                    seen[str(http.post(f"{SERVICE}/segment?format=png", content=picture).status_code)] += 1
                except httpx.TransportError as exc:
                    seen[repr(exc)] += 1

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: seen["200"] >= 2 * CALLERS, "the callers are answered")
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_result_is_found_where_it_was_made(picture: bytes) -> None:
    assert len(instances()) == 2
    made = [httpx.post(f"{SERVICE}/segment", content=picture, timeout=60).json() for _ in range(6)]
    found = holders([body["id"] for body in made])
    assert [len(where) for where in found] == [1] * 6, "each result is in one instance"
    assert len({where[0] for where in found}) == 2, "both instances were given work"
    for body in made:
        for path in (body["links"]["mask"], f"{body['links']['attention']}?x=120&y=90"):
            assert httpx.get(f"{SERVICE}{path}", timeout=60).status_code == 200


def test_prometheus_finds_both_and_the_proxy_tells_nobody_their_metrics() -> None:
    prometheus = Prometheus(PROMETHEUS)
    until(lambda: len(prometheus.query('up{job="seglens"} == 1')) == 2, "Prometheus scrapes both")
    assert httpx.get(f"{SERVICE}/metrics", timeout=60).status_code == 404


def spans() -> dict[str, list[str]]:
    """Names of all spans that the collector was sent, by their trace."""
    found: dict[str, list[str]] = {}
    for body in httpx.get(COLLECTOR, timeout=60).json():
        request = ExportTraceServiceRequest.FromString(base64.b64decode(body))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found.setdefault(span.trace_id.hex(), []).append(span.name)
    return found


def test_spans_arrive_in_the_callers_trace(picture: bytes) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert httpx.post(f"{SERVICE}/segment", content=picture, headers=headers, timeout=60).status_code == 200
    until(lambda: TRACE in spans(), "the collector has the request's spans", 30)
    names = spans()[TRACE]
    assert names.count("POST /segment") == 1
    assert {"read", "decode", "queue", "forward", "encode", "module.cca_1", "module.cca_2"} <= set(names)
    assert not any(name.startswith("GET /readyz") for names in spans().values() for name in names)


def test_one_that_is_replaced_fails_nobody(picture: bytes) -> None:
    """By the commands of OPERATIONS: it answers what it has, and the proxy sends the rest elsewhere."""
    replaced, other = instances()
    with load(picture) as seen:
        subprocess.run(["docker", "stop", "--time", "45", replaced], capture_output=True, timeout=60, check=True)
        until(lambda before=seen["200"]: seen["200"] >= before + 10, "the other one goes on")  # type: ignore[misc]
        subprocess.run(["docker", "rm", replaced], capture_output=True, timeout=60, check=True)
        compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "api=2", "--wait", "api")
    assert set(seen) == {"200"}, (seen, refused()[-50:])
    assert other in instances()
    assert replaced not in instances()
    assert both_ready()


def test_one_that_is_killed_takes_its_own_alone(picture: bytes) -> None:
    where = made_by_both(picture)
    killed, left = sorted(set(where.values()))
    with load(picture) as seen:
        subprocess.run(["docker", "kill", killed], capture_output=True, timeout=60, check=True)
        before = seen["200"]
        until(lambda: seen["200"] >= before + 20, "the other one goes on", 30)
    failed = {status: count for status, count in seen.items() if status != "200"}
    assert sum(failed.values()) <= CALLERS, f"no more than what each caller had under way: {failed}"
    for result, holder in where.items():
        status = httpx.get(f"{SERVICE}/results/{result}?format=png", timeout=60).status_code
        assert status == (200 if holder == left else 404)
