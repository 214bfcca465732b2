from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from app.settings import PREFIX, Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)


def test_defaults_suit_a_first_time_user() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 8000, "auto")
    assert settings.default_model == "ccnet-mobilenetv2-camvid"


def test_the_environment_sets_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGLENS_PORT", "9000")
    monkeypatch.setenv("SEGLENS_DEVICE", "cuda:1")
    monkeypatch.setenv("SEGLENS_REQUEST_TIMEOUT", "2.5")
    settings = load_settings()
    assert (settings.port, settings.device, settings.request_timeout) == (9000, "cuda:1", 2.5)


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "name",
    [
        "SEGLENS_PROT",
        "SEGLENS_",
        "SEGLENS_PORT_",
        pytest.param(
            "seglens_prot",
        ),
    ],
)
def test_an_unknown_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=rf"unknown setting {name}; there are .*SEGLENS_PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEGLENS_PORT", "65536"),
        ("SEGLENS_PORT", "http"),
        ("SEGLENS_LOG_LEVEL", "loud"),
        ("SEGLENS_DEVICE", "tpu"),
        ("SEGLENS_DEVICE", "cuda:x"),
        ("SEGLENS_HOST", ""),  # would be all addresses
        ("SEGLENS_MODEL_DIR", ""),  # would be the working directory
        ("SEGLENS_MODEL_DIR", "/no/such/folder"),
        ("SEGLENS_THREADS", "-1"),
        ("SEGLENS_THREADS", "1025"),
        ("SEGLENS_MAX_BATCH_SIZE", "-1"),
        ("SEGLENS_MAX_BODY_BYTES", ""),
        ("SEGLENS_REQUEST_TIMEOUT", "0"),
        ("SEGLENS_RESULT_TTL", "nan"),
        ("SEGLENS_STALL_TIMEOUT", "0"),
        pytest.param(
            "SEGLENS_DRAIN_TIMEOUT",
            "inf",
        ),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf'^{name}: (Input|Path|String) .*, not "{value}"$'):
        load_settings()


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGLENS_PORT", "-1")
    monkeypatch.setenv("SEGLENS_LOG_LEVEL", "loud")
    with pytest.raises(SettingsError, match=r"SEGLENS_PORT: .*; SEGLENS_LOG_LEVEL: "):
        load_settings()


def test_a_contradiction_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGLENS_MAX_QUEUE_SIZE", "7")
    monkeypatch.setenv("SEGLENS_MAX_BATCH_SIZE", "8")
    with pytest.raises(SettingsError, match=r"^SEGLENS_MAX_QUEUE_SIZE is 7, .*SEGLENS_MAX_BATCH_SIZE 8"):
        load_settings()
    monkeypatch.setenv("SEGLENS_MAX_BATCH_SIZE", "7")
    with pytest.raises(SettingsError, match=r"^SEGLENS_MAX_QUEUE_SIZE is 7, .*SEGLENS_MAX_PASSES 128"):
        load_settings()
    monkeypatch.setenv("SEGLENS_MAX_PASSES", "7")
    assert load_settings().max_queue_size == 7


def test_what_is_not_ours_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("MY_SEGLENS_PORT", "1")
    assert load_settings() == Settings()
