"""All settings, from the environment: `SEGLENS_PORT=9000` and so on."""

from __future__ import annotations

import json
import os
from typing import Any, Literal, Self

from pydantic import DirectoryPath, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SEGLENS_"


class SettingsError(Exception):
    """The environment holds a setting that is unknown, wrong or contradicts another; the message names it."""


class Settings(BaseSettings):
    """Defaults serve a first-time user: the bundled models, on loopback, within limits a laptop can bear."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    # Of an empty one asyncio makes all addresses.
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 (IPv4) or :: (IPv6) is every address of the machine.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error."
    )
    log_format: Literal["text", "json"] = Field("text", description="text, or json: one object a line.")

    admin_key: SecretStr = Field(
        SecretStr(""), description="Key for loading and unloading models; without one, nobody can."
    )

    default_model: str = Field("ccnet-mobilenetv2-camvid", description="Model that answers when a request names none.")
    model_dir: DirectoryPath | None = Field(None, description="Folder with checkpoints of your own; all are served.")
    models: str = Field(
        "",
        description="Names of models to load at the start, separated by commas; empty: all bundled, all in the folder.",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto (CUDA if there is one), cpu, cuda or cuda:N."
    )
    precision: Literal["auto", "float32"] = Field(
        "auto",
        description="auto (bfloat16 if the device has it, as far as masks stay the same; on a CPU in part) or float32.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,  # of more than the system grants OpenMP aborts the process
        description="CPU threads of a forward pass that runs alone, up to 1024; 0 leaves the choice to torch.",
    )
    reference_operators: bool = Field(
        False,
        description="Attend, and upsample images of one pass, by the slow definitions: to check the fast operators.",
    )

    max_body_bytes: int = Field(32 << 20, gt=0, description="Largest request body, in bytes.")
    max_image_pixels: int = Field(40_000_000, gt=0, description="Largest image, in pixels; checked before decoding.")
    request_timeout: float = Field(
        30.0, gt=0, description="Seconds a request may take; a client may ask for less, not for more."
    )

    max_batch_size: int = Field(0, ge=0, description="Most images in one forward pass; 0 takes 1 on a CPU, 8 on CUDA.")
    max_batch_pixels: int = Field(4 << 20, gt=0, description="Most network-input pixels in one forward pass.")
    max_passes: int = Field(128, gt=0, description="Most forward passes of one image: windows, scales, mirror images.")
    max_queue_size: int = Field(
        128, gt=0, description="Most images waiting for the device; each of an image's passes counts."
    )
    max_queue_bytes: int = Field(
        256 << 20,
        gt=0,
        description="Most bytes of images waiting for the device; bodies being received may take as many again.",
    )

    result_ttl: float = Field(600.0, gt=0, description="Seconds a result can be fetched.")
    max_result_bytes: int = Field(256 << 20, gt=0, description="Memory for results; the oldest go first.")
    drain_notice: float = Field(
        0.0,
        ge=0,
        description="Seconds at shutdown in which /readyz fails and requests are still taken: a proxy shall notice.",
    )
    drain_timeout: float = Field(25.0, gt=0, description="Seconds for accepted requests to finish at shutdown.")
    stall_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds one batch may take; after that the device counts as dead, and the server ends.",
    )

    @field_validator("model_dir", mode="before")
    @classmethod
    def _is_named(cls, folder: Any) -> Any:
        """An empty path would be the working directory."""
        if folder == "":
            raise ValueError("Path should not be empty")
        return folder

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_queue_size < self.max_batch_size:
            raise ValueError(
                f"SEGLENS_MAX_QUEUE_SIZE is {self.max_queue_size}, less than one batch "
                f"(SEGLENS_MAX_BATCH_SIZE {self.max_batch_size})"
            )
        if self.max_queue_size < self.max_passes:
            raise ValueError(
                f"SEGLENS_MAX_QUEUE_SIZE is {self.max_queue_size}, less than one image may need "
                f"(SEGLENS_MAX_PASSES {self.max_passes})"
            )
        return self


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: one sentence per setting that stops the start
    """
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    try:
        return Settings()
    except ValidationError as exc:
        raise SettingsError("; ".join(map(_sentence, exc.errors()))) from exc


def _sentence(error: ErrorDetails) -> str:
    reason = error["msg"].removeprefix("Value error, ")  # pydantic's words before ours
    if not error["loc"]:  # about several, which it names
        return reason
    return f"{PREFIX}{error['loc'][0]}".upper() + f": {reason}, not {json.dumps(error['input'], default=str)}"
