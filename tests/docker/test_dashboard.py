"""The dashboard by Grafana's schema, and every query on it by a real Prometheus that scraped the service under load."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from tests.docker.prometheus import ROOT, Prometheus, needs_prometheus, prometheus
from tests.docker.test_prometheus import RECORDED, exported, metrics_in
from training.scenes import draw_street

GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "seglens.json"
BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(f"{panel['title']} {target['refId']}", target["expr"]) for panel in PANELS for target in panel["targets"]]
CLIENTS = 12
REFUSED_ENOUGH = 10


def test_it_fits_grafanas_schema() -> None:
    schema = ROOT / "tests" / "docker" / "dashboard.schema.json"
    command = [Path(sys.executable).parent / "check-jsonschema", "--schemafile", schema, DASHBOARD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_data_source_is_provisioned() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (variable,) = [one for one in BOARD["templating"]["list"] if one["type"] == "datasource"]
    assert (variable["query"], variable["current"]["value"]) == (source["type"], source["uid"])
    for panel in PANELS:
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": f"${{{variable['name']}}}"}, panel["title"]


def test_it_is_where_the_provisioning_looks_and_the_first_page() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/seglens.yml").read_text())["providers"]
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    folder = provider["options"]["path"]
    assert f"./docker/grafana/dashboards:{folder}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/{DASHBOARD.name}"


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells, panel["title"]
        cells |= own
    assert max(x for x, _ in cells) < 24


def test_every_panel_says_what_it_shows() -> None:
    assert [panel["title"] for panel in PANELS if not panel["description"]] == []


def test_a_figure_is_of_now() -> None:
    """By a range Grafana shows the last there was, of a server that has been gone or idle for half an hour too."""
    for panel in PANELS:
        if panel["type"] == "stat":
            (target,) = panel["targets"]
            assert (target["instant"], target["range"]) == (True, False), panel["title"]


def test_no_line_is_drawn_through_a_time_without_data() -> None:
    lines = [panel["fieldConfig"]["defaults"]["custom"] for panel in PANELS if panel["type"] == "timeseries"]
    assert lines
    assert not any(line["spanNulls"] for line in lines)


def test_each_metric_on_it_is_exported() -> None:
    assert metrics_in(DASHBOARD.read_text()) - exported() == set()


def test_each_metric_of_ours_is_on_it_or_in_an_alert() -> None:
    """None is collected that nobody looks at."""
    shown = "".join((ROOT / "docker" / name).read_text() for name in ("prometheus/rules.yml", "prometheus/alerts.yml"))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("seglens_")}
    assert {name for name in families if name not in DASHBOARD.read_text() + shown} == {"seglens_results_total"}


@pytest.fixture(scope="module")
def scraped(
    serving: Callable[..., AbstractContextManager[tuple[str, Path, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus that watched the service while it had more to do than it could."""
    with (
        serving(max_queue_size="3", max_passes="3", models="ccnet-mobilenetv2-camvid") as (url, _, _),
        prometheus(tmp_path_factory.mktemp("prometheus"), [url.removeprefix("http://")], SHORTER) as running,
    ):
        asyncio.run(_overload(url, running))
        yield running, url


SHORTER = {"[5m]": "[30s]", "[15m]": "[30s]", "[30m]": "[30s]", "[1h]": "[30s]", "[6h]": "[30s]", "for: 1m": "for: 1s"}


@needs_prometheus
@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_query_has_data(scraped: tuple[Prometheus, str], title: str, expression: str) -> None:
    for variable, value in {"$__rate_interval": "30s", "$__range": "1m", "$model": ".*", "$instance": ".*"}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    samples = scraped[0].query(expression.replace("[15m]", "[30s]"))
    assert any(sample["value"][1] != "NaN" for sample in samples), f"{title}: {samples}"


@needs_prometheus
def test_the_modules_of_the_network_are_told_apart(scraped: tuple[Prometheus, str]) -> None:
    modules = {sample["metric"]["module"] for sample in scraped[0].query("seglens:module_seconds:p95_5m")}
    assert {"stem", "layer4", "cca_1", "cca_2", "upsample_argmax"} <= modules


@needs_prometheus
def test_a_full_queue_raises_the_alert(scraped: tuple[Prometheus, str]) -> None:
    scraped[0].until(lambda: "SegLensSheds" in scraped[0].firing(), "SegLensSheds fires")


@needs_prometheus
def test_every_metric_that_is_read_was_scraped(scraped: tuple[Prometheus, str]) -> None:
    names = {sample["metric"]["__name__"] for sample in scraped[0].query('{job="seglens"}')}
    cuda_alone = {"seglens_device_memory_bytes"}
    for path in (DASHBOARD, ROOT / "docker/prometheus/rules.yml", ROOT / "docker/prometheus/alerts.yml"):
        assert metrics_in(path.read_text()) - names <= cuda_alone


async def _overload(url: str, running: Prometheus) -> None:
    """Clients that come back when they are told, until some were refused and their turn has come."""
    buffer = io.BytesIO()
    Image.fromarray(draw_street(1, 120, 90)[0]).save(buffer, "PNG")
    told = [
        "increase(seglens_retry_after_ratio_count[30s])",
        'increase(seglens_images_total{outcome="rejected"}[30s])',
        'increase(seglens_images_total{outcome="ok"}[30s])',
    ]

    async def client(number: int) -> None:
        attempt = 0
        while True:
            attempt += 1
            reply = await http.post(
                "/segment", content=buffer.getvalue(), headers={"X-Request-ID": f"{number}-{attempt}"}
            )
            await asyncio.sleep(min(1.0, float(reply.json().get("retry_after", 0))))

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
        await asyncio.to_thread(
            running.until, lambda: _has_seen_enough(running, told), "refused callers' turns, and all that is recorded"
        )
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def _has_seen_enough(running: Prometheus, told: list[str]) -> bool:
    # A recorded series is there one evaluation after the scrapes that it is made of.
    return all(_most(running, one) > REFUSED_ENOUGH for one in told) and all(map(running.query, RECORDED))


def _most(running: Prometheus, expression: str) -> float:
    return max((float(sample["value"][1]) for sample in running.query(expression)), default=0.0)
