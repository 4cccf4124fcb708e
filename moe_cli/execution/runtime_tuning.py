"""Settings of a process: malloc keeps freed memory, waiting threads sleep, and large blocks have huge pages."""

import os
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_PAD_BYTES = 2**26
# A freed block of this size or more is returned to the system.
_RETURNED_BYTES = 2**26


def configure_malloc() -> bool:
    """Makes glibc keep freed blocks below 64 MiB; returns whether that succeeded. Other systems are unchanged.

    Otherwise a large block is returned and requested again at every training step, and the first touch of a fresh page
    costs several times its filling. Steps per second on two cores, relative to without: 1.02 times with 8 experts of
    width 144, 1.19 with 64 of them, 1.36 with 32 of width 384, at -2 to 13 % more memory. Only for programs of this
    package, because it changes the whole process.

    Larger blocks are returned, because glibc rarely fits an aligned block into the hole that one of equal size left:
    with logits of 2,048 tokens over 50,257 ids (412 MB), a step of the head held 4.3 to 5.0 GB if they were kept and
    1.5 GB if returned. That costs 0 to 26 % of that step's time, and 5 % of a step with activations of 96 MiB.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(
        mallopt(option, value)
        for option, value in (
            (_MMAP_THRESHOLD, _RETURNED_BYTES),
            (_TRIM_THRESHOLD, -1),
            (_TOP_PAD, _PAD_BYTES),
        )
    )


def configure_libraries() -> None:
    """Sets the environment of libraries, unless the user has; must be called before numpy and torch are imported.

    Waiting threads sleep soon. Otherwise they spin, and on a machine with other work a thread with work to do waits for
    the core of a spinning one. With one of two cores busy, training steps of 0.11 s were measured to take 0.7 to 18 s,
    and 0.6 to 0.7 s with this limit. On idle cores it costs up to 8 %.

    numpy's OpenBLAS gets one thread, because the matrices of a fit are small: with two, the intervals of 240 curves
    took 3.3 s of CPU, and 0.16 s with one. Only on x86, where torch multiplies by MKL: elsewhere it may use OpenBLAS.

    torch asks Linux for huge pages for blocks of 2 MiB or more. The first touch of an ordinary page takes longer than
    its filling, and blocks over 64 MiB, such as the gradients of many experts, are new in every step (see
    `configure_malloc`): a layer with 1,024 experts then takes 0.6 of the time (docs/benchmarks.md).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if platform.machine() in ("x86_64", "AMD64"):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
