import os
import sys
from pathlib import Path

import pytest

from loadtest.servers import ServerError, running

SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"labels": ["a", "b"]}).encode())

HTTPServer((sys.argv[2], int(sys.argv[4])), Handler).serve_forever()
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


def test_a_server_that_dies_shows_its_log(tmp_path):
    with (
        pytest.raises(ServerError, match=r"exited with code 3:\nno such bundle"),
        running([sys.executable, "-c", "print('no such bundle', flush=True); exit(3)"], tmp_path / "log"),
    ):
        pass
