"""What this machine has: GPUs by name, and memory that is free."""

import os
import subprocess
from pathlib import Path

import pytest

from moe_cli import machine
from moe_cli.machine import available_memory_bytes, resident_bytes, visible_gpus


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
    monkeypatch.setattr(machine, "_GROUP", str(tmp_path))
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
