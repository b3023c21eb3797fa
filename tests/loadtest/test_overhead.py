"""`python -m loadtest.overhead`: real servers in small, and what is made of their processor times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.machine import Machine
from loadtest.overhead.costs import Parts, Visit, by_part, most_of_offline, over_rounds
from loadtest.overhead.report import FLOOR, FRONT, ONE, Report, to_markdown


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="needs /proc")
def test_every_part_of_real_servers_is_on_the_page(tiny_bundle_path: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "texts.txt", tmp_path / "out"
    data.write_text("a good film\nword1 word2\nnot very bad . word3\n")
    command = [sys.executable, "-m", "loadtest.overhead", "--bundle", str(tiny_bundle_path), "--data", str(data)]
    # Lists, as single texts are but a list's shorter way.
    command += ["--out", str(out), "--rounds", "1", "--seconds", "0.3", "--concurrency", "8", "--inputs", "2"]
    command += ["--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((out / "overhead.json").read_text())
    one, front, floor = document["medians"].values()
    for visit, there in (
        (one, {"loop", "device"}),
        (front, {"front_end", "loop", "device"}),
        (floor, {"front_end"}),
    ):
        assert {part for part in Parts._fields if visit[part] > 0} == there
        assert sum(visit[part] for part in Parts._fields) < 0.1
    assert floor["front_end"] < one["loop"]
    assert one["request"] > one["inference"] > 0
    assert floor["request"] is None
    assert 0 < document["beside_floor"][0] < 2 * document["offline"][0]
    assert document["cores"] == 1
    page = (out / "overhead.md").read_text()
    assert str(tmp_path) not in page
    assert "| `--http-workers 1` |" in page
    assert "2 texts a request" in page
    assert "--threads 1" in page
    assert "## 20,000" not in page, "it is about requests of one text"


def test_threads_make_parts() -> None:
    seconds = {(1, 1): 1.0, (2, 2): 10.0, (2, 3): 100.0, (2, 4): 200.0, (5, 5): 1000.0, (5, 6): 2000.0}
    assert by_part(seconds, engine=2) == Parts(front_end=3001.0, loop=10.0, device=300.0)
    assert by_part(seconds, engine=None) == Parts(front_end=3311.0, loop=0.0, device=0.0)


def test_medians_and_what_is_left_for_the_model() -> None:
    def make(scale: float) -> Visit:
        return Visit(100 / scale, 0.1 * scale, 0.3 * scale, 0.2 * scale, 3.4 * scale, 5, 4, 2.5)

    visit = over_rounds([make(scale) for scale in (1, 9, 0.5)])
    assert visit == make(1)
    assert visit.beside_inference == 1.5
    assert visit.cores == pytest.approx(400)
    assert most_of_offline(visit.device, visit.http, visit.generator) == pytest.approx(0.85)


@pytest.mark.parametrize(("cores", "where"), [(4, "share."), (3, "computes on 3 of the cores."), (0, "on a GPU.")])
def test_what_is_left_for_the_model_is_told_where_all_share_its_cores(cores: int, where: str) -> None:
    visit = Visit(80.0, 0.002, 0.001, 0.001, 0.036, 0.05, 0.04, 0.03)
    visits = {name: [visit] for name in (ONE, FRONT, FLOOR)}
    machine = Machine("a CPU", 4, 2**30, "Linux", "3.11")
    page = to_markdown(
        Report("command", machine, cores, 64, 1, 3.0, [100.0], [97.0], visits),
        {name: over_rounds(own) for name, own in visits.items()},
    )
    assert where in page
    assert "| 80.0% (80.0% to 80.0%) |" in page
    assert "97.0% (97.0% to 97.0%)" in page
    assert ("| 90.0% |" in page) == ("*At most* is" in page) == (cores == 4)
    assert ("ms of" in page) == (cores > 0)
