"""How much memory a computation needs beyond what is held already."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch

_SELF = Path("/proc/self")


def working_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The most that `run` held beyond what was held when it began: on the GPU, or by this process.

    `run` should have run before, or what the first run alone pays for counts. None on a CPU without Linux's /proc.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not (_SELF / "clear_refs").exists():
        return None
    # What the allocator keeps of earlier runs would be used again unseen. Only glibc has this call.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    # 5 sets the peak to what is held now, see proc_pid_clear_refs(5).
    (_SELF / "clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", (_SELF / "status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
