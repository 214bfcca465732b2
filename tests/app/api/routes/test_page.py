"""GET /: the page, and every file of ours that it names."""

from __future__ import annotations

import re

import httpx
import pytest


async def test_the_page_and_its_files(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "<" in page.text
    for path in re.findall(r'(?:src|href)="(/[^"#?]+)"', page.text):
        assert (await client.get(path)).status_code == 200, path


async def test_no_file_of_an_older_version_is_shown(client: httpx.AsyncClient) -> None:
    for path in ("/", "/web/app.js"):
        reply = await client.get(path)
        assert reply.headers["cache-control"] == "no-cache"
    again = await client.get(path, headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


@pytest.mark.parametrize("wanted", ["bytes=0-5", "bytes=5-0", "lines=1-2", "junk"])
async def test_whatever_part_is_wanted_a_file_comes_whole(client: httpx.AsyncClient, wanted: str) -> None:
    for path in ("/", "/web/icon.svg"):
        reply = await client.get(path, headers={"range": wanted})
        assert (reply.status_code, reply.headers["accept-ranges"]) == (200, "none")
        assert reply.content == (await client.get(path)).content


async def test_docs(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    assert "url: '/openapi.json'" in page.text
    for path in files:
        assert path.startswith("/"), "with http:// before it, none would be loaded behind a proxy that speaks TLS"
        assert (await client.get(path)).status_code == 200
