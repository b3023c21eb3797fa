"""The Ray Serve application's file against the project that it deploys."""

from importlib.util import find_spec
from pathlib import Path

import yaml

from server.engine import CPU_BATCH_TOKENS
from server.settings import read_settings

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "deploy/ray/serve.yaml").read_text())
(APPLICATION,) = CONFIG["applications"]
(DEPLOYMENT,) = APPLICATION["deployments"]
SENTENCE_TOKENS = 16


def test_what_it_names_is_there() -> None:
    read_settings(**APPLICATION["args"])
    module, _, function = APPLICATION["import_path"].partition(":")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert f"def {function}(" in Path(spec.origin).read_text()


def test_a_replica_decides_itself_what_waits_and_has_the_time_to_drain() -> None:
    settings = read_settings(**APPLICATION["args"])
    assert DEPLOYMENT["max_ongoing_requests"] >= settings.max_queue_items
    assert DEPLOYMENT["graceful_shutdown_timeout_s"] >= settings.drain_timeout


def test_replicas_are_as_few_as_have_full_batches_and_replaced_before_they_stop() -> None:
    scaling = DEPLOYMENT["autoscaling_config"]
    assert scaling["target_ongoing_requests"] * SENTENCE_TOKENS == CPU_BATCH_TOKENS
    assert scaling["min_replicas"] >= 2, "one that dies leaves another"
    assert DEPLOYMENT["max_surge_percent"] > 0
