import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codeprior import Codebook, machine
from codeprior.clustering.linkage import average_linkage
from codeprior.errors import InputError


def test_the_memory_that_is_left_is_no_more_than_the_machine_has():
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert 0 < machine.available_bytes() <= int(total.split()[1]) * 1024


def test_a_codebook_larger_than_memory_is_one_sentence(monkeypatch, tmp_path):
    np.save(tmp_path / "codebook.npy", np.ones((1000, 8), dtype=np.float32))
    monkeypatch.setattr(machine, "available_bytes", lambda: 50_000)
    with pytest.raises(InputError, match=r"the codebook .*codebook.npy takes 0.096 MB of memory; 0.05 MB are free"):
        Codebook.load(tmp_path / "codebook.npy")
    with pytest.raises(InputError, match=r"clustering 1000 codes of dimension 8 takes 0.82 MB of memory"):
        average_linkage(np.random.default_rng(0).normal(size=(1000, 8)))
    with pytest.raises(InputError, match=r"the matrix of distances between 1000 codes takes 8 MB of memory"):
        average_linkage(np.zeros((1000, 1000)), metric="precomputed")


def test_where_the_system_does_not_say_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda: None)
    machine.require_memory(2**80, "a dream")


@pytest.mark.parametrize(("how", "left"), [("keep", range(190, 1000)), ("plain", range(50))])
def test_freed_memory_is_kept_when_that_is_asked_for(how, left):
    script = """
import ctypes, sys
from pathlib import Path
from codeprior.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
before = held()
pieces = [libc.malloc(24 << 20) for _ in range(8)]
for piece in pieces:
    libc.memset(piece, 1, 24 << 20)
for piece in pieces:
    libc.free(piece)
print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, how], capture_output=True, text=True, check=True)
    assert int(done.stdout) in left  # of 192 MB
