"""The signals that make a run save and stop, and processes that end with their parent."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moe_cli.distributed.launch import is_distributed

# Ctrl-C, kill, and the signals of clusters before a machine is taken away (Slurm's --signal).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Signals that interrupt a command that is not training.
INTERRUPT_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Several signals within this time raise KeyboardInterrupt once.
TOGETHER_SECONDS = 0.2
# Interval of the test whether the parent lives.
POLL_SECONDS = 0.5
# Time to save after the death of the parent.
GRACE_SECONDS = 60.0


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Makes each of STOP_SIGNALS request a stop after the current step; a second SIGINT stops immediately.

    The death of the launcher also requests a stop, because nothing else would end its processes. Yields a function that
    returns True after a request.
    """
    is_requested = False
    launcher = os.getppid() if is_distributed() else None

    def request_stop(number: int, frame: object) -> None:
        nonlocal is_requested
        if is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    with _handled(STOP_SIGNALS, request_stop):
        yield lambda: is_requested or (launcher is not None and os.getppid() != launcher)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Makes SIGTERM, SIGHUP and SIGINT raise KeyboardInterrupt. Ignored signals stay ignored, as under nohup.

    Signals within TOGETHER_SECONDS raise it once. Outside of the main thread, where Python allows no handlers, it has
    no effect.
    """
    last = -math.inf

    def interrupt(number: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > TOGETHER_SECONDS:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in INTERRUPT_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with _handled(handled, interrupt):
        yield


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Installs the handler of these signals, and restores the earlier handlers at the end."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def exit_with_parent(parent: int) -> None:
    """Sends this process SIGTERM when its parent dies, and SIGKILL after GRACE_SECONDS.

    The runs of a sweep need it, because nothing else would end them if the sweep were killed. A thread checks the
    parent, so that it works while the process reads data, evaluates or hangs.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="follow", daemon=True).start()
