"""`revmux serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from revmux_core.backends import prepare_process
from server.settings import PREFIX, Settings, read_settings


def _setting(name: str) -> Any:
    """The option of a server setting, worded where the setting is defined."""
    field = Settings.model_fields[name]
    default = False if field.default in (None, ()) else str(field.default)
    return typer.Option(help=field.description, show_default=default, envvar=f"{PREFIX}{name.upper()}")


def serve(
    bundle: Annotated[str | None, _setting("bundle")] = None,
    base: Annotated[Path | None, _setting("base")] = None,
    host: Annotated[str | None, _setting("host")] = None,
    port: Annotated[int | None, _setting("port")] = None,
    metrics_port: Annotated[int | None, _setting("metrics_port")] = None,
    ssl_certfile: Annotated[Path | None, _setting("ssl_certfile")] = None,
    ssl_keyfile: Annotated[Path | None, _setting("ssl_keyfile")] = None,
    http_workers: Annotated[int | None, _setting("http_workers")] = None,
    width: Annotated[str | None, _setting("width")] = None,
    point: Annotated[str | None, _setting("point")] = None,
    min_agreement: Annotated[float | None, _setting("min_agreement")] = None,
    quality: Annotated[str | None, _setting("quality")] = None,
    backend: Annotated[str | None, _setting("backend")] = None,
    device: Annotated[str | None, _setting("device")] = None,
    dtype: Annotated[str | None, _setting("dtype")] = None,
    threads: Annotated[int | None, _setting("threads")] = None,
    max_batch_tokens: Annotated[int | None, _setting("max_batch_tokens")] = None,
    max_queue_items: Annotated[int | None, _setting("max_queue_items")] = None,
    max_queue_tokens: Annotated[int | None, _setting("max_queue_tokens")] = None,
    max_items_per_request: Annotated[int | None, _setting("max_items_per_request")] = None,
    max_body_bytes: Annotated[int | None, _setting("max_body_bytes")] = None,
    max_connections: Annotated[int | None, _setting("max_connections")] = None,
    default_timeout_ms: Annotated[float | None, _setting("default_timeout_ms")] = None,
    drain_timeout: Annotated[float | None, _setting("drain_timeout")] = None,
    api_keys: Annotated[str | None, _setting("api_keys")] = None,
    shadow_share: Annotated[float | None, _setting("shadow_share")] = None,
    mux_scope: Annotated[str | None, _setting("mux_scope")] = None,
    tenant_share: Annotated[float | None, _setting("tenant_share")] = None,
    log_format: Annotated[str | None, _setting("log_format")] = None,
    log_level: Annotated[str | None, _setting("log_level")] = None,
) -> None:
    """Serve a bundle over HTTP until SIGTERM; every option can also be set by its environment variable."""
    flags = {name: value for name, value in locals().items() if value is not None}
    settings = read_settings(**flags)
    prepare_process(settings.backend)
    if settings.http_workers:
        from server.supervisor import supervise

        supervise(settings)
    else:
        from server.run import serve as run

        run(settings)
