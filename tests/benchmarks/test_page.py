"""What the page's benchmark asks for; the page itself is tested in tests/browser."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from benchmarks.page import points


def test_each_question_is_of_another_point_of_the_same_result() -> None:
    asked = [urlsplit(address) for address in points("aXbX", "png&size=map")]
    assert {address.path for address in asked} == {"/attention/aXbX"}  # an id may have any letter
    queries = [parse_qs(address.query) for address in asked]
    assert [query["x"] for query in queries] == [[str(x)] for x in range(10, 450, 11)]
    assert all(query["size"] == ["map"] for query in queries)
