"""The server's settings: `revmux serve --name-of-field`, or the environment variable `REVMUX_NAME_OF_FIELD`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from revmux_core.backends import BackendName, DtypeName
from revmux_core.cascade import Cascade
from revmux_core.errors import RevmuxError
from revmux_core.points import MIN_AGREEMENT, OperatingPoint
from server.planner import MuxScope

PREFIX = "REVMUX_"

HASHED = "sha256:"
"""Before an API key's SHA-256, as sha256sum prints it, in place of the key."""


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
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of its own for /metrics, which --port then does not answer."
    )
    ssl_certfile: Path | None = Field(
        None, description="Certificate chain (PEM) to speak TLS with; may hold the private key as well."
    )
    ssl_keyfile: Path | None = Field(None, description="The certificate's private key (PEM), unencrypted.")
    http_workers: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes that speak HTTP and tokenize, beside the one that computes (Linux); 0: all in one.",
    )
    width: Literal["auto", "max"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="Highest mux width to serve, 1 is plain. max: the bundle's fastest points, early exits too; auto: "
        "of those what the load calls for, plain when there is little.",
    )
    point: str | None = Field(None, description="Serve this operating point of the bundle, by name, beside plain.")
    min_agreement: float = Field(
        MIN_AGREEMENT,
        ge=0,
        le=1,
        description="Agreement with plain that a point must have been measured to have, for auto.",
    )
    quality: Literal["auto", "exact", "guaranteed", "fast"] = Field(
        "auto",
        description="Quality of requests that name none; auto is guaranteed for a calibrated bundle, fast for another.",
    )
    backend: BackendName = Field(
        "torch",
        description="What runs the layers: torch, inductor (torch.compile), or openvino on a CPU (an extra).",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, or sharded: the layers spread over all GPUs.")
    dtype: DtypeName = Field(
        "auto",
        description="Precision of the matrix products: float32, bfloat16 or int8 (openvino only); auto: bfloat16 "
        "on a GPU, and for openvino on a CPU that has it, else float32.",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads for the model; PyTorch decides by default.")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="Padded tokens of a batch, at most; 1024 on a CPU and 16384 on a GPU by default."
    )
    max_queue_items: int = Field(4096, ge=1, description="Samples that may wait before requests are refused (429).")
    max_queue_tokens: int = Field(262144, ge=1, description="Tokens that may wait before requests are refused (429).")
    max_items_per_request: int = Field(1024, ge=1, description="Inputs of one request, at most (413).")
    max_body_bytes: int = Field(4 * 2**20, ge=1, description="Bytes of a request's body, at most (413).")
    max_connections: int = Field(
        4096, ge=1, description="Connections of one process, at most (503); each also takes an open file (ulimit -n)."
    )
    default_timeout_ms: float = Field(
        60_000, gt=0, le=3_600_000, description="Time to answer a request that names no timeout_ms (504)."
    )
    drain_timeout: float = Field(
        30, ge=0, le=3600, allow_inf_nan=False, description="Seconds to answer admitted requests after SIGTERM."
    )
    api_keys: Annotated[tuple[bytes, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Accepted API keys, or sha256:HASH in a key's place, with commas between them; none leaves the "
        "server open. Only hashes are kept.",
    )
    shadow_share: float = Field(
        0.01, ge=0, le=1, description="Share of inputs that are audited: answered plain as well, and compared."
    )
    mux_scope: MuxScope = Field(
        "tenant",
        description="Whose texts may share a sequence: those of one request, of one tenant (API key), or any.",
    )
    tenant_share: float = Field(
        0.5, gt=0, le=1, description="Share of the queue that one of several tenants may fill before it gets 429."
    )
    log_format: Literal["text", "json"] = Field("text", description="Logs as lines of text, or one JSON object a line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe logs to write.")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash_keys(cls, value: Any) -> Any:
        return [_digest(key.strip()) for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _request_fits_queue(self) -> Self:
        if self.max_items_per_request > self.max_queue_items:
            raise SettingsError(
                "max_items_per_request",
                "must not be above --max-queue-items, or such a request could never be admitted",
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.metrics_port == self.port:
            raise SettingsError("metrics_port", "is --port too: leave it out to have /metrics there")
        return self

    @model_validator(mode="after")
    def _key_has_certificate(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise SettingsError("ssl_certfile", "is missing: name the certificate of --ssl-keyfile")
        return self

    @model_validator(mode="after")
    def _backend_has_dtype(self) -> Self:
        if self.dtype == "int8" and self.backend != "openvino":
            raise SettingsError("dtype", "int8 needs --backend openvino")
        return self

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.point is not None and self.width != "auto":
            raise SettingsError("point", "names a point, so leave out --width")
        return self

    def choose_points(
        self, points: Collection[OperatingPoint], num_layers: int, agreement: Mapping[str, float]
    ) -> list[OperatingPoint]:
        """Which of a bundle's `points` may be served: what `point` or `width` names, else all that agree enough.

        `agreement` is what was measured of points, by name; one that was not measured is not served unless asked for.
        Raises `SettingsError` where the bundle has no such point or width.
        """
        plain = OperatingPoint.plain(num_layers)
        if self.point is not None:
            chosen = [point for point in points if point.name == self.point]
            if not chosen:
                known = ", ".join(sorted(point.name for point in points))
                raise SettingsError("point", f"the bundle has no point {self.point}: choose one of {known}")
            return [*chosen, plain]
        if isinstance(self.width, str):
            return [point for point in points if point == plain or agreement.get(point.name, 0.0) >= self.min_agreement]
        widths = {point.width for point in points}
        if self.width not in widths:
            known = ", ".join(map(str, sorted(widths)))
            raise SettingsError("width", f"the bundle has no width {self.width}: choose auto, max or one of {known}")
        return [plain, *(point for point in points if 1 < point.width <= self.width)]

    def choose_cascades(self, cascades: Iterable[tuple[Cascade, float]]) -> list[tuple[Cascade, float]]:
        """Which of a bundle's certified cascades, each with its ideal speed-up, may be served: those of the widths that
        `width` allows, and none where `point` names what to serve."""
        if self.point is not None:
            return []
        if isinstance(self.width, str):
            return list(cascades)
        return [(cascade, speedup) for cascade, speedup in cascades if 1 < cascade.width <= self.width]


def _digest(key: str) -> bytes:
    """SHA-256 of an API key, 32 bytes. Unsalted and quick: what protects a key is that it is long and random."""
    if not key.startswith(HASHED):
        return hashlib.sha256(key.encode()).digest()
    digits = key.removeprefix(HASHED)
    if not re.fullmatch("[0-9a-fA-F]{64}", digits):
        raise ValueError(f"{HASHED} must be followed by 64 hexadecimal digits, as `printf %s KEY | sha256sum` prints")
    return bytes.fromhex(digits)


def read_settings(**flags: Any) -> Settings:
    """Settings from `flags` (those that are None were not given), then the environment, then the defaults.

    Raises `SettingsError` for the first value that is not valid.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, SettingsError):
            # A check of the whole object, which names its field itself.
            raise cause from error
        field = str(first["loc"][0])
        problem = first["msg"].removeprefix("Value error, ")
        if field == "width":
            problem = "must be auto, max or a whole number of at least 1"
        raise SettingsError(field, problem) from error
