"""Settings come from flags, then the environment; a wrong one is named."""

from __future__ import annotations

import pytest

from server.engine import resolve_device
from server.run import listen
from server.settings import SettingsError, read_settings


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVMUX_PORT", "9000")
    monkeypatch.setenv("REVMUX_WIDTH", "2")
    monkeypatch.setenv("REVMUX_API_KEYS", "key-one, key-two")
    settings = read_settings(port=9001, host=None)
    assert (settings.port, settings.host, settings.width) == (9001, "127.0.0.1", 2)
    assert [key.get_secret_value() for key in settings.api_keys] == ["key-one", "key-two"]
    assert "key-one" not in repr(settings)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": 70_000}, "--port (REVMUX_PORT)"),
        ({"width": "wide"}, "--width (REVMUX_WIDTH): must be auto or"),
        ({"width": "0"}, "--width (REVMUX_WIDTH)"),
        ({"max_queue_items": 8}, "--max-items-per-request (REVMUX_MAX_ITEMS_PER_REQUEST)"),
        ({"drain_timeout": float("nan")}, "--drain-timeout (REVMUX_DRAIN_TIMEOUT)"),
        ({"default_timeout_ms": float("inf")}, "--default-timeout-ms (REVMUX_DEFAULT_TIMEOUT_MS)"),
        ({"dtype": "int8"}, "--dtype (REVMUX_DTYPE)"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(**flags)
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


def test_what_only_the_machine_knows_is_named_too() -> None:
    with pytest.raises(SettingsError, match="REVMUX_DEVICE"):
        resolve_device(read_settings(device="abacus"))
    with listen(read_settings(port=0)) as taken, pytest.raises(SettingsError, match="REVMUX_PORT"):
        listen(read_settings(port=taken.getsockname()[1]))
    with pytest.raises(SettingsError, match="REVMUX_HOST"):
        listen(read_settings(host="no.such.host.invalid"))
