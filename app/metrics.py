"""Every metric of the service in one object, on a registry of its own; one method per event."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from functools import cache
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from app.timings import Timings

Ending = Literal["ok", "rejected", "expired", "cancelled", "error"]

# Seconds, from 1 ms to a minute, each about 1.6 times the one before; a small module takes less than 1 ms.
SECONDS = (
    *(0.001, 0.002, 0.004, 0.008, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25),
    *(0.4, 0.6, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0, 20.0, 40.0, 60.0),
)
MODULE_SECONDS = (0.0001, 0.0002, 0.0005, *SECONDS)
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)  # of an outcome to what was told before it


class Metrics:
    def __init__(self) -> None:
        # The `_created` series nearly double the output, and Prometheus has no use for them.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._http_requests = self._counter("http_requests", "HTTP requests answered.", "method", "route", "status")
        self._http_seconds = self._histogram(
            "http_request_duration_seconds", "From a request's arrival to its reply's end.", ("method", "route")
        )
        self._images = self._counter("images", "Images by what became of them.", "model", "outcome")
        self._stages = self._histogram(
            "stage_duration_seconds", "Stages of a request; those of its batch count once an image.", ("model", "stage")
        )
        self._modules = self._histogram(
            "module_duration_seconds",
            "Modules of the network, once a forward pass.",
            ("model", "module", "device"),
            MODULE_SECONDS,
        )
        self._batch_sizes = self._histogram("batch_size", "Images in a batch.", ("model",), BATCH_SIZES)
        self._batches = self._counter("batches", "Batches by why they were no larger.", "model", "reason")
        self._rejected = self._counter("rejected", "Images refused at the door.", "model", "reason")
        self._oom = self._counter("oom", "Passes out of memory by what was done about it.", "model", "action")
        self._depth = self._gauge(
            "queue_depth", "Images being decoded or waiting for the device; each pass counts.", "model"
        )
        self._wait = self._gauge(
            "queue_predicted_wait_seconds", "Predicted time until all that wait now are done; NaN if unknown.", "model"
        )
        self._wait_ratio = self._histogram(
            "wait_ratio", "Time that an answer took, divided by the time predicted at the door.", ("model",), RATIOS
        )
        self._retry_after_ratio = self._histogram(
            "retry_after_ratio",
            "Time until a refused caller would have been let in, divided by the time it was told.",
            (),
            RATIOS,
        )
        self._wasted = self._counter("wasted_seconds", "Device time spent on images whose callers had left.", "model")
        self._memory = self._gauge("device_memory_bytes", "Memory on the device.", "device", "kind")
        self._busy = self._counter("device_busy_seconds", "Time the device spent on batches.", "device")
        self._progress = self._gauge(
            "last_progress_timestamp_seconds", "Unix time when the device last finished a batch, or loading.", "device"
        )
        self._ready = self._gauge("ready", "1 while requests are taken, as /readyz says.")
        self._results_bytes = self._gauge("results_bytes", "Memory held by results that can be fetched.")
        self._results = self._counter("results", "Requests for results by outcome: hit or miss.", "outcome")
        self._models = self._gauge(
            "model_info", "1 for each model that is served.", "model", "dataset", "classes", "device"
        )
        self._build = self._gauge("build_info", "1, with the versions as labels.", "version", "python", "torch")
        # What alerts count starts at zero: a series that is born with its first failures hides them from a rate.
        for status in ("200", "500", "503", "504", "507"):
            self._http_requests.labels("POST", "/segment", status)
        self._http_seconds.labels("POST", "/segment")

    def http_request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._http_requests.labels(method, route, str(status)).inc()
        self._http_seconds.labels(method, route).observe(seconds)

    def image(self, model: str, outcome: Ending) -> None:
        self._images.labels(model, outcome).inc()

    def rejected(self, model: str, reason: str) -> None:
        self._rejected.labels(model, reason).inc()

    def stages(self, model: str, timings: Timings) -> None:
        for stage, seconds in timings.stages.items():
            self._stages.labels(model, stage).observe(seconds)

    def batch(self, model: str, reason: str, size: int) -> None:
        self._batch_sizes.labels(model).observe(size)
        self._batches.labels(model, reason).inc()

    def device(self, device: str, seconds: float) -> None:
        """A batch is done, which kept the whole device busy for so long."""
        self._busy.labels(device).inc(seconds)
        self._progress.labels(device).set(time.time())

    def wasted(self, model: str, seconds: float) -> None:
        self._wasted.labels(model).inc(seconds)

    def wait_ratio(self, model: str, ratio: float | None) -> None:
        if ratio is not None:
            self._wait_ratio.labels(model).observe(ratio)

    def retry_after_ratio(self, ratio: float) -> None:
        self._retry_after_ratio.observe(ratio)

    def modules(self, model: str, device: str, seconds: Mapping[str, float]) -> None:
        for module, duration in seconds.items():
            self._modules.labels(model, module, device).observe(duration)

    def out_of_memory(self, model: str, action: Literal["split", "failed"]) -> None:
        self._oom.labels(model, action).inc()

    def queue(self, model: str, depth: int, predicted_wait: float | None) -> None:
        self._depth.labels(model).set(depth)
        self._wait.labels(model).set(float("nan") if predicted_wait is None else predicted_wait)

    def memory(self, device: str, kinds: Mapping[str, int]) -> None:
        for kind, nbytes in kinds.items():
            self._memory.labels(device, kind).set(nbytes)

    def ready(self, ready: bool) -> None:
        self._ready.set(ready)

    def results(self, nbytes: int) -> None:
        self._results_bytes.set(nbytes)

    def result_request(self, outcome: Literal["hit", "miss"]) -> None:
        self._results.labels(outcome).inc()

    def model(self, name: str, dataset: str, classes: int, device: str) -> None:
        """A model is ready: its series start at zero, so that a first event already makes a rate."""
        self._models.remove_by_labels({"model": name})
        self._models.labels(name, dataset, str(classes), device).set(1)
        self._progress.labels(device).set(time.time())
        self._busy.labels(device)
        self._wasted.labels(name)
        for outcome in ("ok", "rejected", "expired", "cancelled", "error"):
            self._images.labels(name, outcome)
        for reason in ("queue-full", "deadline-unreachable"):
            self._rejected.labels(name, reason)
        for action in ("split", "failed"):
            self._oom.labels(name, action)

    def model_gone(self, name: str) -> None:
        """A model is served no more; what it has done stays counted."""
        self._models.remove_by_labels({"model": name})

    def build(self, version: str, torch: str) -> None:
        self._build.labels(version, platform.python_version(), torch).set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics if `Accept` asks for it, else Prometheus text."""
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # at a version in `Accept` that is none
            encoder, content_type = choose_encoder("")
        return encoder(self.registry), content_type

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"seglens_{name}", text, labels, registry=self.registry)
        _remember(counter)
        return counter

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"seglens_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        histogram = Histogram(f"seglens_{name}", text, labels, registry=self.registry, buckets=buckets)
        _remember(histogram)
        return histogram


def _remember(metric: Counter | Histogram) -> None:
    """Have a series found by its labels in one look. Else that takes longer than all else that is done with it."""
    metric.labels = cache(metric.labels)  # type: ignore[assignment]  # these are never removed
