"""Dockerfile and compose file by their linters and schema, and for what both must agree on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from annotated_types import Le

from app.server import SENDING_TIMEOUT
from app.settings import Settings
from app.traces import FLUSHING_TIMEOUT
from tests.docker.prometheus import CONFIG, ROOT, free_port

BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES = COMPOSE["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["docker-compose.yml", "tests/docker/compose.yml"])
def test_compose_files_fit_the_schema(name: str) -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", name)


def test_hadolint_has_nothing_to_say() -> None:
    assert run(BIN / "hadolint", "Dockerfile") == ""


def test_shell_scripts_parse() -> None:
    for script in [*(ROOT / "tests" / "docker").rglob("*.sh"), ROOT / ".ci" / "run"]:
        run("bash", "-n", script)


def test_the_dockerfile_needs_no_frontend_of_its_own() -> None:
    """A `# syntax=` line is fetched from a registry, even when all else is there."""
    assert "syntax=" not in DOCKERFILE


def test_the_image_is_safe_to_run() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK ", final, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", final, re.MULTILINE)


@each_service
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}, "by itself a log grows for ever"


def test_all_threads_that_torch_may_be_told_to_take_are_allowed() -> None:
    """A pass alone and one beside others each begin as many; OpenMP ends the process if it gets fewer."""
    (most,) = [limit.le for limit in Settings.model_fields["threads"].metadata if isinstance(limit, Le)]
    assert SERVICES["api"]["pids_limit"] > 2 * most + 100


def test_a_signal_is_heard_while_the_service_starts() -> None:
    """By another first process: as such Python would be deaf to SIGTERM until the server has been made."""
    assert SERVICES["api"]["init"] is True


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_the_service_itself(status: int, healthy: bool) -> None:
    """Past the proxy that Docker's settings put into each container."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    (check,) = re.findall(r"^HEALTHCHECK .*\n +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    command = json.loads(check)
    nobody = f"http://127.0.0.1:{free_port()}"
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        command[-1] = command[-1].replace("8000", str(server.server_port))
        environment = {**os.environ, "http_proxy": nobody, "HTTP_PROXY": nobody, "no_proxy": "", "NO_PROXY": ""}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False)
        server.shutdown()
    assert (done.returncode == 0) is healthy


@each_service
def test_ports_are_on_loopback_unless_told_otherwise(name: str) -> None:
    assert all(re.match(r"127\.0\.0\.1:|\$\{API_BIND:-127\.0\.0\.1\}:", port) for port in SERVICES[name]["ports"])


def test_each_starts_once_the_one_before_is_healthy() -> None:
    assert SERVICES["prometheus"]["depends_on"] == {"api": {"condition": "service_healthy"}}
    assert SERVICES["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
    assert "healthcheck" in SERVICES["prometheus"]


def test_the_grace_fits_the_drain() -> None:
    grace = int(SERVICES["api"]["stop_grace_period"].removesuffix("s"))
    drain = int(re.fullmatch(r".*:-(\d+)\}", SERVICES["api"]["environment"]["SEGLENS_DRAIN_TIMEOUT"])[1])  # type: ignore[index]
    assert drain == Settings().drain_timeout
    assert grace > drain + SENDING_TIMEOUT + FLUSHING_TIMEOUT


def test_the_gpu_is_reserved_in_its_profile() -> None:
    service = SERVICES["api-gpu"]
    assert service["profiles"] == ["gpu"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "PIP_EXTRA_INDEX_URL" not in service["build"]["args"], "it would bring the CPU's torch"


def test_triton_can_compile_and_run_what_it_compiled() -> None:
    """It needs a C compiler, and a folder that can be written, of whose files some are libraries."""
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"apt-get install .* gcc libc6-dev", final)
    folder = re.search(r"\bTRITON_CACHE_DIR=(\S+)", final)
    assert folder is not None
    (mounted,) = SERVICES["api-gpu"]["tmpfs"]
    place, _, options = mounted.partition(":")
    assert Path(folder[1]).parent == Path(place)
    assert "exec" in options.split(",")


def test_the_services_settings_exist() -> None:
    known = {f"SEGLENS_{name.upper()}" for name in Settings.model_fields}
    in_image = set(re.findall(r"\b(SEGLENS_\w+)=", DOCKERFILE))
    assert in_image
    for name in ("api", "api-gpu"):
        standard = {"OTEL_EXPORTER_OTLP_ENDPOINT"}
        assert {*SERVICES[name]["environment"], *in_image} <= known | standard


def test_what_is_mounted_is_there() -> None:
    for service in SERVICES.values():
        for source in (volume.split(":")[0] for volume in service["volumes"]):
            if source.startswith("./"):
                assert (ROOT / source).is_dir()
            else:
                assert source in COMPOSE["volumes"] or source.startswith("${MODEL_DIR")


def test_prometheus_asks_the_services_by_their_name_and_port() -> None:
    (job,) = yaml.safe_load((CONFIG / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["api"]
    assert all(port.endswith(f":{found['port']}") for port in SERVICES["api"]["ports"])
    assert f"EXPOSE {found['port']}\n" in DOCKERFILE


def test_the_build_gets_what_it_copies_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE))
    assert lines[0] == "*"
    assert sent - {"**/__pycache__"} == copied


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0,
    reason="docker compose is not installed",
)
def test_compose_itself_accepts_it() -> None:
    services = json.loads(run("docker", "compose", "--profile", "gpu", "config", "--format", "json"))["services"]
    assert set(services) == set(SERVICES)
