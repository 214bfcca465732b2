"""What the client is told to do, and how: as JSON from process to process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Self

BOUNDARY = "benchmark-boundary"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Plan:
    """How to drive a server; where to and with what is filled in once it runs.

    Attributes:
        url: that every request goes to
        bodies: files, sent in turn
        expected: the file that the reply to each body should equal
        headers: of every request
        form_field: name of the form file that the body is sent as; empty to send it raw
        clients: of a closed loop, each sending as soon as it is answered; 0 for an open one
        rate: of an open loop, requests a second
        warmup, seconds: how long both go on, only the second part being measured
        patience: seconds until a client hangs up
        records: file to write what each request met to
        comes_back: whether a refused client returns when it was told, until it is taken
    """

    url: str = ""
    bodies: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    form_field: str = ""
    clients: int = 0
    rate: float = 0.0
    warmup: float = 1.0
    seconds: float = 10.0
    patience: float = 120.0
    comes_back: bool = False
    records: str = ""
    seed: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def form(body: bytes, name: str) -> bytes:
    """A form of FORM_TYPE with one file in it."""
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="image"'
    head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    return head.encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode()
