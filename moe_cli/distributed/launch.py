"""One training in several processes: starting them, and which of them this one is. Knows torch only where it starts."""

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
# How often the processes are looked at.
POLL_SECONDS = 0.1


def is_distributed() -> bool:
    """Whether a launcher (torchrun, or `launch`) has started this process beside others."""
    return world_size() > 1


def rank() -> int:
    """Which of the processes this one is; 0 speaks for all, and writes the run's files."""
    return int(os.environ.get("RANK", "0")) if is_distributed() else 0


def world_size() -> int:
    """How many there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Which of the processes on this machine this one is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_distributed() else 0


def job_id() -> str | None:
    """A name that the processes of one launch share, those that start after a death too."""
    if not is_distributed():
        return None
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()}:{os.getppid()}" if name == "none" else name


def is_restart() -> bool:
    """Whether this process takes the place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def launched_by_moe() -> bool:
    """Whether `launch` is above, and will tell of a death."""
    return "MOE_LAUNCH" in os.environ


def local_processes() -> int:
    """How many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_distributed() else 1


def hard_exit(code: int) -> NoReturn:
    """Ends one of several processes as `sys.exit`, but not through the end of Python: there gloo's threads are seen to
    abort, and the launcher would take a training that is done for one that died.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(words: Sequence[str], config: LaunchConfig) -> None:
    """Runs `python WORDS` in `config.num_processes` processes, until all have ended; torchrun's engine underneath.

    If one dies the others are stopped, and all start again up to `config.max_restarts` times: WORDS must go on where the
    last ones stopped.

    Raises:
        LostProcess: a process was killed.
        TrainingError: one ended with an error. It has said so itself: the message is empty.
        KeyboardInterrupt: a signal asked for a stop; the processes have been asked too, and have ended.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as Settings
    from torch.distributed.launcher.api import elastic_launch

    logging.disable(logging.CRITICAL)  # torch would print pages
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", _SIGNALS)
    os.environ["MOE_LAUNCH"] = "1"
    settings = Settings(
        min_nodes=1, max_nodes=1, nproc_per_node=config.num_processes, run_id=uuid.uuid4().hex, max_restarts=config.max_restarts,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", monitor_interval=POLL_SECONDS,
    )  # fmt: skip
    settings.signals_to_handle = _SIGNALS  # where torch has that field; the environment says it to others
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
