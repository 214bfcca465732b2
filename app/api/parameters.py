"""What a request's query and headers say, read by pydantic.

FastAPI would read them too, but looks at every field's type anew for every request, which is much of what a request
costs beside its model (DECISIONS.md, HTTP edge).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from app.errors import InvalidParameter

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")


class BareRoute(APIRoute):
    """Of an endpoint that takes the request and makes a response itself: FastAPI has nothing to do but describe it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def read_query(model: type[Model], request: Request) -> Model:
    """
    Raises:
        InvalidParameter: a parameter is given twice
        RequestValidationError: the model refuses them
    """
    given = request.query_params.multi_items()
    parameters = dict(given)
    if len(parameters) < len(given):
        counts = Counter(name for name, _ in given)
        name, count = counts.most_common(1)[0]
        raise InvalidParameter(f"{name}: it is given {count} times", limit=1, actual=count)
    try:
        return model.model_validate(parameters)
    except ValidationError as exc:
        raise _refused(exc, "query") from None


def read_header(name: str, kind: TypeAdapter[Value], request: Request) -> Value | None:
    """
    Args:
        name: in lower case

    Raises:
        RequestValidationError: it is not of this kind
    """
    given = request.headers.get(name)
    if given is None:
        return None
    try:
        return kind.validate_python(given)
    except ValidationError as exc:
        raise _refused(exc, "header", name) from None


def from_query(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """`read_query` as a dependency."""

    async def read(request: Request) -> Model:  # async, or FastAPI would send it to another thread
        return read_query(model, request)

    return read


def describe_query(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Parameters for the OpenAPI document: what FastAPI would say of a model's fields."""
    schema = model.model_json_schema()
    return [
        {"name": name, "in": "query", "required": False, "schema": field, "description": field["description"]}
        for name, field in schema["properties"].items()
    ]


def describe_header(name: str, kind: TypeAdapter[Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": kind.json_schema(), "description": description}


def _refused(exc: ValidationError, *place: str) -> RequestValidationError:
    return RequestValidationError(
        [{**error, "loc": (*place, *error["loc"])} for error in exc.errors(include_url=False)]
    )
