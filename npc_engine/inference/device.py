"""What measurements need to know of a device."""

from __future__ import annotations

import time
from typing import Final

import torch

_COPIED_BYTES: Final = 1 << 30


def device_name(device: torch.device) -> str:
    """For people: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, *, num_rounds: int = 10) -> float:
    """Bytes per second that a large copy reads and writes: the best of some."""
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_s = float("inf")
    for _ in range(num_rounds):
        synchronize(device)
        start_s = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * _COPIED_BYTES / best_s
