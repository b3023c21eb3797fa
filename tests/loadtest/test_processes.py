import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.processes import cpu_seconds, peak_rss_bytes, reset_peaks, tree

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
def test_a_tree_is_a_process_with_its_children_and_their_memory():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    family = tree(parent.pid)
    assert [process.pid for process in family] == [parent.pid, child]
    assert all(process.is_alive() for process in family)
    both, alone = peak_rss_bytes(parent.pid), peak_rss_bytes(child)
    assert both is not None
    assert alone is not None
    assert both > alone > 0
    parent.communicate(b"\n")
    assert not family[0].is_alive()
    assert peak_rss_bytes(parent.pid) is None


BUSY_THEN_IDLE = """
import sys, time
while time.process_time() < 0.3:
    pass
big = bytearray(200 * 2**20)
del big
print("done", flush=True)
input()
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="needs /proc")
def test_processor_time_and_a_peak_that_was_set_back():
    process = subprocess.Popen([sys.executable, "-c", BUSY_THEN_IDLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert 0.25 < (cpu_seconds(process.pid) or 0) < 5
    assert (peak_rss_bytes(process.pid) or 0) > 200 * 2**20
    reset_peaks(process.pid)
    assert (peak_rss_bytes(process.pid) or 0) < 100 * 2**20
    process.communicate(b"\n")
    assert cpu_seconds(process.pid) is None
