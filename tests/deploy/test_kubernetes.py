"""The Kubernetes manifests: valid by the published schemas, and in keeping with the server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.metrics import Metrics
from server.routes.status import router
from server.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.30"
"""The oldest that has all that is used: a pause before SIGTERM without a shell in the container."""


def manifests(folder: str) -> Iterator[dict[str, Any]]:
    listed = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())["resources"]
    for name in listed:
        if name.endswith(".yaml"):
            yield from yaml.safe_load_all((ROOT / folder / name).read_text())


MANIFESTS = {manifest["kind"]: manifest for folder in ("base", "monitoring") for manifest in manifests(folder)}
DEPLOYMENT = MANIFESTS["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
NAME = {"app.kubernetes.io/name": "revmux-server"}


@pytest.mark.parametrize("kind", sorted(MANIFESTS.keys() - {"ServiceMonitor"}))
def test_manifests_fit_the_published_schema(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", ["base", "monitoring"])
def test_kubectl_builds_what_fits_the_published_schema(folder: str) -> None:
    built = subprocess.run(["kubectl", "kustomize", ROOT / folder], capture_output=True, text=True, check=True)
    kinds = set()
    for manifest in yaml.safe_load_all(built.stdout):
        kinds.add(manifest["kind"])
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(manifest, VERSION, strict=True)
        if manifest["kind"] == "Deployment":
            # Where an autoscaler decides, a rollout says nothing of their number.
            assert ("replicas" in manifest["spec"]) == (folder == "base")
    assert kinds == (
        MANIFESTS.keys() if folder == "monitoring" else MANIFESTS.keys() - {"ServiceMonitor", "HorizontalPodAutoscaler"}
    )


def test_all_mean_the_same_pods() -> None:
    assert DEPLOYMENT["template"]["metadata"]["labels"] == NAME
    assert DEPLOYMENT["selector"]["matchLabels"] == NAME
    assert MANIFESTS["Service"]["spec"]["selector"] == NAME
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == NAME
    assert MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == NAME
    assert MANIFESTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == MANIFESTS["Service"]["metadata"]["labels"]
    (port,) = MANIFESTS["Service"]["spec"]["ports"]
    (endpoint,) = MANIFESTS["ServiceMonitor"]["spec"]["endpoints"]
    (listens,) = CONTAINER["ports"]
    assert endpoint["port"] == port["name"]
    assert port["targetPort"] == listens["name"]


def test_variables_are_settings_and_probes_ask_paths_of_the_server() -> None:
    variables = {entry["name"] for entry in CONTAINER["env"]}
    assert {name.removeprefix(PREFIX).lower() for name in variables} <= Settings.model_fields.keys()
    paths = {getattr(route, "path", None) for route in router.routes}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["path"] in paths


def test_a_pod_may_drain_before_it_is_killed() -> None:
    (drain,) = (entry["value"] for entry in CONTAINER["env"] if entry["name"] == "REVMUX_DRAIN_TIMEOUT")
    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = CONTAINER["readinessProbe"]
    assert pause >= readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pause + float(drain) < POD["terminationGracePeriodSeconds"]


def test_a_pod_can_do_no_more_than_it_must() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False
    security = CONTAINER["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert MANIFESTS["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_autoscaler_reads_a_metric_that_is_exported() -> None:
    (metric,) = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in Metrics("0").render("")[0].decode()
    (rule,) = yaml.safe_load((ROOT / "monitoring" / "adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].startswith(name)
