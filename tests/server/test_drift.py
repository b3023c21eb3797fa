"""The drift demonstration reads what the server's audits say."""

from __future__ import annotations

from pathlib import Path

from loadtest.drift import drive
from revmux_core.bundle import load_bundle
from tests.server.running import running_server, wait_until
from tests.tiny import random_samples


async def test_audits_are_read_after_every_stretch(calibrated_path: Path) -> None:
    bundle = load_bundle(calibrated_path)
    texts, _ = random_samples(bundle, 60)
    with running_server(lambda: bundle, width="max", shadow_share=1) as (client, _):
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        rows = await drive(client.base_url.port, {"own": texts, "other": texts}, stretches=1, stretch=50)
    assert [row[:4] for row in rows] == [
        ("own", "50", "0", "50"),
        ("other", "50", "0", "100"),
        ("own", "50", "0", "150"),
    ]
    assert all("%" in row[4] for row in rows)
