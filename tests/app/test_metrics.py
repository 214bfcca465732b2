from __future__ import annotations

import math
import time
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from app.metrics import MODULE_SECONDS, RATIOS, SECONDS, Metrics
from app.timings import Timings

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"

# What dashboards and alerts are written against: name to type and labels.
CONTRACT = {
    "seglens_http_requests": ("counter", {"method", "route", "status"}),
    "seglens_http_request_duration_seconds": ("histogram", {"method", "route"}),
    "seglens_images": ("counter", {"model", "outcome"}),
    "seglens_stage_duration_seconds": ("histogram", {"model", "stage"}),
    "seglens_module_duration_seconds": ("histogram", {"model", "module", "device"}),
    "seglens_batch_size": ("histogram", {"model"}),
    "seglens_batches": ("counter", {"model", "reason"}),
    "seglens_queue_depth": ("gauge", {"model"}),
    "seglens_queue_predicted_wait_seconds": ("gauge", {"model"}),
    "seglens_rejected": ("counter", {"model", "reason"}),
    "seglens_oom": ("counter", {"model", "action"}),
    "seglens_wait_ratio": ("histogram", {"model"}),
    "seglens_retry_after_ratio": ("histogram", set()),
    "seglens_wasted_seconds": ("counter", {"model"}),
    "seglens_device_memory_bytes": ("gauge", {"device", "kind"}),
    "seglens_device_busy_seconds": ("counter", {"device"}),
    "seglens_last_progress_timestamp_seconds": ("gauge", {"device"}),
    "seglens_ready": ("gauge", set()),
    "seglens_results_bytes": ("gauge", set()),
    "seglens_results": ("counter", {"outcome"}),
    "seglens_model_info": ("gauge", {"model", "dataset", "classes", "device"}),
    "seglens_build_info": ("gauge", {"version", "python", "torch"}),
}


def a_used_object() -> Metrics:
    """Every event once."""
    metrics = Metrics()
    metrics.build("1.0", "2.13")
    metrics.model("m", "CamVid", 11, "cpu")
    metrics.http_request("POST", "/segment", 200, 0.1)
    metrics.image("m", "ok")
    metrics.rejected("m", "queue-full")
    metrics.stages("m", Timings({"read": 0.001, "forward": 0.2}))
    metrics.batch("m", "full", 8)
    metrics.device("cpu", 0.5)
    metrics.wasted("m", 0.25)
    metrics.wait_ratio("m", 1.5)
    metrics.wait_ratio("m", None)
    metrics.retry_after_ratio(0.75)
    metrics.modules("m", "cpu", {"stem": 0.01, "cca_1": 0.02})
    metrics.out_of_memory("m", "split")
    metrics.queue("m", 3, None)
    metrics.memory("cuda:0", {"allocated": 5})
    metrics.ready(True)
    metrics.results(7)
    metrics.result_request("hit")
    return metrics


def families(metrics: Metrics) -> dict[str, Any]:
    body, content_type = metrics.render("")
    assert content_type.startswith("text/plain")
    return {family.name: family for family in parse_text(body.decode())}


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"seglens_{sample}", labels)


def test_names_types_and_labels_are_the_contract() -> None:
    ours = {name: family for name, family in families(a_used_object()).items() if name.startswith("seglens_")}
    found = {
        name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for name, family in ours.items()
    }
    assert found == CONTRACT


def test_the_first_failures_already_make_a_rate() -> None:
    """Prometheus sees no increase in a series that is born with them."""
    metrics = Metrics()
    for status in ("200", "500", "503", "504", "507"):
        assert value(metrics, "http_requests_total", method="POST", route="/segment", status=status) == 0
    assert value(metrics, "http_request_duration_seconds_count", method="POST", route="/segment") == 0


def test_process_and_gc_come_along() -> None:
    names = families(a_used_object())
    assert {"process_resident_memory_bytes", "python_gc_objects_collected"} <= set(names)


