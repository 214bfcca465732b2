"""/attention/{id}: the weights of every block, in every format."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from torch import Tensor

from app.api.dependencies import Services
from app.api.record import Record
from models import Trace
from models.attention_totals import totals_of
from models.traces import Block

POINTS = [(0, 0), (239, 0), (0, 179), (239, 179), (120, 90), (77, 13)]
GRID = (12, 16)
Decoded = Callable[[bytes], np.ndarray[Any, Any]]


@pytest.fixture
def path(posted: dict[str, Any]) -> str:
    return f"/attention/{posted['id']}"


@pytest.fixture
def path_of(
    services: Services,
    make_record: Callable[..., Record],
    pyramid_traces: tuple[Trace, ...],
    dense_trace: Trace,
    position_trace: Trace,
) -> dict[str, str]:
    """Where results of an ANN, a Non-local and a DANet are found by block, each of an image of 32 x 24."""
    for name, traces in (("ann", pyramid_traces), ("nl", (dense_trace,)), ("danet", (position_trace,))):
        services.results.put(name, replace(make_record(np.zeros((24, 32), np.uint8), *traces), id=name))
    return {"afnb": "/attention/ann", "apnb": "/attention/ann", "nl": "/attention/nl", "pam": "/attention/danet"}


async def weights_of(client: httpx.AsyncClient, path: str, **params: Any) -> tuple[dict[str, Any], np.ndarray]:
    reply = await client.get(path, params={"format": "json", **params})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    weights = np.array(body["weights"])
    assert weights.shape == (body["grid"]["height"], body["grid"]["width"])
    return body, weights


async def test_info(client: httpx.AsyncClient, path: str, posted: dict[str, Any]) -> None:
    info = (await client.get(f"{path}/info")).json()
    (block,) = info.pop("blocks")
    grid = block.pop("grid")
    classes = info.pop("classes")
    assert info == {"id": posted["id"], "model": posted["model"], "image": {"width": 240, "height": 180}}
    assert block == {"block": "cca", "steps": ["1", "2", "composed"], "composes": ["product", "rollout"], "levels": []}
    assert classes == [
        {"id": one["class_id"], "name": one["class"], "pixels": one["area"]} for one in posted["predictions"]
    ]
    assert grid["width"] > grid["height"] > 1


@pytest.mark.parametrize("step", ["1", "2"])
@pytest.mark.parametrize(("x", "y"), POINTS)
async def test_one_pass_looks_at_the_cross(client: httpx.AsyncClient, path: str, x: int, y: int, step: str) -> None:
    body, weights = await weights_of(client, path, x=x, y=y, step=step)
    (height, width), (row, column) = weights.shape, body["cell"].values()
    assert body["image"] == {"width": 240, "height": 180}
    assert (row, column) == (int((y + 0.5) * height / 180), int((x + 0.5) * width / 240))
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert np.count_nonzero(weights[row]) + np.count_nonzero(weights[:, column]) == height + width
    weights[row] = weights[:, column] = 0
    assert not weights.any()
    assert body["on_cross"] == pytest.approx(1, abs=1e-4)
    assert (body["block"], body["step"]) == ("cca", step)


@pytest.mark.parametrize(("x", "y"), POINTS)
async def test_both_passes_look_everywhere(client: httpx.AsyncClient, path: str, x: int, y: int) -> None:
    body, weights = await weights_of(client, path, x=x, y=y, step="composed")
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert (weights > 0).all()
    assert body == (await weights_of(client, path, x=x, y=y))[0], "composed is the default"


async def test_json_agrees_with_itself(client: httpx.AsyncClient, path: str) -> None:
    body, weights = await weights_of(client, path, x=50, y=60)
    assert body["sum"] == pytest.approx(weights.sum(), abs=1e-5)
    assert body["max"] == weights.max() == body["top"][0]["weight"]
    positive = weights[weights > 0]
    assert body["entropy"] == pytest.approx(-(positive * np.log2(positive)).sum(), rel=1e-4)
    heaviest = [cell["weight"] for cell in body["top"]]
    assert heaviest == sorted(weights.ravel())[: -len(heaviest) - 1 : -1]
    assert all(weights[cell["row"], cell["column"]] == cell["weight"] for cell in body["top"])
    assert "anchors" not in body
    assert "levels" not in body


async def test_npy_is_the_weights(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path, params={"x": 5, "y": 6, "format": "npy"})
    _, weights = await weights_of(client, path, x=5, y=6)
    array = np.load(io.BytesIO(reply.content), allow_pickle=False)
    assert (array.dtype, reply.headers["content-type"]) == (np.float64, "application/x-npy")
    assert np.array_equal(array, weights)


@pytest.mark.parametrize(
    ("params", "accept", "media_type"),
    [
        ({}, "*/*", "image/png"),
        ({}, "image/jpeg", "image/jpeg"),
        ({"format": "overlay"}, "image/webp", "image/webp"),
        ({"format": "overlay"}, "application/json", "image/png"),
        ({"format": "png"}, "image/jpeg", "image/png"),
        ({"format": "png", "colormap": "viridis", "clip": "100"}, "*/*", "image/png"),
        ({"alpha": "0"}, "*/*", "image/png"),
    ],
)
async def test_pictures_have_the_images_size(
    client: httpx.AsyncClient, path: str, decoded: Decoded, params: dict[str, str], accept: str, media_type: str
) -> None:
    reply = await client.get(path, params={"x": 100, "y": 100, **params}, headers={"accept": accept})
    assert (reply.headers["content-type"], reply.headers["vary"]) == (media_type, "Accept")
    assert decoded(reply.content).shape == (180, 240, 3)


@pytest.mark.parametrize("accept", ["application/json", "application/x-npy"])
async def test_accept_asks_for_numbers(client: httpx.AsyncClient, path: str, accept: str) -> None:
    reply = await client.get(path, params={"x": 1, "y": 1}, headers={"accept": accept})
    assert (reply.status_code, reply.headers["content-type"]) == (200, accept)


async def test_without_colours_the_overlay_is_the_image_and_a_ring(
    client: httpx.AsyncClient, path: str, street: bytes, decoded: Decoded
) -> None:
    reply = await client.get(path, params={"x": 20, "y": 20, "alpha": "0"})
    difference = (decoded(reply.content) != decoded(street)).any(2)
    assert 0 < difference.sum() < 200
    assert not difference[40:, 40:].any()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"block": "apnb"}, ["apnb", "cca"]),
        ({"block": "lstm"}, ["block"]),
        ({"step": "3"}, ["step"]),
        ({"level": "2"}, ["level"]),
        ({"level": "8"}, ["level"]),
        ({"clip": "0"}, ["clip"]),
        ({"alpha": "1.1"}, ["alpha"]),
        ({"colormap": "jet"}, ["colormap"]),
        ({"format": "tiff"}, ["format"]),
        ({"x": "left"}, ["x"]),
        ({"z": "1"}, ["z: there is no such parameter"]),
        ({"class": "sky"}, ["give x and y, or class"]),
        ({"compose": "sum"}, ["compose"]),
        ({"compose": "rollout", "step": "1"}, ["compose", "step 1 is a single step"]),
        ({"direction": "up"}, ["direction"]),
        ({"norm": "l2"}, ["norm"]),
        ({"interp": "cubic"}, ["interp"]),
        ({"size": "9"}, ["size"]),
        ({"top": "1001"}, ["top"]),
        ({"x": "9" * 4000}, ["outside"]),
        ({"x": "9" * 5000}, ["x"]),
    ],
)
async def test_wrong_parameters(
    client: httpx.AsyncClient,
    path: str,
    assert_problem: Callable[..., None],
    params: dict[str, str],
    words: list[str],
) -> None:
    reply = await client.get(path, params={"x": "1", "y": "1", **params})
    assert_problem(reply, 422, "invalid-parameter")
    assert all(word in reply.json()["detail"] for word in words)


@pytest.mark.parametrize(("count", "end"), [(10, "p9: there is no such parameter"), (11, "; and 1 more")])
async def test_ten_wrong_parameters_are_named(client: httpx.AsyncClient, path: str, count: int, end: str) -> None:
    reply = await client.get(path, params={"x": "1", "y": "1", **{f"p{index}": "1" for index in range(count)}})
    assert reply.json()["detail"].endswith(end)
    assert reply.json()["detail"].count("no such parameter") == 10


@pytest.mark.parametrize("digits", [1000, 5000])
async def test_a_class_of_many_digits(
    client: httpx.AsyncClient, path: str, assert_problem: Callable[..., None], digits: int
) -> None:
    reply = await client.get(path, params={"class": "1" * digits})
    assert_problem(reply, 422, "invalid-parameter")
    assert "class" in reply.json()["detail"]


async def test_a_point_is_needed(client: httpx.AsyncClient, path: str, assert_problem: Callable[..., None]) -> None:
    reply = await client.get(path)
    assert_problem(reply, 422, "invalid-parameter")
    assert "give x and y, or class" in reply.json()["detail"]


@pytest.mark.parametrize(("point", "limit"), [((240, 0), 239), ((0, 180), 179), ((-1, 0), 0), ((0, -7), 0)])
async def test_points_outside(
    client: httpx.AsyncClient, path: str, assert_problem: Callable[..., None], point: tuple[int, int], limit: int
) -> None:
    x, y = point
    reply = await client.get(path, params={"x": x, "y": y})
    assert_problem(reply, 422, "invalid-parameter", limit=limit, actual=x or y)


@pytest.mark.parametrize("suffix", ["", "/info"])
@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"attention": "false"}, "attention=false"),
        ({"mode": "slide", "scales": "2"}, "with mode=whole one does"),
        ({"scales": "0.5,1.5"}, "scales"),
    ],
)
async def test_why_there_is_none(
    client: httpx.AsyncClient, street: bytes, assert_problem: Callable[..., None], made: Any, reason: str, suffix: str
) -> None:
    result = (await client.post("/segment", content=street, params=made)).json()["id"]
    reply = await client.get(f"/attention/{result}{suffix}", params={"x": 0, "y": 0})
    assert_problem(reply, 422, "invalid-parameter")
    assert reason in reply.json()["detail"]


@pytest.mark.parametrize("suffix", ["", "/info"])
async def test_unknown_result(client: httpx.AsyncClient, assert_problem: Callable[..., None], suffix: str) -> None:
    reply = await client.get(f"/attention/unknown{suffix}", params={"x": 0, "y": 0})
    assert_problem(reply, 404, "result-expired")


@pytest.mark.parametrize("block", ["afnb", "apnb"])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (31, 23), (10, 17)])
async def test_pyramid(client: httpx.AsyncClient, path_of: dict[str, str], block: str, x: int, y: int) -> None:
    body, weights = await weights_of(client, path_of[block], x=x, y=y, block=block)
    anchors = {scale: np.array(values) for scale, values in body["anchors"].items()}
    assert {scale: values.size for scale, values in anchors.items()} == {"1": 1, "3": 9, "6": 36, "8": 64}
    assert sum(values.sum() for values in anchors.values()) == pytest.approx(1, abs=1e-5)
    assert body["levels"] == pytest.approx({scale: values.sum() for scale, values in anchors.items()}, abs=1e-6)
    assert weights.shape == GRID
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert (body["block"], body["level"], body.get("step")) == (block, "all", None)


async def test_levels_of_a_pyramid_add_up(client: httpx.AsyncClient, path_of: dict[str, str]) -> None:
    path = path_of["apnb"]
    body, whole = await weights_of(client, path, x=3, y=4)
    assert body["block"] == "apnb", "the last block is the default"
    parts = []
    for level, share in body["levels"].items():
        shown, weights = await weights_of(client, path, x=3, y=4, level=level)
        assert weights.sum() == pytest.approx(share, abs=1e-5)
        assert shown["level"] == level
        parts.append(weights)
    np.testing.assert_allclose(sum(parts), whole, atol=1e-6)


async def test_pyramid_info(client: httpx.AsyncClient, path_of: dict[str, str]) -> None:
    blocks = (await client.get(f"{path_of['apnb']}/info")).json()["blocks"]
    expected = {"steps": [], "composes": [], "levels": ["all", "1", "3", "6", "8"], "grid": {"width": 16, "height": 12}}
    assert blocks == [{"block": "afnb", **expected}, {"block": "apnb", **expected}]


@pytest.mark.parametrize("name", ["nl", "pam"])
async def test_dense_attention(client: httpx.AsyncClient, path_of: dict[str, str], name: str) -> None:
    path = path_of[name]
    body, weights = await weights_of(client, path, x=31, y=0, block=name)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert (weights > 0).all()
    assert (body["block"], body["cell"]) == (name, {"row": 0, "column": 15})
    _, columns = await weights_of(client, path, x=31, y=0, block=name, direction="to")
    assert columns.max() <= 1
    assert columns[0, 15] == pytest.approx(weights[0, 15], rel=1e-5)
    (block,) = (await client.get(f"{path}/info")).json()["blocks"]
    assert (block["steps"], block["composes"], block["levels"]) == ([], [], [])


async def test_every_block_can_be_asked_for(client: httpx.AsyncClient, path: str, path_of: dict[str, str]) -> None:
    paths = {"cca": path, **path_of}
    assert set(paths) == set(get_args(Block))
    for block in paths:
        assert (await weights_of(client, paths[block], x=3, y=4, block=block))[0]["block"] == block


@pytest.mark.parametrize("block", ["afnb", "nl", "pam"])
@pytest.mark.parametrize("step", ["1", "2", "3", "composed"])
async def test_a_block_that_runs_once_has_no_steps(
    client: httpx.AsyncClient,
    path_of: dict[str, str],
    assert_problem: Callable[..., None],
    block: str,
    step: str,
) -> None:
    reply = await client.get(path_of[block], params={"x": 0, "y": 0, "block": block, "step": step})
    assert_problem(reply, 422, "invalid-parameter")
    assert "step" in reply.json()["detail"]


async def test_non_local_has_no_steps(
    client: httpx.AsyncClient, path_of: dict[str, str], assert_problem: Callable[..., None]
) -> None:
    reply = await client.get(path_of["nl"], params={"x": 0, "y": 0, "compose": "rollout"})
    assert_problem(reply, 422, "invalid-parameter")
    assert reply.json()["detail"] == "compose is rollout, but the block has no steps: there is nothing to compose"


async def test_non_local_has_no_levels(
    client: httpx.AsyncClient, path_of: dict[str, str], assert_problem: Callable[..., None]
) -> None:
    reply = await client.get(path_of["nl"], params={"x": 0, "y": 0, "level": "8"})
    assert_problem(reply, 422, "invalid-parameter")


@pytest.mark.parametrize("question", [{"x": 5}, {"y": 5}, {"x": 5, "class": "sky"}])
async def test_a_question_is_about_one_thing(
    client: httpx.AsyncClient, path: str, assert_problem: Callable[..., None], question: dict[str, Any]
) -> None:
    reply = await client.get(path, params=question)
    assert_problem(reply, 422, "invalid-parameter")
    assert reply.json()["detail"].startswith("give x and y, or class, not {")


async def test_a_class_by_name_or_id(client: httpx.AsyncClient, path: str, posted: dict[str, Any]) -> None:
    one = posted["predictions"][0]
    body, weights = await weights_of(client, path, **{"class": one["class"]})
    assert body["class"] == {"id": one["class_id"], "name": one["class"], "pixels": one["area"]}
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert {"x", "y", "cell", "on_cross"} & body.keys() == set()
    assert body == (await weights_of(client, path, **{"class": one["class_id"]}))[0]


async def test_a_class_that_is_not_there(
    client: httpx.AsyncClient, path: str, assert_problem: Callable[..., None]
) -> None:
    reply = await client.get(path, params={"class": "unicorn"})
    assert_problem(reply, 422, "invalid-parameter")
    assert "unicorn" in reply.json()["detail"]


async def test_who_looks(client: httpx.AsyncClient, path: str) -> None:
    body, weights = await weights_of(client, path, x=100, y=90, step="1", direction="to")
    assert body["direction"] == "to"
    assert body["on_cross"] == pytest.approx(1, abs=1e-9)
    row, column = body["cell"].values()
    back, seen = await weights_of(client, path, x=2, y=90, step="1")
    assert back["cell"]["row"] == row
    assert weights[row, back["cell"]["column"]] == pytest.approx(seen[row, column], rel=1e-9)


async def test_rollout(client: httpx.AsyncClient, path: str) -> None:
    body, weights = await weights_of(client, path, x=100, y=90, compose="rollout")
    assert (body["step"], body["compose"]) == ("composed", "rollout")
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    row, column = body["cell"].values()
    gamma = abs(body["gamma"])
    assert weights[row, column] >= (1 - 1e-12) / (1 + gamma) ** 2


async def test_json_without_the_weights(client: httpx.AsyncClient, path: str) -> None:
    reply = await client.get(path, params={"x": 1, "y": 1, "format": "json", "weights": "false", "top": 3})
    assert "weights" not in reply.json()
    assert len(reply.json()["top"]) == 3


async def test_a_picture_of_the_maps_size(client: httpx.AsyncClient, path: str, decoded: Decoded) -> None:
    reply = await client.get(path, params={"x": 9, "y": 9, "format": "png", "size": "map", "norm": "log"})
    assert decoded(reply.content).shape == ((await weights_of(client, path, x=9, y=9))[1].shape + (3,))


async def test_what_is_known_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path, params={"x": 1, "y": 1})
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, max-age=600"
    assert first.headers["server-timing"].startswith("attention;dur=")
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await client.get(path, params={"x": 1, "y": 1}, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    wrong = await client.get(path, params={"x": 999, "y": 1}, headers={"if-none-match": "*"})
    assert wrong.status_code == 422
    for params, accept in (
        ({"x": 2, "y": 1}, "*/*"),
        ({"x": 1, "y": 1, "alpha": "0.5"}, "*/*"),
        ({"x": 1, "y": 1}, "image/webp"),
    ):
        other = await client.get(path, params=params, headers={"if-none-match": tag, "accept": accept})
        assert (other.status_code, other.headers["etag"] == tag) == (200, False)


async def test_what_was_made_for_an_answer_goes_with_its_result(
    client: httpx.AsyncClient, services: Services, path_of: dict[str, str]
) -> None:
    query = {"x": 3, "y": 3, "format": "npy"}
    before = services.derived.nbytes
    assert (await client.get(path_of["nl"], params={**query, "direction": "to"})).status_code == 200
    assert services.derived.nbytes > before
    assert (await client.delete("/results/nl")).status_code == 204
    assert services.derived.nbytes <= before


async def test_nothing_stays_of_a_result_that_goes_while_it_is_asked_about(
    client: httpx.AsyncClient, services: Services, path_of: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, deleted = asyncio.get_running_loop(), threading.Event()

    def delete() -> None:
        services.results.delete("nl")
        deleted.set()

    def make(trace: Trace) -> Tensor:
        loop.call_soon_threadsafe(delete)
        assert deleted.wait(20)
        return totals_of(trace)

    before = services.derived.nbytes
    monkeypatch.setattr("models.attention_totals.totals_of", make)
    reply = await client.get(path_of["nl"], params={"x": 3, "y": 3, "format": "npy", "direction": "to"})
    assert reply.status_code == 200
    assert services.derived.nbytes <= before


async def test_slow_maps_hold_up_nobody_else(
    client: httpx.AsyncClient,
    services: Services,
    path: str,
    path_of: dict[str, str],
    assert_problem: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One at a time, on a thread of their own; those that are too many are told so, and all others answered at once."""
    begun, may_end = threading.Event(), threading.Event()

    def slow(trace: Trace) -> Tensor:
        begun.set()
        assert may_end.wait(20)
        return totals_of(trace)

    monkeypatch.setattr("app.api.attention.MOST_QUICK", 0)
    monkeypatch.setattr("models.attention_totals.totals_of", slow)
    query = {"format": "npy", "block": "nl", "direction": "to"}
    asked = [{**query, "x": x, "y": 3} for x in range(services.slow_lane.most)]
    waiting = [asyncio.create_task(client.get(path_of["nl"], params=params)) for params in asked]
    try:
        assert await asyncio.to_thread(begun.wait, 20)
        refused = await client.get(path_of["nl"], params={**query, "x": 31, "y": 3})
        most = services.slow_lane.most
        assert_problem(refused, 429, "queue-full", limit=most, actual=most)
        assert int(refused.headers["retry-after"]) >= 1
        for quick in ("/livez", f"{path}?x=3&y=3", f"{path_of['nl']}?x=3&y=3", f"{path_of['apnb']}?class=0"):
            assert (await client.get(quick)).status_code == 200
        assert not any(task.done() for task in waiting)
    finally:
        may_end.set()
    assert {reply.status_code for reply in await asyncio.gather(*waiting)} == {200}
    monkeypatch.setattr("models.attention_totals.totals_of", None)  # there are some now
    assert (await client.get(path_of["nl"], params={**query, "x": 31, "y": 3})).status_code == 200


async def test_a_slow_map_has_as_long_as_any_request(
    client: httpx.AsyncClient,
    services: Services,
    path_of: dict[str, str],
    assert_problem: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end = threading.Event()

    def slow(trace: Trace) -> Tensor:
        assert may_end.wait(20)
        return totals_of(trace)

    monkeypatch.setattr("app.api.attention.MOST_QUICK", 0)
    monkeypatch.setattr("models.attention_totals.totals_of", slow)
    monkeypatch.setitem(vars(services), "settings", services.settings.model_copy(update={"request_timeout": 0.05}))
    query = {"format": "npy", "block": "nl", "direction": "to", "x": 5, "y": 7}
    try:
        assert_problem(await client.get(path_of["nl"], params=query), 504, "deadline-exceeded")
    finally:
        may_end.set()
