"""A real server under Prometheus, with the rules, the dashboard and the documentation that are deployed with it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtest.servers import Server, running
from server.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"] for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "revmux.json").read_text())
PANELS = {
    (panel["title"], target["legendFormat"]): target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool (Debian's package prometheus)",
)


def ask(server: Server, **body: Any) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/classify", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()


def use(server: Server) -> None:
    """Work of every kind: certified, fast and plain."""
    texts = [f"word{i} " * (1 + i % 5) for i in range(24)]
    for quality in ("guaranteed", "fast", "exact"):
        ask(server, input=texts, quality=quality)


@pytest.fixture(scope="module")
def server(calibrated_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "server.cli", "serve", "--bundle", str(calibrated_path)]
    with running([*command, "--width", "max", "--shadow-share", "1", "--threads", "1"], log) as server:
        use(server)
        yield server


@pytest.fixture(scope="module")
def exported(server: Server) -> set[str]:
    """Names of the server's metrics, without what their kind appends to them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {family.name for family in families if not family.name.endswith("_created")}


def used(expression: str) -> set[str]:
    """The metrics of an expression, without what their kind appends to them."""
    # In a name with colons, which a rule recorded, the parts are no metrics.
    names = re.findall(r"(?<![\w:])(?:revmux|process)_\w+(?![\w:])", expression)
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}


def test_rules_and_dashboard_use_metrics_that_are_exported(exported: set[str]) -> None:
    expressions = [rule["expr"] for rule in RULES] + list(PANELS.values())
    assert {name for expression in expressions for name in used(expression)} <= exported
    recorded = {name for expression in expressions for name in re.findall(r"\w+:\w+:\w+", expression)}
    assert recorded == RECORDED


def test_operations_tell_of_every_metric_and_alert(exported: set[str]) -> None:
    rows = re.findall(r"^\| `(\w+)`", OPERATIONS, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert {row for row in rows if row.startswith("Revmux")} == ALERTS
    metrics = {re.sub(r"_total$", "", row) for row in rows if row.startswith(("revmux_", "process_"))}
    assert metrics == exported


def test_operations_tell_of_every_setting_and_no_other() -> None:
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([a-z-]+)", OPERATIONS)}
    variables = {name.lower() for name in re.findall(rf"\b{PREFIX}([A-Z_]+)", OPERATIONS)}
    assert flags == Settings.model_fields.keys()
    assert variables <= flags


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"], ["test", "rules", "tests/rules.yml"]],
)
def test_promtool_accepts(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire() -> None:
    groups = yaml.safe_load((PROMETHEUS / "tests" / "rules.yml").read_text())["tests"]
    fired = {test["alertname"] for group in groups for test in group.get("alert_rule_test", []) if test["exp_alerts"]}
    assert fired == ALERTS


@dataclass(frozen=True)
class Prometheus:
    port: int

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=5) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.get("query", query=expression)["result"]


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.1)


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus with the deployed configuration, but for the server's address and a hurry."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    (revmux,) = (job for job in config["scrape_configs"] if job["job_name"] == "revmux")
    revmux["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    config["scrape_configs"] = [revmux]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log) as process,
    ):
        try:
            yield Prometheus(port)
        finally:
            process.terminate()


@needs_prometheus
def test_prometheus_scrapes_the_server_and_the_dashboard_has_its_figures(
    server: Server, prometheus: Prometheus
) -> None:
    def scraped() -> bool:
        try:
            return bool(prometheus.query('up{job="revmux"} == 1'))
        except OSError:
            return False

    def empty() -> set[tuple[str, str]]:
        return {key for key, expr in PANELS.items() if not prometheus.query(expr.replace("$__rate_interval", "30s"))}

    wait_until(scraped, 30)
    use(server)
    # Rates need two scrapes with work between them.
    wait_until(lambda: bool(prometheus.query("instance:revmux_work:rate5m > 0")), 30)
    use(server)
    wait_until(lambda: {title for title, _ in empty()} <= {"Device memory"}, 30)
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert {rule["name"] for rule in rules} == ALERTS | RECORDED
    assert all(prometheus.query(name) for name in RECORDED)
    assert not prometheus.query('ALERTS{severity="critical"}')
