"""One training in several processes: launch, and the environment of this process. Imports torch only to launch."""

import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import NoReturn

from moe_cli.config.launch import LaunchConfig
from moe_cli.errors import LostProcess, TrainingError

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
# Interval at which the processes are polled.
POLL_SECONDS = 0.1


def is_distributed() -> bool:
    """Returns True if a launcher (torchrun, or `launch`) started this process together with others."""
    return world_size() > 1


def rank() -> int:
    """Returns the rank of this process; rank 0 prints and writes the run's files."""
    return int(os.environ.get("RANK", "0")) if is_distributed() else 0


def world_size() -> int:
    """Returns the number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Returns the rank among the processes of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_distributed() else 0


def job_id() -> str | None:
    """Returns the name shared by the processes of one launch, restarted ones included."""
    if not is_distributed():
        return None
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def is_restart() -> bool:
    """Returns True if this process replaces one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def launched_by_moe() -> bool:
    """Returns True if `launch` started this process and reports its death."""
    return "MOE_LAUNCH" in os.environ


def local_processes() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_distributed() else 1


def hard_exit(code: int) -> NoReturn:
    """Ends one of several processes as `sys.exit`, but not through the end of Python: there gloo's threads are seen to
    abort, and the launcher would take a training that is done for one that died.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(words: Sequence[str], config: LaunchConfig) -> None:
    """Runs `python WORDS` in `config.num_processes` processes until all have ended, through torchrun's engine.

    If one dies, the others are stopped, and all start again up to `config.max_restarts` times: WORDS must resume from
    the previous state.

    Raises:
        LostProcess: a process was killed.
        TrainingError: one ended with an error. It has reported the error: the message is empty.
        KeyboardInterrupt: a signal requested a stop; the processes have received it too, and have ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as Settings
    from torch.distributed.launcher.api import elastic_launch

    logging.disable(logging.CRITICAL)  # torch would print pages
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
    settings.signals_to_handle = _SIGNALS  # where torch has that field; other versions read the environment
    try:
        elastic_launch(settings, sys.executable)(*words)
    except ChildFailedError as error:
        killed = {number: -each.exitcode for number, each in error.failures.items() if each.exitcode < 0}
        if not killed:
            raise TrainingError("") from None
        number = min(killed, key=lambda number: killed[number] == signal.SIGTERM)  # that ends what is left of a job
        cause = signal.Signals(killed[number]).name
        hint = ": by hand, or by the system for want of memory" if cause == "SIGKILL" else ""
        raise LostProcess(f"process {number} of {config.num_processes} was killed ({cause}){hint}.") from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        logging.disable(logging.NOTSET)
        del os.environ["MOE_LAUNCH"]
