"""The kinds of numbers that the processor multiplies. Without torch."""

from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Instructions that multiply bfloat16, by the names that Linux gives them.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


@cache
def cpu_has_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16; False where the system does not tell (not Linux)."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and BFLOAT16_FLAGS & set(line.split()) for line in lines)
