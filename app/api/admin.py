"""Who may change what is served: whoever holds the admin key."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.api.dependencies import ServicesDep
from app.errors import AdminDisabled, Unauthorized

# Without auto_error it leaves the answer to us; with it, /docs has a field for the key.
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def _check_admin(services: ServicesDep, bearer: Bearer) -> None:
    key = services.settings.admin_key.get_secret_value()
    if not key:
        raise AdminDisabled("models are loaded and unloaded with the admin key alone, and SEGLENS_ADMIN_KEY is not set")
    # Starlette has made a character of each byte; those beyond ASCII come in UTF-8, as curl sends what was typed.
    given = b"" if bearer is None else bearer.credentials.encode("latin-1")
    # Compared in constant time: how long it takes says nothing of how much was right.
    if not secrets.compare_digest(given, key.encode()):
        raise Unauthorized("send the admin key: `Authorization: Bearer KEY`")


AdminDep = Depends(_check_admin)
