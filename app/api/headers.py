"""What answers say in headers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

Headers = dict[str, dict[str, Any]]


def _described(kind: str, **descriptions: str) -> Headers:
    return {
        name.replace("_", "-"): {"description": description, "schema": {"type": kind}}
        for name, description in descriptions.items()
    }


TIMINGS = _described("string", Server_Timing="Milliseconds by stage and module, for a browser's developer tools.")
RESULT = TIMINGS | _described(
    "string",
    X_Result_Id="By which the result is fetched again, if it is kept; of several models the first one's.",
    Link="The attention of each result that has some.",
)
CACHED = _described("string", ETag="For `If-None-Match`.", Cache_Control="For as long as the result is kept.")

_ALWAYS = _described("string", X_Request_ID="The request's own id, or one made up; errors and the log have it too.")
_BY_STATUS = {
    "401": _described("string", WWW_Authenticate="Bearer."),
    "429": _described("integer", Retry_After="Seconds after which to come back; a promise by POST /segment."),
    "503": _described("integer", Retry_After="Seconds after which to come back, unless only an operator can help."),
}


def declare(document: dict[str, Any]) -> None:
    """Add those that no route declares by itself."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, reply in operation["responses"].items():
                reply["headers"] = {**reply.get("headers", {}), **_ALWAYS, **_BY_STATUS.get(status, {})}
