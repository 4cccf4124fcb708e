"""Properties of this machine: threads, device and memory for a run, and the environment that a run records."""

import importlib.metadata
import math
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moe_cli.config.bounds import THREADS, shortened
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.data.load import SIZES, Data
from moe_cli.distributed.launch import is_distributed, local_rank, local_world_size
from moe_cli.errors import MoeError
from moe_cli.formatting import plural, sanitise

# One thread per this many FLOPs of a batch, forward and backward: about 20 ms of one core.
FLOPS_PER_THREAD = 1e9
# Metadata of the data that meta.json records.
_CORPUS = (
    "name",
    "source",
    "version",
    "sha256",
    "num_bytes",
    "num_documents",
    "domains",
    "domain_bytes",
    "tokenizer_sha256",
    "vocab_size",
    "by_name",
    "ngrams",
    *SIZES,
)
_PACKAGES = ("moe-cli", "torch", "numpy", "hydra-core", "omegaconf", "safetensors")
# Paths of control groups (versions 1 and 2), of this process's groups, and of CPU times.
_GROUPS, _OWN_GROUPS, _CPU_TIMES = "/sys/fs/cgroup", "/proc/self/cgroup", "/proc/stat"
_REPO_ROOT = Path(__file__).resolve().parents[2]


def pick_threads(config: RunConfig, vocab_size: int = 256) -> int:
    """Returns train.threads, else $OMP_NUM_THREADS, else one thread per FLOPS_PER_THREAD of a batch, at most the cores.

    The number of threads determines how sums are split, and so their last digits. It does not depend on the load of the
    machine, so that a configuration gives the same digits next to any number of other runs. The processes of one
    training share the cores.
    """
    if config.train.threads is not None:
        return config.train.threads
    threads = omp_threads()
    if threads is not None:
        return min(threads, THREADS)
    flops = (
        estimate_cost(config, vocab_size).model_flops_per_token * config.train.batch_size * config.model.context_length
    )
    cores = count_cores() // (local_world_size() if is_distributed() else 1)
    return max(1, min(cores, math.ceil(flops / FLOPS_PER_THREAD)))


def omp_threads() -> int | None:
    """Returns the number of threads in $OMP_NUM_THREADS; None means that none is set."""
    variable = os.environ.get("OMP_NUM_THREADS", "")
    return int(variable) if re.fullmatch(r"[1-9]\d{0,3}", variable, re.ASCII) else None


def oversubscription_warning(threads: int) -> str | None:
    """Returns a warning if `threads` and the busy cores exceed the cores, else None."""
    cores, busy = count_cores(), busy_cores() if threads > 1 else 0.0
    if threads <= max(1.0, cores - busy + 0.5):
        return None
    if busy < 0.1:
        reason = f"{threads} threads share {plural(cores, 'core')}"
    elif busy > cores - 0.5:
        reason = f"{'both cores are' if cores == 2 else f'all {cores} cores are'} busy with other work"
    else:
        reason = f"{busy:.1f} of {plural(cores, 'core')} are busy with other work"
    return f"{reason}. train.threads=1 is faster here; results differ in the last digits."


def busy_cores() -> float:
    """Returns the number of this process's cores that other processes keep busy, over 0.1 s; 0 means unknown.

    Cores outside the process's affinity or beyond its quota do not count.
    """
    try:
        before = _cpu_ticks()
        time.sleep(0.1)
        after = _cpu_ticks()
    except (OSError, ValueError, IndexError):
        return 0.0
    idle, total = after[0] - before[0], after[1] - before[1]
    cores = len(_own_cores())
    busy = (1 - idle / total) * cores if total > 0 else 0.0
    return max(0.0, busy - (cores - count_cores()))


