"""python -m tests.training.together OUTPUTS FILE: the processes that carry out the runs named in FILE, in turn.

FILE holds a list of [run folder, step at which to stop or null]. WORLD_SIZE processes are forked from this one, because
its imports take longer than a run.
"""

import gc
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.distributed import collectives
from moe_cli.distributed.launch import hard_exit, rank, world_size
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import Run
from moe_cli.sweeps.executors.fork_server_process import IMPORTED
from moe_cli.tasks.causal_lm import TextTask

SPOILED = 2


@contextmanager
def spoiled(run: Run) -> Iterator[None]:
    """Within it, if the run has a way to go on after a NaN, the loss on batch SPOILED is one, in the last process alone."""
    batch, loss, here = TextTask.train_batch, TextTask.loss, {"index": -1}

    def train_batch(self: TextTask, index: int, *size: int) -> Any:
        here["index"] = index
        return batch(self, index, *size)

    def nan_loss(self: TextTask, model: Any, given: Any) -> Any:
        value, routings = loss(self, model, given)
        bad = model.training and here["index"] == SPOILED and rank() == world_size() - 1
        return value * (math.nan if bad else 1.0), routings

    with pytest.MonkeyPatch.context() as patch:
        if run.config().train.on_nan != "stop":
            patch.setattr(TextTask, "train_batch", train_batch)
            patch.setattr(TextTask, "loss", nan_loss)
        yield


def main(outputs: str, file: str) -> None:
    torch.set_default_dtype(torch.float64)
    collectives.init_process_group()
    stop, collectives.destroy_process_group = collectives.destroy_process_group, lambda: None
    for folder, last in json.loads(Path(file).read_text()):

        def observe(view: Any, last: int | None = last) -> None:
            if view.state.step == last and rank() == 0:  # the others must hear of it
                os.kill(os.getpid(), signal.SIGTERM)

        with spoiled(Run(Path(folder))):
            run_one(Run(Path(folder)), Path(outputs), observe)
        gc.freeze()  # a run ends with a collection, which need not look at what has been imported
    stop()
    hard_exit(0)


def fork(outputs: str, file: str) -> int:
    """Returns the exit code of the first process that ends badly, after which the others are killed; 0 if none does."""
    for name in IMPORTED:
        importlib.import_module(name)
    pids = set()
    for number in range(world_size()):
        if (pid := os.fork()) == 0:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
            main(outputs, file)
        pids.add(pid)
    code = 0
    while pids and code == 0:
        pid, status = os.wait()
        pids.discard(pid)
        code = os.waitstatus_to_exitcode(status)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(fork(*sys.argv[1:]))
