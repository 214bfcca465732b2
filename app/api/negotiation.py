"""Which representation a client wants (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.errors import NotAcceptable

QUALITY = re.compile(r"0(\.\d*)?|1(\.0*)?")


def negotiate(accept: str | None, offers: Sequence[str]) -> str:
    """The offered media type that `Accept` likes best; the first offered of those it likes alike.

    Raises:
        NotAcceptable: it likes none; the message lists the offers
    """
    ranges = _parse(accept or "*/*")
    qualities = {offer: _quality(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: qualities[offer])
    if qualities[best] <= 0:
        raise NotAcceptable(f"{accept!r} accepts none of {', '.join(offers)}")
    return best


def _parse(accept: str) -> dict[str, float]:
    """Media ranges to their quality; a broken quality counts as 0."""
    ranges = {}
    for part in accept.split(","):
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        ranges[media_range] = float(quality) if QUALITY.fullmatch(quality) else 0.0
    return ranges


def _quality(offer: str, ranges: dict[str, float]) -> float:
    # The most specific range that fits decides, even if a wider one likes the offer better.
    for media_range in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0
