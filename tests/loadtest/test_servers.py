import os
import sys
import time
from pathlib import Path

import pytest

from loadtest.processes import tree
from loadtest.servers import ServerError, raise_errors, running

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"labels": ["a", "b"]}).encode())

server = HTTPServer((sys.argv[2], int(sys.argv[4])), Handler)
print("Serving a-model on http://127.0.0.1", flush=True)
server.serve_forever()
"""


def test_a_server_is_started_measured_and_stopped(tmp_path):
    with running([sys.executable, "-c", SERVER], tmp_path / "log") as server:
        assert server.info == {"labels": ["a", "b"]}
        assert 0 < server.start_seconds < 60
        if Path("/proc").is_dir():
            assert (server.peak_rss_bytes() or 0) > 2**20
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    assert server.peak_rss_bytes() is None


LEAVES_A_CHILD = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_what_a_server_leaves_behind_is_ended_with_it(tmp_path):
    script = SERVER.replace("class Handler", LEAVES_A_CHILD + "class Handler")
    with running([sys.executable, "-c", script], tmp_path / "log") as server:
        parent, child = tree(server.pid)
        assert parent.pid == server.pid
    # Its new parent may take a moment to hear of its end.
    deadline = time.monotonic() + 5
    while child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.is_alive()


def test_a_server_that_dies_shows_its_log(tmp_path):
    with (
        pytest.raises(ServerError, match=r"exited with code 3:\nno such bundle"),
        running([sys.executable, "-c", "print('no such bundle', flush=True); exit(3)"], tmp_path / "log"),
    ):
        pass


def test_what_a_server_logs_as_an_error_spoils_what_was_measured(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("2026-01-01 00:00:00,000 INFO uvicorn.error: ERROR is not its level\n")
    raise_errors(log)
    with log.open("a") as lines:
        lines.write("2026-01-01 00:00:00,000 ERROR server.batcher: a batch of 2 samples from 2 requests failed\n")
    with pytest.raises(ServerError, match=r"has logged an error: .*a batch of 2 samples"):
        raise_errors(log)
