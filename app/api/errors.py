"""Every error becomes a reply here: one table to statuses, one shape (RFC 9457)."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from app import errors
from app.api.headers import declare
from app.errors import ServiceError
from app.logs import fields

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MOST_NAMED = 10  # wrong parameters in one answer

STATUS: dict[type[ServiceError], int] = {
    errors.MalformedBody: 400,
    errors.Unauthorized: 401,
    errors.AdminDisabled: 403,
    errors.UnknownModel: 404,
    errors.ResultExpired: 404,
    errors.NotAcceptable: 406,
    errors.TooLarge: 413,
    errors.UnsupportedImage: 415,
    errors.UnsupportedEncoding: 415,
    errors.InvalidParameter: 422,
    errors.LoadFailed: 422,
    errors.QueueFull: 429,
    errors.DeadlineUnreachable: 429,
    errors.InferenceFailed: 500,
    errors.ServiceError: 500,
    errors.NotReady: 503,
    errors.ModelNotLoaded: 503,
    errors.DeadlineExceeded: 504,
    errors.OutOfMemory: 507,
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
TITLES = {
    400: "Malformed body",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    413: "Too large",
    415: "Unsupported image",
    422: "Invalid parameter",
    429: "Too many requests",
    500: "Internal error",
    503: "Not ready",
    504: "Deadline exceeded",
    507: "Out of device memory",
}


class Problem(BaseModel):
    """The body of every error."""

    type: str = Field(description="Stable name of the kind of error.")
    title: str
    status: int
    detail: str = Field(description="One sentence on this very error, with the limit and the value.")
    instance: str = Field(description="The request's id, as in X-Request-ID and the log.")
    error: str = Field(description="The detail again, for clients that read only this.")
    limit: int | float | None = None
    actual: int | float | None = None
    retry_after: float | None = Field(None, description="Seconds.")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI declarations of the errors a route answers with."""
    schema = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": TITLES[status], "content": schema} for status in (*statuses, 500)}


def to_problem(error: ServiceError, request_id: str) -> Problem:
    """The body that answers an error. If the server is to blame, the error's cause goes to the log, and only there."""
    status = next(STATUS[kind] for kind in type(error).mro() if kind in STATUS)
    if status >= 500 and error.__cause__ is not None:
        extra = fields(request_id=request_id)
        log.error("%s: %s", request_id, error.detail, exc_info=error.__cause__, extra=extra)
    numbers = {"limit": error.limit, "actual": error.actual, "retry_after": error.retry_after}
    return _problem(error.code, status, error.detail, request_id, numbers)


def to_response(error: ServiceError, request_id: str) -> Response:
    problem = to_problem(error, request_id)
    # An integer is the only form of Retry-After that all clients read.
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.UnsupportedEncoding):  # and no other 415 (RFC 9110, section 12.5.3)
        headers["Accept-Encoding"] = "identity"
    return _response(problem, headers)


def problem_response(
    code: str, status: int, detail: str, request_id: str, headers: dict[str, str] | None = None
) -> Response:
    return _response(_problem(code, status, detail, request_id), headers)


def _response(problem: Problem, headers: dict[str, str] | None) -> Response:
    return Response(problem.model_dump_json(exclude_none=True), problem.status, headers, MEDIA_TYPE)


def _problem(
    code: str, status: int, detail: str, request_id: str, numbers: dict[str, float | None] | None = None
) -> Problem:
    return Problem(
        type=code,
        title=TITLES.get(status, "Error"),
        status=status,
        detail=detail,
        instance=request_id,
        error=detail,
        **{name: value for name, value in (numbers or {}).items() if value is not None},
    )


def install(app: FastAPI) -> None:
    """Answer all errors of an app in this shape, its framework's own included."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    describe = app.openapi

    # FastAPI collects the schemas of models alone, and `problems` refers to this one by name.
    def describe_with_problem() -> dict[str, Any]:
        document = describe()
        document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        declare(document)
        return document

    app.openapi = describe_with_problem  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _note(request: Request, code: str) -> None:
    """For the request's line in the log, and its spans."""
    request.state.noted = {**getattr(request.state, "noted", {}), "error": code}


def _on_service_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ServiceError)
    _note(request, exc.code)
    return to_response(exc, request.state.request_id)


def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    detail = f"{request.method} {request.url.path}: {exc.detail}"
    code = {404: "unknown-route", 405: "method-not-allowed"}.get(exc.status_code, "malformed-body")
    _note(request, code)
    headers = dict(exc.headers or {})
    if exc.status_code == 405:
        # Starlette names the methods of the first route of that path only.
        headers["Allow"] = ", ".join(method for method in METHODS if _is_routed(request, method))
    return problem_response(code, exc.status_code, detail, request.state.request_id, headers=headers)


def _is_routed(request: Request, method: str) -> bool:
    method = "GET" if method == "HEAD" else method  # as our middleware has it
    # Within a mount, its path is the end of root_path; routes are compared with what comes after that.
    root_path = request.scope.get("app_root_path", request.scope.get("root_path", ""))
    scope = {**request.scope, "method": method, "root_path": root_path}
    # A mount takes any method. What is mounted here are files.
    routes = (route for route in request.app.routes if method == "GET" or not isinstance(route, Mount))
    return any(route.matches(scope)[0] is Match.FULL for route in routes)


def _on_validation_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    first, *others = exc.errors()
    detail = "; ".join(map(_sentence, (first, *others[: MOST_NAMED - 1])))
    if len(others) >= MOST_NAMED:
        detail += f"; and {len(others) - MOST_NAMED + 1} more"
    numbers = {} if others else _numbers(first)  # of several there is no one limit
    _note(request, "invalid-parameter")
    return _response(_problem("invalid-parameter", 422, detail, request.state.request_id, numbers), None)


def _numbers(error: dict[str, Any]) -> dict[str, float | None]:
    """The limit and the value of a number beyond either end of its range."""
    bounds = [value for name, value in error.get("ctx", {}).items() if name in ("ge", "gt", "le", "lt")]
    if not bounds or not math.isfinite(actual := float(error["input"])):
        return {}
    return {"limit": bounds[0], "actual": actual}


def _sentence(error: dict[str, Any]) -> str:
    name = ".".join(map(str, error["loc"][1:]))
    about = f"{name}: " if name else ""  # none if it is about several
    if error["type"] == "extra_forbidden":
        return f"{about}there is no such parameter"
    reason = error["msg"].removeprefix("Value error, ")  # pydantic's words before ours
    given = "" if error["type"] == "missing" else f", not {json.dumps(error['input'], default=str)}"
    return f"{about}{reason}{given}"
