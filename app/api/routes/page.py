"""The page at /, and the files it needs."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter()

WEB = Path(__file__).parents[2] / "web"
# Unless told to ask each time, browsers keep files for a tenth of their age: of an upgrade they would have a part.
FRESH = {"Cache-Control": "no-cache"}


class Files(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(FRESH)
        return response


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(WEB / "index.html", headers=FRESH)
