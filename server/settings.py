"""The server's settings: `revmux serve --name-of-field`, or the environment variable `REVMUX_NAME_OF_FIELD`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from revmux_core.errors import RevmuxError

PREFIX = "REVMUX_"


class SettingsError(RevmuxError):
    """A setting that cannot be served with; the message is one sentence that names its flag and its variable."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"--{field.replace('_', '-')} ({PREFIX}{field.upper()}): {problem}")


class Settings(BaseSettings):
    """What an operator can set. `read_settings` builds it with readable errors."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    bundle: str = Field("sst2-minilm", description="A built-in bundle's name, or a bundle folder.")
    base: Path | None = Field(None, description="Folder of the base model; found by itself where this is left out.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    width: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Highest mux width to serve; auto is the bundle's widest, 1 is plain inference."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Precision of the weights.")
    threads: int | None = Field(None, ge=1, description="CPU threads for the model; PyTorch decides by default.")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="Padded tokens of a batch, at most; 1024 on a CPU and 16384 on a GPU by default."
    )
    max_queue_items: int = Field(4096, ge=1, description="Samples that may wait before requests are refused (429).")
    max_queue_tokens: int = Field(262144, ge=1, description="Tokens that may wait before requests are refused (429).")
    max_items_per_request: int = Field(1024, ge=1, description="Inputs of one request, at most (413).")
    max_body_bytes: int = Field(4 * 2**20, ge=1, description="Bytes of a request's body, at most (413).")
    default_timeout_ms: float = Field(
        60_000, gt=0, le=3_600_000, description="Time to answer a request that names no timeout_ms (504)."
    )
    drain_timeout: float = Field(
        30, ge=0, le=3600, allow_inf_nan=False, description="Seconds to answer admitted requests after SIGTERM."
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Accepted API keys, with commas between them; none leaves the server open."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe logs to write.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _request_fits_queue(self) -> Self:
        if self.max_items_per_request > self.max_queue_items:
            raise ValueError("must not be above --max-queue-items, or such a request could never be admitted")
        return self

    @property
    def max_width(self) -> int | None:
        """Highest mux width to serve; None is the bundle's widest."""
        return None if self.width == "auto" else self.width

    def check_width(self, widths: Collection[int]) -> None:
        """Raises `SettingsError` where `width` is not one of the bundle's `widths`."""
        if self.max_width is not None and self.max_width not in widths:
            known = ", ".join(map(str, sorted(widths)))
            raise SettingsError("width", f"the bundle has no width {self.width}: choose auto or one of {known}")


def read_settings(**flags: Any) -> Settings:
    """Settings from `flags` (those that are None were not given), then the environment, then the defaults.

    Raises `SettingsError` for the first value that is not valid.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # The only check of the whole object is about this field.
        field = str(first["loc"][0]) if first["loc"] else "max_items_per_request"
        problem = first["msg"].removeprefix("Value error, ")
        if field == "width":
            problem = "must be auto or a whole number of at least 1"
        raise SettingsError(field, problem) from error
