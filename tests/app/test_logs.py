from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from app.logs import JsonFormatter, fields

SCRIPT = """
import logging, sys
from app.logs import configure, fields
configure("info", sys.argv[1])
logging.getLogger("a.b").info("%s is done", "it", extra=fields(model="m", seconds=1.5))
logging.getLogger("a.b").debug("too much")
"""


def line(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter().format(record)
    assert "\n" not in text
    read: dict[str, Any] = json.loads(text)
    return read


def written(form: str) -> str:
    """What a process of its own writes, whose root logger nobody else has set up."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, check=True, timeout=30
    ).stderr


def test_json_has_its_fields() -> None:
    read = json.loads(written("json"))
    moment = datetime.fromisoformat(read.pop("time"))
    assert moment.tzinfo is not None
    assert read == {"level": "info", "logger": "a.b", "message": "it is done", "model": "m", "seconds": 1.5}


def test_text_is_for_people() -> None:
    assert written("text").strip().endswith(" INFO a.b it is done")


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, "it broke", (), sys.exc_info())
    read = line(record)
    assert (read["level"], read["message"]) == ("error", "it broke")
    assert "ValueError: first\nsecond" in read["exception"]


@pytest.mark.parametrize("text", ["two\nlines", 'a "quote"', "ünï"])
def test_no_text_breaks_the_line(text: str) -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, text, (), None)
    record.__dict__.update(fields(other=object()))
    read = line(record)
    assert read["message"] == text
    assert read["other"].startswith("<object")
