import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.processes import peak_rss_bytes, tree

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
