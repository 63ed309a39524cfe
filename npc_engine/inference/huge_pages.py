"""Large pages (Linux): weights and contexts are read whole for every token, which is hard on the translation cache."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25  # Linux 6.1: now, instead of when the kernel comes by
_PAGE = 2 << 20
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 0(?: +(?:\[heap\]|\[anon.*\]))?\n")


def use_for_everything() -> int:
    """Ask for large pages under all that this process has allocated so far. Returns the bytes it asked for.

    A hint: where the system knows no such thing, or allows none, nothing happens.
    """
    try:
        mappings = Path("/proc/self/maps").read_text()
    except OSError:
        return 0
    spans = [(int(match[1], 16), int(match[2], 16)) for match in _MAPPING.finditer(mappings)]
    return sum(_advise(start, end, _MADV_HUGEPAGE, _MADV_COLLAPSE) for start, end in spans)


def use_for(tensor: Tensor) -> None:
    """The same for a tensor that was just allocated and not written yet."""
    if tensor.device.type == "cpu":
        _advise(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, _MADV_HUGEPAGE)


def _load_madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


_madvise = _load_madvise()


def _advise(start: int, end: int, *advice: int) -> int:
    start = -(-start // _PAGE) * _PAGE
    size = end // _PAGE * _PAGE - start
    if _madvise is None or size <= 0:
        return 0
    was_taken = [_madvise(start, size, each) == 0 for each in advice]
    return size if any(was_taken) else 0
