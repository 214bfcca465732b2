"""The containers of docker-compose.yml, once they are up: `make e2e` brings them up and runs this."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import time
from collections.abc import Callable

import httpx
import pytest
from PIL import Image

from tests.docker.prometheus import ROOT, Prometheus
from training.scenes import draw_street

pytestmark = [
    pytest.mark.skipif(os.environ.get("STACK") != "single", reason="`make e2e` brings the containers up for it"),
    pytest.mark.timeout(200),
]
SERVICE, PROMETHEUS, GRAFANA = (
    f"http://127.0.0.1:{os.environ.get(name, '0')}" for name in ("API_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
)


def compose(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", "compose", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)  # other processes: there is nothing to wait on


@pytest.fixture(scope="module")
def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_street(1, 240, 180)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_segmented_and_its_attention_shown(picture: bytes) -> None:
    reply = httpx.post(f"{SERVICE}/segment?format=png", content=picture, timeout=60)
    assert reply.status_code == 200, reply.text
    mask = Image.open(io.BytesIO(reply.content))
    assert mask.size == (240, 180)
    assert len(mask.getcolors() or []) > 2, "a street has several classes"
    shown = httpx.get(f"{SERVICE}/attention/{reply.headers['x-result-id']}?x=120&y=90", timeout=60)
    assert Image.open(io.BytesIO(shown.content)).size == (240, 180)


def test_a_form_above_a_megabyte_passes_through_the_only_folder_that_can_be_written(picture: bytes) -> None:
    reply = httpx.post(f"{SERVICE}/segment", files={"image": picture + bytes(2 << 20)}, timeout=60)
    assert reply.status_code == 200, reply.text


def test_it_runs_without_rights_and_cannot_write_its_files() -> None:
    assert compose("exec", "-T", "api", "id", "-u").strip() == "10001"
    script = "import pathlib; pathlib.Path('/srv/app/x').touch()"
    done = subprocess.run(
        ["docker", "compose", "exec", "-T", "--user", "0", "api", "python", "-c", script],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Read-only file system" in done.stderr


def test_each_request_is_a_line_of_json(picture: bytes) -> None:
    name = "of-the-stack-test"
    httpx.post(f"{SERVICE}/segment", content=picture, headers={"X-Request-ID": name}, timeout=60)
    (container,) = compose("ps", "--quiet", "api").split()
    # By docker itself: compose puts a terminal's control codes before a line.
    logs = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True).stderr
    lines = [json.loads(line) for line in logs.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == name]
    assert (line["status"], line["route"]) == (200, "/segment")
    assert line["timings_ms"]["forward"] > 0


def test_prometheus_scrapes_it_by_its_name_and_has_its_rules() -> None:
    prometheus = Prometheus(PROMETHEUS)
    until(lambda: prometheus.query('up{job="seglens"} == 1'), "Prometheus scrapes the service")
    groups = httpx.get(f"{PROMETHEUS}/api/v1/rules", timeout=60).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 18
    until(lambda: prometheus.query('seglens_module_duration_seconds_count{module="cca_2"} > 0'), "a module's latency")


def test_every_query_of_the_dashboard_has_data_under_load(picture: bytes) -> None:
    asyncio.run(_load(picture))


async def _load(picture: bytes) -> None:
    """More than it can take, by clients that come back when told, until Grafana has something to show in each panel."""
    done = asyncio.Event()

    async def client(http: httpx.AsyncClient, number: int) -> None:
        headers = {"X-Request-ID": f"load-{number}", "X-Request-Timeout-Seconds": "0.5"}
        while not done.is_set():
            reply = await http.post("/segment", content=picture, headers=headers)
            await asyncio.sleep(min(1.0, float(reply.json().get("retry_after", 0))))

    async with httpx.AsyncClient(base_url=SERVICE, timeout=60) as http:
        clients = [asyncio.create_task(client(http, number)) for number in range(16)]
        try:
            await asyncio.to_thread(
                until, lambda: httpx.get(f"{GRAFANA}/api/health", timeout=30).status_code == 200, "all has data"
            )
        finally:
            done.set()
            await asyncio.gather(*clients)


def test_asked_to_stop_it_ends_in_order_and_the_alert_fires() -> None:
    started = time.monotonic()
    compose("stop", "api")
    assert time.monotonic() - started < 15, "an idle server has nothing to drain"
    (container,) = compose("ps", "--all", "--quiet", "api").split()
    state = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.ExitCode}}", container], capture_output=True, text=True, check=True
    )
    assert state.stdout.strip() == "0"
    prometheus = Prometheus(PROMETHEUS)
    until(lambda: "SegLensTargetMissing" in prometheus.firing(), "SegLensTargetMissing fires")
    compose("start", "api")
    until(lambda: "SegLensTargetMissing" not in prometheus.firing(), "it is over once the service is back")
