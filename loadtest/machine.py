"""Describes the machine that a report was made on."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are those this process may use; `memory_bytes` is None where the system does not tell."""

    cpu: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str


def describe_machine() -> Machine:
    model = re.search(r"^model name\s*: (.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return Machine(
        cpu=model[1].strip() if model else platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=1024 * int(memory[1]) if memory else None,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def has_bfloat16() -> bool:
    """Whether the CPU multiplies in it: AVX-512 BF16 or AMX. False where the system does not tell.

    As `revmux_core.backends.programs` has OpenVINO say, which need not be installed here.
    """
    return re.search(r"^flags\s*:.*\b(avx512_bf16|amx_bf16)\b", _read("/proc/cpuinfo"), re.MULTILINE) is not None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
