"""The parameters of a query, as one model.

FastAPI would read them too, but looks at every field's type anew for every request: a quarter of what a request costs
beside its model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.errors import InvalidParameter

Model = TypeVar("Model", bound=BaseModel)


def from_query(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that reads a request's query, and raises InvalidParameter or RequestValidationError if it can't."""

    async def read(request: Request) -> Model:  # async, or FastAPI would send it to another thread
        given = request.query_params.multi_items()
        parameters = dict(given)
        if len(parameters) < len(given):
            counts = Counter(name for name, _ in given)
            name, count = counts.most_common(1)[0]
            raise InvalidParameter(f"{name}: it is given {count} times", limit=1, actual=count)
        try:
            return model.model_validate(parameters)
        except ValidationError as exc:
            errors = [{**error, "loc": ("query", *error["loc"])} for error in exc.errors(include_url=False)]
            raise RequestValidationError(errors) from None

    return read


def describe_query(model: type[BaseModel]) -> dict[str, Any]:
    """For the OpenAPI document what FastAPI would say of a model's fields."""
    schema = model.model_json_schema()
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": field, "description": field["description"]}
            for name, field in schema["properties"].items()
        ]
    }
