import json

import pytest

from loadtest.machine import Machine
from loadtest.peers.compare import Plan
from loadtest.peers.report import HEAD, Report, to_json, to_markdown, write


@pytest.fixture
def report(contender):
    return Report(
        "demo",
        "dev.tsv",
        872,
        Machine("Example CPU", 2, 24 * 2**30, "Linux 6", "3.11.7"),
        Plan(64, 3, 10.0, (60.0, 500.0)),
        [
            contender("ours", [300, 330, 90], agreement=1.0),
            contender("infinity", [100, 100, 90], agreement=0.99, errors={"500": 2}),
            contender("litserve", [50], problem="the server exited | badly"),
            contender("vllm", [], problem="needs a GPU"),
        ],
    )


def tables(report) -> list[list[str]]:
    return [part.splitlines() for part in to_markdown(report).split("\n\n") if part.startswith("|")]


def test_every_server_has_a_row_of_the_whole_table(report):
    rows, _ = tables(report)
    assert len(rows) == 2 + 4
    assert all(row.replace("\\|", "").count("|") == len(HEAD) + 1 for row in rows)
    assert (
        rows[2] == "| RevMUX Server 1.2 | plain | float32 | 300.0 | 3.00x | 10.0 | 30.0 | 300 MiB | 3.0 | 90.0% "
        "| 100.0% | 100.0% | 0 |"
    )
    assert "| 100.0 | 1.00x |" in rows[3]
    assert "| 99.0% | 100.0% | 6 |" in rows[3]
    assert "| 50.0 | 0.50x |" in rows[4]
    assert "0, then the server exited \\| badly" in rows[4]
    assert "not measured: needs a GPU" in rows[5]


def test_latencies_at_the_same_load_are_of_the_servers_that_bear_it(report):
    _, rows = tables(report)
    assert rows[0] == "| p50 / p99 in ms at |  |  | 60 requests/s | 500 requests/s |"
    assert rows[2] == "| RevMUX Server | plain | float32 | 10.0 / 30.0 | - |"
    assert rows[4] == "| LitServe | as documented | float32 | - | - |"
    assert len(rows) == 2 + 3


def test_without_infinity_nothing_is_compared_with_it(report):
    report.contenders.pop(1)
    assert "| 300.0 | - |" in to_markdown(report)


def test_the_file_keeps_every_visit(report, tmp_path):
    write(report, tmp_path)
    document = json.loads((tmp_path / "peers.json").read_text())
    assert document == json.loads(json.dumps(to_json(report)))
    assert [len(server["visits"]) for server in document["servers"]] == [3, 3, 1, 0]
    assert document["servers"][0]["ratio"] == 3.0
    assert document["servers"][3]["problem"] == "needs a GPU"
    assert (tmp_path / "peers.md").read_text() == to_markdown(report)
