"""Rules and alerts by promtool's own tests, and against what the service really exports."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.app.test_metrics import a_used_object
from tests.docker.prometheus import CONFIG, ROOT, needs_prometheus

ALERTS = {rule["alert"]: rule for rule in yaml.safe_load((CONFIG / "alerts.yml").read_text())["groups"][0]["rules"]}
RECORDED = {rule["record"]: rule for rule in yaml.safe_load((CONFIG / "rules.yml").read_text())["groups"][0]["rules"]}
TESTS = sorted((CONFIG / "tests").glob("*.yml"))


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_the_configuration_is_accepted() -> None:
    promtool("check", "config", CONFIG / "prometheus.yml")


@needs_prometheus
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", path)


@needs_prometheus
def test_the_metrics_are_in_good_form() -> None:
    body, _ = a_used_object().render("")
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_each_alert_has_a_test_that_sees_it_fire_and_one_that_does_not() -> None:
    checks = [
        check
        for test in yaml.safe_load((CONFIG / "tests" / "alerts_test.yml").read_text())["tests"]
        for check in test["alert_rule_test"]
    ]
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == set(ALERTS)
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} >= set(ALERTS)


def test_each_recorded_series_has_a_test() -> None:
    text = (CONFIG / "tests" / "rules_test.yml").read_text()
    assert {name for name in RECORDED if f"({name}," in text} == set(RECORDED)


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_leads_to_what_to_do(name: str) -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "OPERATIONS.md").read_text(), re.MULTILINE)
    assert name in headings
    assert ALERTS[name]["annotations"]["runbook"] == f"OPERATIONS.md#{name.lower()}"
    assert ALERTS[name]["labels"]["severity"] in {"page", "ticket"}


def test_no_alert_is_described_that_is_none() -> None:
    text = (ROOT / "OPERATIONS.md").read_text()
    assert set(re.findall(r"^### (SegLens\w+)$", text, re.MULTILINE)) == set(ALERTS)


def test_the_panels_that_the_answers_name_are_on_the_dashboard() -> None:
    board = json.loads((ROOT / "docker/grafana/dashboards/seglens.json").read_text())
    answers = (ROOT / "OPERATIONS.md").read_text().partition("## Alerts\n")[2]
    paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", answers)  # a name may begin on one line and end on the next
    named = set(re.findall(r'"(\w[^"\n]+)"', paragraphs))
    assert len(named) > 8
    assert named - {panel["title"] for panel in board["panels"]} == set()


def metrics_in(text: str) -> set[str]:
    """Names of our metrics, and of the process's, in a text."""
    return set(re.findall(r"\b(?:seglens|process|python)_[a-z0-9_]+\b", text))


def exported() -> set[str]:
    """Names of all series that the service exports, once it has seen all there is to see."""
    body, _ = a_used_object().render("")
    return set(re.findall(r"^([a-z_0-9]+)[ {]", body.decode(), re.MULTILINE))


@pytest.mark.parametrize("name", ["docker/prometheus/rules.yml", "docker/prometheus/alerts.yml"])
def test_each_metric_in_the_rules_is_exported(name: str) -> None:
    assert metrics_in((ROOT / name).read_text()) - exported() == set()


def test_what_is_recorded_is_what_is_read() -> None:
    readers = ("docker/prometheus/alerts.yml", "docker/grafana/dashboards/seglens.json")
    read = {name for path in readers for name in re.findall(r"\bseglens:[a-z0-9_:]+", (ROOT / path).read_text())}
    assert read == set(RECORDED)
