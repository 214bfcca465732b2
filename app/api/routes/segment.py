"""POST /segment: an image in, its mask out; or one mask by each of several models, and where they differ."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field, TypeAdapter
from starlette.requests import ClientDisconnect

from app.api.body import OPENAPI_BODY, announced_bytes, read_image
from app.api.comparison import disagreement
from app.api.deadline import until
from app.api.decoding import Picture
from app.api.dependencies import Services, services_of
from app.api.disconnect import CLIENT_CLOSED_REQUEST, ClientLeft, while_connected
from app.api.errors import problems, to_problem
from app.api.headers import RESULT
from app.api.inference import choose_inference
from app.api.negotiation import negotiate
from app.api.parameters import BareRoute, describe_header, describe_query, read_header, read_query
from app.api.record import Record
from app.api.rendering import CONTENT, JSON, choose_format, fitting_type, render_file, render_json
from app.api.schemas import CocoSegment, ComparisonReply, Format, ModelFailure, SegmentQuery, SegmentReply
from app.api.segmenting import LATE, Order, segment_picture
from app.engine.prepare import expected_passes
from app.errors import InvalidParameter, ServiceError
from app.results import new_id
from app.timings import Timings

router = APIRouter(route_class=BareRoute)

TIMEOUT, POSITIVE = "x-request-timeout-seconds", TypeAdapter[float](Annotated[float, Field(gt=0, allow_inf_nan=False)])

Failures = Mapping[str, ServiceError]  # by model
Fitting = Callable[[tuple[int, int]], str]  # width and height to media type


@router.post(
    "/segment",
    summary="Segment an image",
    response_model=SegmentReply | ComparisonReply | list[CocoSegment],
    responses={
        200: {"content": CONTENT, "headers": RESULT, "description": "The mask, in the format asked for."},
        **problems(400, 404, 406, 413, 415, 422, 429, 503, 504, 507),
    },
    openapi_extra={
        **OPENAPI_BODY,
        "parameters": [
            *describe_query(SegmentQuery),
            describe_header(TIMEOUT, POSITIVE, "How long the caller will wait, if less than the server's own limit."),
        ],
    },
)
async def segment(request: Request) -> Response:  # FastAPI's own ways to read more cost more
    services, timings = services_of(request), Timings()
    settings, query = services.settings, read_query(SegmentQuery, request)
    allowed = min(settings.request_timeout, read_header(TIMEOUT, POSITIVE, request) or settings.request_timeout)
    names = _names(query.model or settings.default_model)
    wanted, media_type = _choose_format(query.format, request.headers.get("accept"), len(names))
    orders = _orders(services, names, query, request.state.request_id, time.monotonic() + allowed)
    # For the request's line in the log, and its spans.
    passes = sum(order.passes for order in orders)
    request.state.noted, request.state.timings = {"model": ",".join(names), "passes": passes}, timings
    # Too large comes before too busy: no later time would help.
    announced = announced_bytes(request, settings.max_body_bytes)
    refused = _check_room(services, orders, announced // len(orders))
    try:
        asked = [order.model for order in orders if order.model not in refused]
        with services.reception.receiving(request, announced, asked) as coming, timings.stage("read"):
            body = await _read(coming, settings.max_body_bytes, orders[0].deadline)
        fitting = partial(fitting_type, media_type, request.headers.get("accept"))
        picture = Picture(services, body, query, timings, fitting)
        if len(orders) == 1:
            render = partial(_render, query=query, wanted=wanted, fitting=fitting, timings=timings)
            work = segment_picture(services, picture, orders[0], len(body), render)
            record, content = await while_connected(request, work)
            services.metrics.stages(record.spec.name, timings)
            return Response(content, media_type=fitting(record.size), headers=_headers([record], timings))
        segmented = _segment_by_all(services, picture, orders, refused, query)
        found, failures = await while_connected(request, segmented)
    except (ClientLeft, ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if failures:  # else the line would say 200 alone
        request.state.noted["failed"] = ",".join(f"{model}: {error.code}" for model, error in failures.items())
    replies = [reply for _, reply in found]
    records = [record for record, _ in found]
    told = [
        ModelFailure(model=model, problem=to_problem(error, request.state.request_id))
        for model, error in failures.items()
    ]
    async with until(orders[0].deadline + LATE, "the answer was ready"):
        content = await services.in_codec_thread(_compare, records, replies, told, timings)
    return Response(content, media_type=JSON, headers=_headers(records, timings))


def _names(models: str) -> list[str]:
    names = [name.strip() for name in models.split(",")]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InvalidParameter(f"model: {name!r} is named {count} times", limit=1, actual=count)
    return names


def _choose_format(wanted: Format | None, accept: str | None, models: int) -> tuple[Format, str]:
    if models == 1:
        return choose_format(wanted, accept)
    if wanted not in (None, "json"):
        raise InvalidParameter(f"format: {wanted} is of one model; {models} are answered in JSON")
    return "json", JSON if wanted else negotiate(accept, (JSON,))


def _orders(services: Services, names: list[str], query: SegmentQuery, caller: str, deadline: float) -> list[Order]:
    """
    Raises:
        UnknownModel, InvalidParameter
    """
    specs = [services.engine.models.model(name).spec for name in names]
    group = new_id() if len(specs) > 1 else ""
    return [
        Order(
            spec.name,
            # A promised place is of one model.
            caller if len(specs) == 1 else f"{caller}/{spec.name}",
            deadline,
            expected_passes(spec, choose_inference(query, spec.inference), services.settings.max_passes),
            group,
        )
        for spec in specs
    ]


def _check_room(services: Services, orders: list[Order], nbytes: int) -> Failures:
    """Which models refuse before the body has been read.

    Raises:
        ServiceError: all; this is what the first says
    """
    refused = {}
    for order in orders:
        try:
            services.engine.check_room(order.model, order.caller, nbytes, order.deadline, order.passes)
        except ServiceError as exc:
            refused[order.model] = exc.with_traceback(None)
    if len(refused) == len(orders):
        raise refused[orders[0].model]
    return refused


async def _read(request: Request, max_bytes: int, deadline: float) -> bytes:
    async with until(deadline, "the whole body had come"):
        return await read_image(request, max_bytes)


async def _segment_by_all(
    services: Services, picture: Picture, orders: list[Order], refused: Failures, query: SegmentQuery
) -> tuple[list[tuple[Record, SegmentReply]], Failures]:
    """What each model made of the picture, and why others made nothing, in the order of the orders.

    Raises:
        ServiceError: none made anything; this is what the first says
    """

    def finish(record: Record) -> tuple[SegmentReply, Timings]:
        own = replace(record.segmentation.timings, stages=dict(record.segmentation.timings.stages))
        return _reply(record, query, own), own

    share = len(picture.body) // len(orders)
    admitted = [order for order in orders if order.model not in refused]
    outcomes = await asyncio.gather(
        *(segment_picture(services, picture, order, share, finish) for order in admitted), return_exceptions=True
    )
    found, failed = [], dict(refused)
    for order, outcome in zip(admitted, outcomes, strict=True):
        if isinstance(outcome, ServiceError):
            # Their frames hold the picture; those of an error that is raised again are let go of by Starlette.
            outcome.__traceback__ = outcome.__context__ = None
            failed[order.model] = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            record, (reply, own) = outcome
            services.metrics.stages(order.model, own)
            found.append((record, reply))
    failures = {order.model: failed[order.model] for order in orders if order.model in failed}
    if not found:
        raise next(iter(failures.values()))
    return found, failures


def _render(record: Record, query: SegmentQuery, wanted: Format, fitting: Fitting, timings: Timings) -> bytes:
    of_batch = record.segmentation.timings
    timings.stages |= of_batch.stages
    timings.modules, timings.batch_size = of_batch.modules, of_batch.batch_size
    if wanted == "json":
        return _reply(record, query, timings).model_dump_json(by_alias=True, exclude_none=True).encode()
    with timings.stage("encode"):
        return render_file(record, wanted, fitting(record.size), query.alpha)


def _reply(record: Record, query: SegmentQuery, timings: Timings) -> SegmentReply:
    with timings.stage("encode"):
        reply = render_json(record, query.parts)
    reply.timings_ms = timings.milliseconds()
    return reply


def _compare(
    records: list[Record], replies: list[SegmentReply], failures: list[ModelFailure], timings: Timings
) -> bytes:
    reply = ComparisonReply(
        image=replies[0].image,
        results=replies,
        failures=failures,
        disagreement=disagreement(records) if len(records) > 1 else None,
        timings_ms=timings.milliseconds(),
    )
    reply.timings_ms["total"] = round(1000 * (time.perf_counter() - timings.began["read"]), 3)
    content = reply.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps({"disagreement": None, **content}).encode()


def _headers(records: list[Record], timings: Timings) -> dict[str, str]:
    headers = {"Server-Timing": timings.server_timing(), "Vary": "Accept"}
    kept = [record for record in records if record.kept]
    if kept:  # the first of several: from what all their ids begin with, a proxy knows where they are
        headers["X-Result-Id"] = kept[0].id
    links = [f'</attention/{record.id}>; rel="attention"' for record in kept if record.segmentation.traces]
    if links:
        headers["Link"] = ", ".join(links)
    return headers
