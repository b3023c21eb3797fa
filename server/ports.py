"""Ports and what they are opened with. Apart from HTTP, whose libraries the supervisor need not wait for."""

from __future__ import annotations

import os
import socket
import ssl
import sys

from server.settings import Settings, SettingsError

if sys.platform == "linux":
    import resource


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What TLS is spoken with, None where there is no certificate. Raises `SettingsError` for files that do not do."""
    if settings.ssl_certfile is None:
        return None
    for field in ("ssl_certfile", "ssl_keyfile"):
        path = getattr(settings, field)
        try:
            if path is not None:
                path.open("rb").close()
        except OSError as error:
            raise SettingsError(field, f"{path} cannot be read: {error.strerror}") from error

    def password() -> str:
        # Asked for where a key is encrypted. OpenSSL's own way is to wait for somebody to type it.
        raise SettingsError("ssl_keyfile", "is encrypted: name an unencrypted one, which nobody else can read")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password)
    except ssl.SSLError as error:
        raise SettingsError("ssl_certfile", f"is no PEM certificate with its private key ({error.reason})") from error
    return context


def allow_connections() -> None:
    """Lets this process, and those that it starts, open as many files as the system allows them to ask for.

    Most systems start processes with a soft limit of 1,024. Beyond it a server accepts nobody, so that clients who hold
    idle connections would keep out all others.
    """
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen_all(settings: Settings, shared: bool = False) -> list[socket.socket]:
    """The listening sockets of all ports, that of `port` first; as `listen`."""
    fields = ["port"] if settings.metrics_port is None else ["port", "metrics_port"]
    return [listen(settings, shared, field) for field in fields]


def listen(settings: Settings, shared: bool = False, field: str = "port") -> socket.socket:
    """A listening socket of the port that is set as `field`; `shared` with other processes, among which the system
    spreads connections.

    Raises `SettingsError` where the address cannot be had.
    """
    host, port = settings.host, getattr(settings, field)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise SettingsError("host", f"{host} is no address: {error.strerror}") from error
    try:
        return socket.create_server(address[:2], family=family, reuse_port=shared)
    except OSError as error:
        raise SettingsError(field, f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}") from error


def url_of(listener: socket.socket, tls: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
