"""What answers say in headers, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Headers = dict[str, dict[str, Any]]


def _described(descriptions: Mapping[str, str], kind: str = "string") -> Headers:
    return {name: {"description": text, "schema": {"type": kind}} for name, text in descriptions.items()}


TIMINGS = _described({"Server-Timing": "Milliseconds by stage and module, for a browser's developer tools."})
RESULT = TIMINGS | _described(
    {
        "X-Result-Id": "By which the result is fetched again, if it is kept; of several models the first one's.",
        "Link": "The attention of each result that has some.",
    }
)
CACHED = _described({"ETag": "For `If-None-Match`.", "Cache-Control": "For as long as the result is kept."})

_ALWAYS = _described({"X-Request-ID": "The request's own id, or one made up; errors and the log have it too."})
_BY_STATUS = {
    "401": _described({"WWW-Authenticate": "Bearer."}),
    "429": _described({"Retry-After": "Seconds after which to come back; a promise by POST /segment."}, "integer"),
    "503": _described({"Retry-After": "Seconds after which to come back; none if only a load helps."}, "integer"),
}


def declare(document: dict[str, Any]) -> None:
    """Add those that no route declares by itself."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, reply in operation["responses"].items():
                reply["headers"] = {**reply.get("headers", {}), **_ALWAYS, **_BY_STATUS.get(status, {})}
