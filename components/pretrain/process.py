"""What a training process sets before its first step: one thread, and memory that stays with it.

glibc gives back what large tensors leave, and gets it anew from the system, page by page: a quarter of a CPU's step
where activations are large. :func:`set_up_process` has it kept, for the process's first thread. Ray trains in another
thread, to which glibc gives an arena of its own, of 64 MB pieces that go back to the system; MEMORY, in the environment
at the start, is for that. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes

import cv2
import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = 2**31 - 1, 2**30  # bytes that glibc keeps, and takes from what it has kept
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD),
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD),
}


def set_up_process() -> None:
    """One thread, and glibc told to keep memory."""
    torch.set_num_threads(1)  # the order of additions, and so the last bit, must not depend on the machine's cores
    cv2.setNumThreads(1)  # one process per core: more threads would only contend
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(trim_threshold, TRIM_THRESHOLD)
    for most in (MMAP_THRESHOLD, 2**25):  # the second is the most that glibc below 2.35 allows
        if libc.mallopt(mmap_threshold, most):
            break
