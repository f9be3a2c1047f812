"""glibc gives every large block back to the system when it is freed, and the next operation gets it page by page again.
For activations that is most of what a CPU does between two matrix products."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_memory() -> bool:
    """Let this process keep what it has freed, for its next tensors; true if that could be set. Values do not change.

    Aligned blocks, which tensors are, need a hole a little larger than themselves before glibc 2.38, so the memory grows by a
    few blocks before it is used again."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**31 - 1) and mallopt(M_TRIM_THRESHOLD, -1))