def _cpu_ticks() -> tuple[int, int]:
    """Returns idle and total time of this process's cores since the start of a Linux system."""
    names, idle, total = {f"cpu{core}" for core in _own_cores()}, 0, 0
    with open(_CPU_TIMES, encoding="ascii") as file:
        for name, *fields in map(str.split, file):
            if name in names:
                ticks = [int(word) for word in fields]
                idle, total = idle + ticks[3] + ticks[4], total + sum(ticks[:8])
    return idle, total


def pick_device(name: str, key: str = "train.device=") -> Any:
    """Returns the torch device of train.device, or of the option `key`.

    Raises MoeError if the device is unknown or missing.
    """
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available() and is_distributed():
        if local_world_size() > torch.cuda.device_count():
            raise MoeError(
                f"{local_world_size()} processes on this machine and {torch.cuda.device_count()} GPUs: each "
                "process needs one. Lower launch.num_processes, or use train.device=cpu"
            )
        torch.cuda.set_device(local_rank())
        return torch.device("cuda", local_rank())
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name):
        raise MoeError(f"{key}{sanitise(shortened(name))} is not one of: auto, cpu, cuda, cuda:N.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MoeError(f"{key}{name}: torch sees no GPU. Use {key}cpu")
    device = torch.device(name)
    if (device.index or 0) >= torch.cuda.device_count() > 0:
        raise MoeError(f"{key}{name}: torch sees {torch.cuda.device_count()} GPUs, numbered from 0.")
    return device


def check_devices(configs: Iterable[RunConfig]) -> None:
    """Raises MoeError if a configuration needs a missing device. torch is imported only if a device must be checked."""
    for device in {config.train.device for config in configs} - {"auto", "cpu"}:
        pick_device(device)


def count_cores() -> int:
    """Returns the number of cores that this process may use, by its affinity (`taskset`) and its group's quota."""
    quota, cores = _quota_cores(), len(_own_cores())
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _own_cores() -> Collection[int]:
    """Returns the numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _quota_cores() -> float | None:
    """Returns the CPU quota of this process in cores, the least of its control groups; None means no limit."""
    quotas = []
    for folder in _group_folders("cpu"):
        limit = _fields_of(f"{folder}/cpu.max") or [
            *_fields_of(f"{folder}/cpu.cfs_quota_us"),
            *_fields_of(f"{folder}/cpu.cfs_period_us"),
        ]
        # Without a limit, version 2 writes max and version 1 writes -1.
        if len(limit) == 2 and all(word.isdecimal() and int(word) > 0 for word in limit):
            quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def _group_folders(controller: str) -> list[str]:
    """Returns the folders of this process's groups under a controller, and of their parents, whose limits also apply.

    In a container the names may be those of the host. The container's own root folder is then used.
    """
    folders = [_GROUPS]
    for line in _lines_of(_OWN_GROUPS):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (controllers, controller) if controllers else ("", "unified"):
            parts = Path(path.lstrip("/")).parts
            if ".." not in parts:
                folders += [str(Path(f"{_GROUPS}/{mount}", *parts[:count])) for count in range(len(parts) + 1)]
    return list(dict.fromkeys(folders))


def _lines_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _fields_of(path: str) -> list[str]:
    return [word for line in _lines_of(path) for word in line.split()]


def visible_gpus() -> tuple[str, ...]:
    """Returns the visible GPUs, by CUDA_VISIBLE_DEVICES or by the driver.

    torch is not used, because its import is slow.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",")]
        return tuple(names[: names.index("-1")] if "-1" in names else filter(None, names))
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(found.stdout.split())


def available_memory_bytes() -> int | None:
    """Returns the memory that new processes can take without swapping, within the group's limit; None means unknown."""
    available = _number_after("/proc/meminfo", "MemAvailable:")
    free = [1024 * available] if available is not None else []
    for folder in _group_folders("memory"):
        limit, used = _limit_of(folder), _first_number(f"{folder}/memory.current", f"{folder}/memory.usage_in_bytes")
        if limit is not None and used is not None:
            # Cached files count as used, but are dropped when memory is needed.
            kinds = [f"{kind}_file " for kind in ("active", "inactive")]
            files = sum(_number_after(f"{folder}/memory.stat", kind) or 0 for kind in kinds)
            free.append(max(0, limit - used + files))
    return min(free, default=None)


