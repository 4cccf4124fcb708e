"""The machine's GPUs by name, its free memory, and its cores."""

import os
import subprocess
from pathlib import Path

import pytest

from moe_cli.execution import machine
from moe_cli.execution.machine import available_memory_bytes, resident_bytes, visible_gpus


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        ("0", ("0",)),
        ("3, 1", ("3", "1")),
        ("GPU-8,GPU-9", ("GPU-8", "GPU-9")),
        ("-1", ()),
        ("2,-1,3", ("2",)),
    ],
)
def test_gpus_that_the_user_has_named(value: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES says which there are; what follows -1 does not count."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert expected == visible_gpus()


def test_gpus_that_the_driver_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variable nvidia-smi is asked; where it is absent or fails there are none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert ("0", "1") == visible_gpus()
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert () == visible_gpus()
    program.unlink()
    assert () == visible_gpus()


def test_memory_is_limited_by_the_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The least of what the machine and the group have; files that were read are given up; 'max' is no limit."""
    monkeypatch.setattr(machine, "_GROUPS", str(tmp_path))
    free = available_memory_bytes()
    assert free is not None
    assert free > 10**7
    for name, text in (
        ("max", "1000000\n"),
        ("current", "700000\n"),
        ("stat", "anon 5\nactive_file 50\ninactive_file 7\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    assert 300_057 == available_memory_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert (available_memory_bytes() or 0) > 10**7


def test_memory_that_a_process_holds() -> None:
    """This process holds tens of megabytes, one that has ended none."""
    assert resident_bytes(os.getpid()) > 10**7
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert 0 == resident_bytes(ended.pid)


def groups(monkeypatch: pytest.MonkeyPatch, folder: Path, own: str, files: dict[str, str]) -> None:
    """Control groups as the kernel shows them: what this process's are, and their files."""
    monkeypatch.setattr(machine, "_GROUPS", str(folder / "groups"))
    monkeypatch.setattr(machine, "_OWN_GROUPS", str(folder / "own"))
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "400000 50000\n", "cpu.max": "500000 100000\n"}, 5),
        ("0::/outside/name\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../x\n", {"cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8),
        ("4:cpu,cpuacct:/d\n", {"cpu/d/cpu.cfs_quota_us": "300000\n", "cpu/d/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu:/d\n3:memory:/d\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("3:cpuset:/d\n", {"cpuset/d/cpu.max": "100000 100000\n"}, 8),
        ("0::/a\n", {"unified/a/cpu.max": "600000 100000\n"}, 6),
        ("nonsense\n", {"cpu.max": "much\n"}, 8),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 8),
    ],
)
def test_cores_are_limited_by_the_group(
    own: str, files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The least quota of the group and of those that it is in, in versions 1 and 2, is a number of cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    groups(monkeypatch, tmp_path, own, files)
    assert expected == machine.count_cores()


def test_memory_of_older_groups_is_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Version 1 has other names, and no limit is a number larger than any memory."""
    files = {"memory/d/memory.limit_in_bytes": "9223372036854771712\n", "memory/d/memory.usage_in_bytes": "400\n"}
    groups(monkeypatch, tmp_path, "3:memory:/d/e\n", files)
    assert (available_memory_bytes() or 0) > 10**7
    groups(monkeypatch, tmp_path, "3:memory:/d/e\n", {"memory/d/memory.limit_in_bytes": "1000\n"})
    assert (600, 1000) == (available_memory_bytes(), machine.total_memory_bytes())


@pytest.mark.parametrize(
    ("own", "quota", "busy"),
    [
        ({0, 1}, "max 100000", 0.0),
        ({2, 3}, "max 100000", 2.0),
        ({1, 2}, "max 100000", 1.0),
        ({0, 1, 2, 3}, "200000 100000", 0.0),
        ({1, 2, 3}, "200000 100000", 1.0),
    ],
)
def test_other_work_counts_on_cores_of_this_process(
    own: set[int], quota: str, busy: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cores 2 and 3 are at work: that is nothing to a process that may run on others, or has no time for them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: own, raising=False)
    monkeypatch.setattr(machine, "_CPU_TIMES", str(tmp_path / "stat"))
    groups(monkeypatch, tmp_path, "0::/\n", {"cpu.max": quota})

    def write(seconds: int) -> None:
        idle, work = f"0 0 0 {seconds} 0 0 0 0 0 0", f"{seconds} 0 0 0 0 0 0 0 0 0"
        lines = [f"cpu{core} {work if core > 1 else idle}" for core in range(4)]
        (tmp_path / "stat").write_text("\n".join(["cpu  1 1 1 1 1 1 1 1 1 1", *lines, "intr 5", "ctxt 7"]) + "\n")

    write(100)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: write(200))
    assert busy == pytest.approx(machine.busy_cores())
