"""The page at /, the one at /docs, and the files they need."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter()


class Files(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        # Small as they are they come whole, as they may whatever is asked for (RFC 9110, section 14.2). Ranges that
        # nobody understands have to be ignored, but Starlette answers them, in plain text.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Accept-Ranges"] = "none"
        # Else browsers keep files for a tenth of their age without asking: of an upgrade they would have a part.
        response.headers["Cache-Control"] = "no-cache"
        return response


web = Files(directory=Path(__file__).parents[2] / "web")
swagger = Files(packages=[("fastapi_swagger", "resources")])


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    return await web.get_response("index.html", request.scope)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """FastAPI's page, but for its scripts, which it would load from another host.

    Paths alone: an address in full would begin with `http://`, which browsers refuse behind a proxy that speaks TLS.
    """
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="SegLens API",
        swagger_js_url="/swagger/swagger-ui-bundle.js",
        swagger_css_url="/swagger/swagger-ui.css",
        swagger_favicon_url="/swagger/favicon-32x32.png",
        swagger_ui_parameters={
            "tryItOutEnabled": True,
            "persistAuthorization": True,
            "filter": True,
            "displayRequestDuration": True,
        },
    )