def _limit_of(folder: str) -> int | None:
    """Returns the memory limit of a group; None means no limit."""
    return _first_number(f"{folder}/memory.max", f"{folder}/memory.limit_in_bytes")


def _first_number(*paths: str) -> int | None:
    return next((number for path in paths if (number := _number_after(path)) is not None), None)


def total_memory_bytes() -> int | None:
    """Returns the main memory of this machine, or the limit of this group; None means unknown."""
    total = _number_after("/proc/meminfo", "MemTotal:")
    limits = [_limit_of(folder) for folder in _group_folders("memory")]
    return min((size for size in (1024 * total if total else None, *limits) if size is not None), default=None)


def resident_bytes(pid: int) -> int:
    """Returns the resident memory of a process; 0 if it is unknown."""
    fields = _fields_of(f"/proc/{pid}/statm")
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _number_after(path: str, word: str = "") -> int | None:
    """Returns the first number of a file, or of its line that begins with a word."""
    fields = next((line.removeprefix(word).split() for line in _lines_of(path) if line.startswith(word)), [])
    return int(fields[0]) if fields and fields[0].isdecimal() else None


def code_version(meta: Mapping[str, Any] | None = None) -> tuple[str | None, str | None, str]:
    """Returns the identity of a run's code from its meta.json; without one, that of the current code.

    It consists of the version of the package, the commit of a checkout, and the uncommitted changes in the package.
    """
    if meta is None:
        meta = {"packages": {"moe-cli": package_version("moe-cli")}, "git": _git_state(_REPO_ROOT)}
    packages, git = ({**part} if isinstance(part := meta.get(key), dict) else {} for key in ("packages", "git"))
    changes = str(git.get("diff") or "").split("diff --git ")
    package = "".join(change for change in changes if change.startswith("a/moe_cli/"))
    return packages.get("moe-cli"), git.get("commit"), package


def peak_memory_bytes() -> int:
    """Returns the peak main memory of this process."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_environment(corpus: Data) -> dict[str, Any]:
    """Returns the environment of a run: command line, code, packages, hardware, corpus."""
    import torch

    return {
        "argv": sys.argv,
        **describe_software(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "corpus": {key: corpus.meta.get(key) for key in _CORPUS},
    }


def machine_name(device: str) -> str:
    """Returns the identity of the hardware whose time a run measures: host, processor and number of cores, or GPU."""
    if device == "cuda":
        import torch

        return f"{socket.gethostname()}, {torch.cuda.get_device_name()}"
    return f"{socket.gethostname()}, {_processor_name()}, {plural(count_cores(), 'core')}"


def _processor_name() -> str:
    """Returns the name of the processor's model; its architecture where the system does not tell the model."""
    names = [line.partition(":")[2].strip() for line in _lines_of("/proc/cpuinfo") if line.startswith("model name")]
    return sanitise(names[0]) if names else platform.processor() or platform.machine()


@cache
def describe_software() -> dict[str, Any]:
    """Returns the versions of Python, packages and system, and the state of the checkout when this process began.

    The processes of a sweep are forked after the first call, so that none of them has to start git.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "git": _git_state(_REPO_ROOT),
        "platform": platform.platform(),
    }


def package_version(package: str) -> str | None:
    """Returns the version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, str] | None:
    """Returns commit and uncommitted changes of a checkout; None for an installed package."""
    if not (folder / ".git").exists():
        return None
    try:
        texts = [
            subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True
            ).stdout
            for arguments in (["rev-parse", "HEAD"], ["diff", "HEAD"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": texts[0].strip(), "diff": texts[1][:100_000]}
