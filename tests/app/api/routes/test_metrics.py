"""GET /metrics: what Prometheus reads after real requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from app.api.dependencies import Services

MODULES = {"stem", "layer1", "layer2", "layer3", "layer4", "reduction", "cca_1", "cca_2", "classifier"}
STAGES = {"read", "decode", "queue", "preprocess", "forward", "postprocess", "encode"}


async def labels_of(client: httpx.AsyncClient, sample: str) -> list[dict[str, str]]:
    families = parse_text((await client.get("/metrics")).text)
    return [found.labels for family in families for found in family.samples if found.name == sample]


@pytest.mark.parametrize(
    ("accept", "media_type", "parse"),
    [
        (None, "text/plain", parse_text),
        ("text/html", "text/plain", parse_text),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", parse_openmetrics),
    ],
)
async def test_formats(
    client: httpx.AsyncClient, posted: dict[str, Any], accept: str | None, media_type: str, parse: Callable[..., Any]
) -> None:
    reply = await client.get("/metrics", headers={"accept": accept} if accept else {})
    assert reply.headers["content-type"].startswith(f"{media_type}; version=")
    names = {family.name for family in parse(reply.text)}
    assert {"seglens_module_duration_seconds", "seglens_stage_duration_seconds", "seglens_results_bytes"} <= names
    assert "process_cpu_seconds" in {name.removesuffix("_total") for name in names}


async def test_routes_are_templates(client: httpx.AsyncClient, posted: dict[str, Any]) -> None:
    await client.get(f"/results/{posted['id']}")
    await client.get(f"/attention/{posted['id']}/info")
    await client.get("/models/some-name")
    await client.get("/no/such/path")
    await client.get("/segment")
    await client.get("/web/app.js")
    await client.get("/web/no/such/file")
    routes = {labels["route"] for labels in await labels_of(client, "seglens_http_requests_total")}
    assert {"/results/{result_id}", "/attention/{result_id}/info", "/models/{name}", "/segment", "unmatched"} <= routes
    assert {route for route in routes if "web" in route} == {"/web"}
    assert posted["id"] not in (await client.get("/metrics")).text


async def test_methods_are_bounded(client: httpx.AsyncClient) -> None:
    """A client makes up methods as it likes; each must not become a series."""
    for method in ("BREW", "WHEN", "PROPFIND"):
        await client.request(method, "/segment")
    methods = {labels["method"] for labels in await labels_of(client, "seglens_http_requests_total")}
    assert methods & {"BREW", "WHEN", "PROPFIND"} == set()


async def test_stages_and_modules_are_there_after_a_request(client: httpx.AsyncClient, posted: dict[str, Any]) -> None:
    modules = await labels_of(client, "seglens_module_duration_seconds_count")
    assert {labels["module"] for labels in modules} >= MODULES | {"upsample_argmax"}
    assert {(labels["model"], labels["device"]) for labels in modules} == {(posted["model"], "cpu")}
    stages = await labels_of(client, "seglens_stage_duration_seconds_count")
    assert {labels["stage"] for labels in stages} == STAGES


async def test_an_image_is_counted(client: httpx.AsyncClient, services: Services, street: bytes) -> None:
    def counted(name: str, **labels: str) -> float:
        all_labels = {"model": services.settings.default_model, **labels}
        return services.metrics.registry.get_sample_value(name, all_labels) or 0

    def counts() -> list[float]:
        return [
            counted("seglens_images_total", outcome="ok"),
            counted("seglens_stage_duration_seconds_count", stage="decode"),
            counted("seglens_module_duration_seconds_count", module="cca_2", device="cpu"),
        ]

    before = counts()
    await client.post("/segment", content=street)
    assert counts() == [count + 1 for count in before]


async def test_an_expired_image_is_counted(held: Any, street: bytes) -> None:
    _, client, services, _ = held
    reply = await client.post("/segment", content=street, headers={"x-request-timeout-seconds": "0.2"})
    assert reply.status_code == 504
    labels = {"model": services.settings.default_model, "outcome": "expired"}
    assert services.metrics.registry.get_sample_value("seglens_images_total", labels) == 1


async def test_gauges_are_up_to_date(client: httpx.AsyncClient, services: Services, posted: dict[str, Any]) -> None:
    await client.get("/metrics")
    value = services.metrics.registry.get_sample_value
    assert value("seglens_results_bytes") == services.results.nbytes > 0
    assert value("seglens_queue_depth", {"model": posted["model"]}) == 0
