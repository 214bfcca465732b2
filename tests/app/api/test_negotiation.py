"""Content negotiation: RFC 9110, section 12.5.1."""

from __future__ import annotations

import pytest

from app.api.negotiation import negotiate
from app.errors import NotAcceptable

OFFERS = ("application/json", "image/png", "image/jpeg", "image/webp")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("IMAGE/WebP", "image/webp"),
        ("image/jpeg, image/png", "image/png"),
        ("image/png;q=0.5, image/jpeg;q=0.8", "image/jpeg"),
        ("image/png ; q=0.5,image/jpeg; q=0.8 ", "image/jpeg"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0.1, image/*;q=0.2, image/png;q=0.05", "image/jpeg"),
        ("*/*;q=0.9, application/json;q=0, image/png;q=0", "image/jpeg"),
        ("image/*, image/png;q=0", "image/jpeg"),
        ("image/png;level=9;q=0.2, image/webp;q=0.3", "image/webp"),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "image/png"),
        ("image/png;q=much, image/webp;q=0.1", "image/webp"),
        ("application/json;q=nan, image/webp;q=0.1", "image/webp"),
        ("application/json;q=-1, image/webp;q=0.1", "image/webp"),
        (",,image/webp,", "image/webp"),
    ],
)
def test_choice(accept: str | None, chosen: str) -> None:
    assert negotiate(accept, OFFERS) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/avif, text/*", "*/*;q=0", "application/json;q=0", "nonsense"])
def test_nothing_fits(accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        negotiate(accept, OFFERS)
    assert all(word in caught.value.detail for word in (accept, *OFFERS))


def test_the_order_of_offers_breaks_ties() -> None:
    assert negotiate("*/*", OFFERS[::-1]) == "image/webp"
