"""Memory that is freed stays with the process, where the system lets us ask for that."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from moe_cli.execution import runtime_tuning
from moe_cli.execution.runtime_tuning import configure_malloc

PROGRAM = """
import sys, numpy
from moe_cli.execution.runtime_tuning import configure_malloc
if sys.argv[1] == "keep": configure_malloc()
def held(): return int(open("/proc/self/statm").read().split()[1]) * 4096
before = held()
block = numpy.ones(int(sys.argv[2]) // 8)
del block
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("how", "size", "least", "most"),
    [("keep", 2**25, 2**24, 2**28), ("leave", 2**25, 0, 2**23), ("keep", 2**28, 0, 2**26)],
    ids=["small, kept", "small, without the call", "large"],
)
def test_a_freed_block_stays(how: str, size: int, least: int, most: int) -> None:
    """32 MiB, filled and freed, are still resident, and are not without the call; 256 MiB are not."""
    program = [sys.executable, "-c", PROGRAM, how, str(size)]
    held = int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    assert least <= held <= most


def test_other_systems_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no mallopt, nothing happens."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert configure_malloc() is False


def test_libraries_are_configured_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are set before numpy and torch are loaded, and a value that is there stays."""
    program = (
        "import sys; from moe_cli.cli.app import configure_libraries; configure_libraries()\n"
        "print({'numpy', 'torch'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "set()\n" == printed
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name, value in (("GOMP_SPINCOUNT", "1000"), ("OPENBLAS_NUM_THREADS", "1"), ("THP_MEM_ALLOC_ENABLE", "1")):
        monkeypatch.delenv(name, raising=False)
        runtime_tuning.configure_libraries()
        assert value == os.environ[name]
        monkeypatch.setenv(name, "7")
        runtime_tuning.configure_libraries()
        assert "7" == os.environ[name]


def test_threads_of_openblas_are_limited_where_torch_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other processors than x86, torch may multiply by OpenBLAS too."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    runtime_tuning.configure_libraries()
    assert "OPENBLAS_NUM_THREADS" not in os.environ
