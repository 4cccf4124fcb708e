"""The ranks of the processes of one training, from the environment, and the launcher that starts them.

Imports torch only to launch.
"""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from moe_cli.errors import LostProcess, TrainingError

if TYPE_CHECKING:
    from moe_cli.config.launch import LaunchConfig

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
# Interval at which the processes are polled.
POLL_SECONDS = 0.1


def is_distributed() -> bool:
    """Returns True if a launcher (torchrun, or `launch`) started this process and others."""
    return world_size() > 1


def rank() -> int:
    """Returns the rank of this process; rank 0 prints and writes the files of the run."""
    return int(os.environ.get("RANK", "0")) if is_distributed() else 0


def world_size() -> int:
    """Returns the number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Returns the rank among the processes on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_distributed() else 0


def job_id() -> str | None:
    """Returns the name that all processes of one launch share, restarted ones included; None for a single process."""
    if not is_distributed():
        return None
    import socket

    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def num_restarts() -> int:
    """Returns the number of times that the launcher has restarted the processes after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_single_machine() -> bool:
    """Returns True if the launcher started processes on one machine only."""
    return os.environ.get("GROUP_WORLD_SIZE") == "1"


def launched_by_moe() -> bool:
    """Returns True if `launch` started this process. The launcher then reports if this process dies."""
    return "MOE_LAUNCH" in os.environ


def local_world_size() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_distributed() else 1


def hard_exit(code: int) -> NoReturn:
    """Ends this process without Python's cleanup.

    During that cleanup threads of gloo sometimes abort, and the launcher then reports a completed training as dead.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(arguments: Sequence[str], config: "LaunchConfig") -> None:
    """Runs `python WORDS` in `config.num_processes` processes until all have ended, by torchrun's launcher.

    If one dies, the others are stopped, and all are started again, at most `config.max_restarts` times. WORDS must
    therefore resume from the last checkpoint.

    Raises:
        LostProcess: a process was killed.
        TrainingError: a process ended with an error. The message is empty, because the process has printed it.
        KeyboardInterrupt: a signal requested a stop; the processes have received it too, and have ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as Settings
    from torch.distributed.launcher.api import elastic_launch

    logging.disable(logging.CRITICAL)  # torch would print long tracebacks
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", _SIGNALS)
    os.environ["MOE_LAUNCH"] = "1"
    settings = Settings(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.num_processes,
        run_id=uuid.uuid4().hex,
        max_restarts=config.max_restarts,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        monitor_interval=POLL_SECONDS,
    )
    settings.signals_to_handle = _SIGNALS  # a field of some torch versions; others read the environment
    try:
        elastic_launch(settings, sys.executable)(*arguments)
    except ChildFailedError as error:
        signals = {rank: -failure.exitcode for rank, failure in error.failures.items() if failure.exitcode < 0}
        if not signals:
            raise TrainingError("") from None
        killed = min(
            signals, key=lambda rank: signals[rank] == signal.SIGTERM
        )  # the launcher ends the others by SIGTERM
        cause = signal.Signals(signals[killed]).name
        hint = ": by hand, or by the system for want of memory" if cause == "SIGKILL" else ""
        raise LostProcess(f"process {killed} of {config.num_processes} was killed ({cause}){hint}.") from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        logging.disable(logging.NOTSET)
        del os.environ["MOE_LAUNCH"]
