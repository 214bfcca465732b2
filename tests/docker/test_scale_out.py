"""Several instances behind docker/haproxy: who made a result is asked for it."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx
import pytest
import yaml

from app.settings import Settings
from tests.docker.prometheus import ROOT, free_port, until
from tests.servers import picture

CONFIG = ROOT / "docker" / "haproxy" / "haproxy.cfg"
BASE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OVERRIDE = (ROOT / "docker" / "scale-out.yml").read_text()

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed (on Debian: apt-get install haproxy)"
)


@contextmanager
def proxy(folder: Path, hosts: list[str]) -> Iterator[str]:
    """HAProxy by our configuration, but for where instances are, and a header that tells which one has answered."""
    port = free_port()
    known = "\n".join(f"    server s{number} {host} check inter 1s fall 60 rise 1" for number, host in enumerate(hosts))
    text, count = re.subn(r"^    server-template .*$", known, CONFIG.read_text(), flags=re.MULTILINE)
    assert count == 1
    text = text.replace("bind :8000", f"bind 127.0.0.1:{port}") + "    http-response set-header X-Served-By %s\n"
    (folder / "haproxy.cfg").write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(f"{url}/readyz"), (folder / "log").read_text())
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def scaled(serving: Callable[..., AbstractContextManager[tuple[str, Path, Any]]], log: Path) -> Iterator[str]:
    """Two instances, each with room for two images to wait, behind one address."""
    with ExitStack() as stack:
        served = {"max_queue_size": "2", "max_passes": "1", "default_model": MODEL, "models": f"{MODEL},{OTHER}"}
        urls = [stack.enter_context(serving(**served))[0] for _ in "ab"]
        hosts = [url.removeprefix("http://") for url in urls]
        yield stack.enter_context(proxy(log.parent, hosts))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the proxy writes."""
    return tmp_path_factory.mktemp("proxy") / "log"


MODEL, OTHER = "ccnet-mobilenetv2-camvid", "nonlocal-mobilenetv2-camvid"


def assert_found(scaled: str, links: dict[str, str], instance: str) -> None:
    for path in (links["mask"], links["overlay"], f"{links['attention']}?x=1&y=1", f"{links['attention']}/info"):
        found = httpx.get(f"{scaled}{path}", timeout=60)
        assert (found.status_code, found.headers["x-served-by"]) == (200, instance)


def test_a_result_is_found_where_it_was_made(scaled: str) -> None:
    made = [httpx.post(f"{scaled}/segment", content=picture(value), timeout=60) for value in range(4)]
    assert {reply.headers["x-served-by"] for reply in made} == {"s0", "s1"}
    for reply in made:
        assert_found(scaled, reply.json()["links"], reply.headers["x-served-by"])


def test_all_results_of_a_comparison_are_found(scaled: str) -> None:
    query = {"model": f"{MODEL},{OTHER}"}
    made = [httpx.post(f"{scaled}/segment", params=query, content=picture(value), timeout=60) for value in range(4)]
    assert {reply.headers["x-served-by"] for reply in made} == {"s0", "s1"}
    for reply in made:
        results = reply.json()["results"]
        assert [result["model"] for result in results] == [MODEL, OTHER]
        for result in results:
            assert_found(scaled, result["links"], reply.headers["x-served-by"])


async def test_who_was_refused_comes_back_to_its_place_in_line(scaled: str) -> None:
    async with httpx.AsyncClient(base_url=scaled, timeout=60) as http:

        async def client(number: int) -> tuple[str, str] | None:
            """Which instance refused it, and which it came back to."""
            headers = {"X-Request-ID": f"client-{number}"}
            first = await http.post("/segment", content=picture(number), headers=headers)
            if first.status_code == 200:
                return None
            assert first.status_code == 429, first.text
            again = await http.post("/segment", content=picture(number), headers=headers)
            return first.headers["x-served-by"], again.headers["x-served-by"]

        refused = [seen for seen in await asyncio.gather(*map(client, range(16))) if seen is not None]
    assert len(refused) >= 4
    assert [came for came in refused if came[0] != came[1]] == []


@pytest.mark.parametrize("path", ["/metrics", "/%6Detrics", "/%6d%65trics", "/metrics/", "/metrics?a=b"])
def test_metrics_stay_inside(scaled: str, path: str) -> None:
    with pytest.raises(HTTPError, match="404"):  # by urllib, which sends a path as it is written
        urlopen(scaled + path, timeout=60)


def test_commands_for_several_instances_name_the_file_that_frees_the_port() -> None:
    """With docker-compose.yml alone the second one asks for the port that the proxy has."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "OPERATIONS.md").read_text(), re.MULTILINE | re.DOTALL)
    scaled = [block for block in blocks if "--scale api=2" in block]
    assert len(scaled) == 2
    assert all("docker/scale-out.yml" in block for block in scaled)


def test_its_log_tells_who_sent_what_and_no_id_that_opens_a_result(scaled: str, log: Path) -> None:
    sent = httpx.post(f"{scaled}/segment", content=picture(1), headers={"X-Request-ID": "seen-in-the-log"}, timeout=60)
    result = sent.headers["x-result-id"]
    assert httpx.get(f"{scaled}/results/{result}", timeout=60).status_code == 200
    until(lambda: "seen-in-the-log" in log.read_text(), "the request is in the log")
    (line,) = [line for line in log.read_text().splitlines() if "seen-in-the-log" in line]
    assert re.search(r"127\.0\.0\.1 POST 200 \d+ ms \d+ bytes, s[01], seen-in-the-log$", line)
    assert result not in log.read_text()


def test_the_proxy_is_as_confined_as_the_rest_and_has_the_port_to_itself(tmp_path: Path) -> None:
    plain = OVERRIDE.replace("!reset ", "")  # Compose's own tag, which its schema does not know
    (tmp_path / "scale-out.yml").write_text(plain)
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*command, tmp_path / "scale-out.yml"], check=True, timeout=60)
    services = yaml.safe_load(plain)["services"]
    assert services["api"]["ports"] == []
    notice = float(services["api"]["environment"]["SEGLENS_DRAIN_NOTICE"])
    assert notice >= 3, "the proxy asks each second, and believes the second no"
    grace = [int(one["stop_grace_period"].removesuffix("s")) for one in (services["api"], BASE["api"])]
    assert grace[0] >= grace[1] + notice
    proxy = services["proxy"]
    assert proxy["ports"] == BASE["api"]["ports"]
    assert proxy["stop_signal"] == "SIGUSR1", "at another it leaves those whom it serves without an answer"
    assert int(proxy["stop_grace_period"].removesuffix("s")) > Settings().request_timeout
    for name in ("read_only", "cap_drop", "security_opt", "restart", "pids_limit", "logging"):
        assert proxy[name] == BASE["prometheus"][name]