def test_openmetrics_on_request() -> None:
    body, content_type = a_used_object().render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert set(CONTRACT) <= {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("version", ["x", "1.x", "1", "-1", "١"])
def test_a_version_that_is_none_gets_text(version: str) -> None:
    body, content_type = a_used_object().render(f"application/openmetrics-text; version={version}")
    assert content_type.startswith("text/plain")
    assert set(CONTRACT) <= {family.name for family in parse_text(body.decode())}


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_no_created_series(accept: str) -> None:
    assert b"_created" not in a_used_object().render(accept)[0]


def test_values_are_the_events() -> None:
    metrics = a_used_object()
    metrics.image("m", "ok")
    assert value(metrics, "images_total", model="m", outcome="ok") == 2
    assert value(metrics, "http_requests_total", method="POST", route="/segment", status="200") == 1
    assert value(metrics, "http_request_duration_seconds_sum", method="POST", route="/segment") == 0.1
    assert value(metrics, "stage_duration_seconds_sum", model="m", stage="forward") == 0.2
    assert value(metrics, "module_duration_seconds_sum", model="m", module="cca_1", device="cpu") == 0.02
    assert value(metrics, "batch_size_sum", model="m") == 8
    assert value(metrics, "batches_total", model="m", reason="full") == 1
    assert value(metrics, "rejected_total", model="m", reason="queue-full") == 1
    assert value(metrics, "oom_total", model="m", action="split") == 1
    assert value(metrics, "device_busy_seconds_total", device="cpu") == 0.5
    assert value(metrics, "wasted_seconds_total", model="m") == 0.25
    assert value(metrics, "wait_ratio_sum", model="m") == 1.5
    assert value(metrics, "wait_ratio_count", model="m") == 1, "without a prediction there is no ratio"
    assert value(metrics, "retry_after_ratio_sum") == 0.75
    assert value(metrics, "device_memory_bytes", device="cuda:0", kind="allocated") == 5
    assert value(metrics, "queue_depth", model="m") == 3
    assert value(metrics, "ready") == 1
    assert value(metrics, "results_bytes") == 7
    assert value(metrics, "results_total", outcome="hit") == 1
    progress = value(metrics, "last_progress_timestamp_seconds", device="cpu")
    assert progress is not None
    assert 0 <= time.time() - progress < 60


def test_an_unknown_wait_is_not_a_number() -> None:
    metrics = a_used_object()
    unknown = value(metrics, "queue_predicted_wait_seconds", model="m")
    assert unknown is not None
    assert math.isnan(unknown)
    metrics.queue("m", 0, 1.5)
    assert value(metrics, "queue_predicted_wait_seconds", model="m") == 1.5


def test_the_counters_of_a_model_start_at_zero() -> None:
    """A series that begins with its first event has no rate until the second."""
    metrics = Metrics()
    metrics.model("m", "CamVid", 11, "cpu")
    for outcome in ("ok", "rejected", "expired", "cancelled", "error"):
        assert value(metrics, "images_total", model="m", outcome=outcome) == 0
    for reason in ("queue-full", "deadline-unreachable"):
        assert value(metrics, "rejected_total", model="m", reason=reason) == 0
    for action in ("split", "failed"):
        assert value(metrics, "oom_total", model="m", action=action) == 0
    assert value(metrics, "wasted_seconds_total", model="m") == 0
    assert value(metrics, "device_busy_seconds_total", device="cpu") == 0


def test_a_device_that_has_loaded_has_made_progress() -> None:
    metrics = Metrics()
    metrics.model("m", "CamVid", 11, "cpu")
    progress = value(metrics, "last_progress_timestamp_seconds", device="cpu")
    assert progress is not None
    assert 0 <= time.time() - progress < 60


def test_ratios_are_told_apart_about_one() -> None:
    assert list(RATIOS) == sorted(set(RATIOS))
    assert RATIOS[0] < 1.0 < RATIOS[-1]
    assert 1.0 in RATIOS, "what came true is on neither side"


@pytest.mark.parametrize(("buckets", "first"), [(SECONDS, 0.001), (MODULE_SECONDS, 0.0001)])
def test_buckets_grow_from_the_least_to_a_minute(buckets: tuple[float, ...], first: float) -> None:
    assert (buckets[0], buckets[-1]) == (first, 60.0)
    assert list(buckets) == sorted(set(buckets))


def test_two_objects_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.image("m", "ok")
    assert value(second, "images_total", model="m", outcome="ok") is None
