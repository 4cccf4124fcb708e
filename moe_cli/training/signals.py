"""Signals that ask a run to save and stop."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moe_cli.launch import launched

# Ctrl-C, kill, and what clusters send before they take a machine away (Slurm's --signal).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, each of STOP_SIGNALS asks for a stop after the current step; a second SIGINT stops at once.

    So does the death of the launcher, where there is one: nobody else would end these processes.
    """
    asked = False
    launcher = os.getppid() if launched() else None

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield lambda: asked or (launcher is not None and os.getppid() != launcher)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
