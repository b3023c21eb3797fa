"""The container files against the project they deploy, for they cannot be run everywhere that the tests can."""

import json
import re
from pathlib import Path

import pytest
import yaml

from server.routes.status import router
from server.settings import PREFIX, Settings, read_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())


@pytest.fixture
def server_settings(monkeypatch):
    """The settings that the composed server would read, with nothing set on the host."""
    in_image = dict(re.findall(r"\b(REVMUX_\w+)=(\S+)", DOCKERFILE))
    in_compose = COMPOSE["services"]["server"]["environment"]
    for name in in_image.keys() | in_compose.keys():
        if name.startswith(PREFIX):
            assert name.removeprefix(PREFIX).lower() in Settings.model_fields, f"{name} is no setting"
    # Those without a value come from the host alone.
    for name, value in (in_image | {name: value for name, value in in_compose.items() if value is not None}).items():
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value))
    return read_settings()


def test_copied_paths_exist_and_reach_the_build():
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    copied = [path for line in lines for path in line.split()[:-1]]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert "pyproject.toml" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
        # Itself, or the folder that it is in.
        assert f"!{path.partition('/')[0]}" in allowed, path


def test_health_checks_ask_a_path_that_the_server_has():
    (in_image,) = re.findall(r"HEALTHCHECK [^[]+CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    _, *in_compose = COMPOSE["services"]["server"]["healthcheck"]["test"]
    for command in json.loads(in_image), in_compose:
        python, flag, code = command
        assert (python, flag) == ("python", "-c")
        compile(code, "health check", "exec")
        (path,) = re.findall(r"[\d}](/[\w/]+)'", code)
        assert path in {getattr(route, "path", None) for route in router.routes}


def test_container_listens_where_it_is_published(server_settings):
    assert server_settings.host == "0.0.0.0"
    (port,) = COMPOSE["services"]["server"]["ports"]
    assert port.endswith(f":{server_settings.port}")
    assert f"EXPOSE {server_settings.port}" in DOCKERFILE


def test_every_setting_of_a_container_can_be_set():
    in_compose = COMPOSE["services"]["server"]["environment"]
    passed = {name.removeprefix(PREFIX).lower() for name in in_compose if name.startswith(PREFIX)}
    # Health checks and Prometheus know where it listens and how, and PyTorch is the one backend in the image.
    fixed = {"host", "port", "metrics_port", "ssl_certfile", "ssl_keyfile", "backend"}
    assert passed == Settings.model_fields.keys() - fixed


def test_stopping_leaves_time_to_drain(server_settings):
    grace = COMPOSE["services"]["server"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > server_settings.drain_timeout


def test_a_gpu_is_reserved_and_used(server_settings):
    (device,) = COMPOSE["services"]["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert server_settings.device == "cuda"


def test_images_of_others_have_an_exact_version():
    (base,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    pulled = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
    assert len(pulled) == 2
    for image in [base, *pulled]:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(-[\w-]+)?", image), image


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_can_do_no_more_than_it_must(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"].keys() >= {"memory", "pids"}
    if "build" in service:
        # Every stage that is built ends as this user.
        assert re.search(
            rf"AS {service['build']['target']}\n(?:(?!^FROM )[^\n]*\n)*USER 10001:10001$", DOCKERFILE, re.MULTILINE
        )
    else:
        assert not service["user"].startswith("0")
    if service["restart"] != "no":
        assert "healthcheck" in service
    # Beyond this machine nobody is served who was not invited.
    assert all(re.match(r"\$\{\w*PUBLISH:-127\.0\.0\.1:", port) for port in service.get("ports", []))
