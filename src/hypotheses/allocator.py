"""glibc gives every large block back to the system when it is freed, and the next operation gets it page by page again.
For activations that is most of what a CPU does between two matrix products."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_memory() -> bool:
    """Let this process keep what it has freed, for its next tensors; true if that could be set. Values do not change.

    Aligned blocks, which tensors are, need a hole a little larger than themselves in most versions of glibc, so the memory
    grows by a few blocks before it is used again."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    # older versions of glibc take no more than 32 MiB
    larger = mallopt(M_MMAP_THRESHOLD, 2**31 - 1) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(larger and mallopt(M_TRIM_THRESHOLD, -1))
