"""What this machine lets the process use."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from codeprior.errors import InputError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def available_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def is_amd() -> bool:
    """Whether the processor says that AMD made it; not where the system does not tell."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def available_bytes() -> int | None:
    """Memory that this process may still take, or None if the system does not say."""
    found = [_free_of_machine(), _free_of_group()]
    return min((free for free in found if free is not None), default=None)


def keep_freed_memory() -> None:
    """Let this process reuse memory that it frees, pieces of up to 32 MB, in place of giving it back to the system.

    The system hands memory out page by page, each zeroed at its first touch: a tenth of a training step on a CPU. It
    holds to the end of the process; where the allocator is not glibc's, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, -1)


def require_memory(needed_bytes: int, what: str) -> None:
    """Refuse work that would not fit, before the system ends the process for it.

    Raises
    ------
    InputError
        If more is needed than available; `what` is its subject, as in "this takes 8 GB".
    """
    free = available_bytes()
    if free is not None and needed_bytes > free:
        unit, name = (1e9, "GB") if needed_bytes >= 1e9 else (1e6, "MB")
        raise InputError(f"{what} takes {needed_bytes / unit:.2g} {name} of memory; {free / unit:.2g} {name} are free")


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_of_group() -> int | None:
    """What a container or a batch system leaves: the limit of the process's control group, less what it uses."""
    second = Path("/sys/fs/cgroup")
    first = second / "memory"
    versions = [
        (second / "memory.max", second / "memory.current"),
        (first / "memory.limit_in_bytes", first / "memory.usage_in_bytes"),
    ]
    for limit, used in versions:
        try:
            return int(limit.read_text()) - int(used.read_text())
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return None
