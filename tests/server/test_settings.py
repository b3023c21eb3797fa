"""Settings come from flags, then the environment; a wrong one is named."""

from __future__ import annotations

import inspect
import pickle
from hashlib import sha256

import pytest

from revmux_core.points import OperatingPoint
from server.cli.serve import serve
from server.engine import resolve_device
from server.ports import listen
from server.settings import Settings, SettingsError, read_settings


def test_flags_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVMUX_PORT", "9000")
    monkeypatch.setenv("REVMUX_WIDTH", "2")
    settings = read_settings(port=9001, host=None)
    assert (settings.port, settings.host, settings.width) == (9001, "127.0.0.1", 2)


def test_of_api_keys_only_hashes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = sha256(b"key-two").hexdigest()
    monkeypatch.setenv("REVMUX_API_KEYS", f"key-one, sha256:{hashed.upper()}")
    settings = read_settings()
    assert settings.api_keys == (sha256(b"key-one").digest(), bytes.fromhex(hashed))
    assert b"key-one" not in pickle.dumps(settings)
    assert "api_keys" not in repr(settings)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"port": 70_000}, "--port (REVMUX_PORT)"),
        ({"width": "wide"}, "--width (REVMUX_WIDTH): must be auto, max or"),
        ({"width": "0"}, "--width (REVMUX_WIDTH)"),
        ({"max_queue_items": 8}, "--max-items-per-request (REVMUX_MAX_ITEMS_PER_REQUEST)"),
        ({"drain_timeout": float("nan")}, "--drain-timeout (REVMUX_DRAIN_TIMEOUT)"),
        ({"default_timeout_ms": float("inf")}, "--default-timeout-ms (REVMUX_DEFAULT_TIMEOUT_MS)"),
        ({"point": "n1-l3", "width": 2}, "--point (REVMUX_POINT): names a point, so leave out --width"),
        ({"min_agreement": 95}, "--min-agreement (REVMUX_MIN_AGREEMENT)"),
        ({"api_keys": "one,sha256:abc"}, "--api-keys (REVMUX_API_KEYS): sha256: must be followed by 64 hex"),
        ({"dtype": "int8"}, "--dtype (REVMUX_DTYPE): int8 needs --backend openvino"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_settings(**flags)
    assert str(error.value).startswith(words)
    assert "\n" not in str(error.value)


def test_auto_serves_what_agrees_enough_and_a_choice_is_taken_at_its_word() -> None:
    plain, early, two, four = (
        OperatingPoint.parse(name) for name in ("n1-l6", "n1-l2", "n2-l3-u3.4.5", "n4-l3-u3.4.5")
    )
    points = [plain, early, two, four]
    measured = {plain.name: 1.0, early.name: 0.92, two.name: 0.96}
    for settings, expected in (
        (read_settings(), [plain, two]),
        (read_settings(min_agreement=0.9), [plain, early, two]),
        (read_settings(min_agreement=0), points),
        (read_settings(width=2), [plain, two]),
        (read_settings(width=1), [plain]),
        (read_settings(point="n1-l2"), [early, plain]),
    ):
        assert settings.choose_points(points, 6, measured) == expected
    with pytest.raises(SettingsError, match="the bundle has no point n1-l5: choose one of n1-l2, n1-l6"):
        read_settings(point="n1-l5").choose_points(points, 6, measured)


def test_what_only_the_machine_knows_is_named_too() -> None:
    with pytest.raises(SettingsError, match="REVMUX_DEVICE"):
        resolve_device(read_settings(device="abacus"))
    with listen(read_settings(port=0)) as taken, pytest.raises(SettingsError, match="REVMUX_PORT"):
        listen(read_settings(port=taken.getsockname()[1]))
    with pytest.raises(SettingsError, match="REVMUX_HOST"):
        listen(read_settings(host="no.such.host.invalid"))


def test_every_setting_is_an_option_of_serve() -> None:
    assert set(inspect.signature(serve).parameters) == set(Settings.model_fields)
