"""GET /: the page, and every file of ours that it names."""

from __future__ import annotations

import re

import httpx


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


async def test_docs(client: httpx.AsyncClient) -> None:
    assert (await client.get("/docs")).headers["content-type"].startswith("text/html")
