"""Queries read as models, as FastAPI would read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel

from app.api.errors import install
from app.api.parameters import describe_query, from_query
from app.api.routes.attention import AttentionQuery
from app.api.schemas import ResultQuery, SegmentQuery

MODELS: tuple[type[BaseModel], ...] = (SegmentQuery, ResultQuery, AttentionQuery)
QUERIES: tuple[dict[str, str], ...] = (
    {},
    {"format": "overlay", "alpha": "0.25"},
    {"attention": "false", "model": "a,b", "flip": "true"},
    {"x": "3", "y": "4", "level": "6", "clip": "99.5", "top": "0", "weights": "no"},
    {"class": "car", "colormap": "viridis"},
    {"x": "3"},
    {"alpha": "2"},
    {"alpha": ""},
    {"format": "bmp", "include": "masks"},
    {"fromat": "png"},
    {"of_class": "car"},
)


def app_of(model: Any) -> FastAPI:
    """Answers with what it read: at /theirs FastAPI's own way, at /ours by this module."""
    app = FastAPI()
    install(app)

    @app.middleware("http")
    async def named(request: Any, call_next: Any) -> Any:
        request.state.request_id = "id"
        return await call_next(request)

    async def theirs(query: Any) -> Any:
        return query.model_dump()

    async def ours(query: Any) -> Any:
        return query.model_dump()

    theirs.__annotations__["query"] = Annotated[model, Query()]
    ours.__annotations__["query"] = Annotated[model, Depends(from_query(model))]
    app.get("/theirs")(theirs)
    app.get("/ours", openapi_extra={"parameters": describe_query(model)})(ours)
    return app


@pytest.mark.parametrize("model", MODELS)
async def test_values_and_errors_are_those_of_fastapi(model: type[BaseModel]) -> None:
    statuses = set()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(model)), base_url="http://test") as client:
        for query in QUERIES:
            theirs, ours = [await client.get(path, params=query) for path in ("/theirs", "/ours")]
            assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json()), query
            statuses.add(ours.status_code)
    assert statuses == {200, 422}


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_described_as_by_fastapi(model: type[BaseModel]) -> None:
    paths = app_of(model).openapi()["paths"]
    theirs, ours = (paths[path]["get"]["parameters"] for path in ("/theirs", "/ours"))
    assert ours == theirs != []


async def test_a_parameter_given_twice_is_refused(
    client: httpx.AsyncClient, assert_problem: Callable[..., None]
) -> None:
    reply = await client.post("/segment?alpha=0.5&format=png&format=json", content=b"no image")
    assert_problem(reply, 422, "invalid-parameter", limit=1, actual=2)
    assert "format" in reply.json()["detail"]
