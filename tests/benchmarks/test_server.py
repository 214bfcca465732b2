"""The server that benchmarks ask, as a process."""

from __future__ import annotations

import socket

import pytest

from benchmarks.server import serving


def test_another_server_is_not_taken_for_ours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="in use"), serving(port):
            pass


def test_a_server_that_ends_is_not_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SystemExit, match="the server ended before it was ready"), serving(port, MODELS="unet"):
        pass
    assert "unet" in capfd.readouterr().err
