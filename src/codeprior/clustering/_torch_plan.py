"""Sizes at which the work on a torch device changes hands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """Sizes at which the work changes hands; none of them changes which clusters merge."""

    matrix_most: int  # clusters that may be held as a matrix
    cpu_at: int = 512  # clusters at which the matrix moves to the CPU
    cpu_most: int = 8192  # clusters from which it may move: when rounds that merge under one in 64 of them
    moved_in_a_round: int = 1 << 18  # took as long as it would, this many of its elements a round (H200: 0.4 s in all)
    neighbours: float = 32.0  # of a point within the first height H; four times as many for each further one
    block: int = 1 << 22  # matrix elements worked on at once
    listed_most: int = 1 << 24  # pairs of clusters that may be listed

    @classmethod
    def for_device(cls, device: torch.device) -> Plan:
        if device.type != "cuda":
            return cls(matrix_most=8192)
        free = free_bytes(device)
        # Beside the matrix: the rows of a round, at most half of it, and twice what they have in common, a quarter.
        most = min(65536, math.isqrt(free // 24) // 4096 * 4096)
        # Round numbers, so that a little more or less of free memory does not change a last digit somewhere.
        block = 1 << min(28, max(20, int(math.log2(max(1, free) / 128))))
        return cls(matrix_most=most, block=block, listed_most=block // 2)


def free_bytes(device: torch.device) -> int:
    """Return how much memory torch could still get: free on the device, or held by torch and not in use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
