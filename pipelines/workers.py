"""What a worker process does first: it ends with its parent, and keeps the memory that it frees."""

import ctypes
import multiprocessing
import os
import threading
from contextlib import suppress
from multiprocessing.connection import wait

KEPT = 256 * 2**20  # bytes of freed memory that a process does not give back
MAPPED = 32 * 2**20  # bytes from which an allocation is a mapping of its own; the most that glibc takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def begin() -> None:
    """Begin a worker."""
    keep_memory()
    end_with_parent()


def keep_memory(_: int = 0) -> None:
    """Let the C library (glibc) keep the memory of one image for the next.

    By default it returns every large array to the kernel, and the next costs a page fault for each 4 kB: on some
    machines more than the decoding of a JPEG.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MAPPED)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def end_with_parent() -> None:
    """End this process when its parent is gone, however that was killed; a pool's workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
