"""python -m tests.training.together OUTPUTS FILE: one of the processes that carry out the runs named in FILE, in turn.

FILE holds a list of [run folder, step at which to stop or null]. Importing torch takes longer than a run.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from moe_cli.launch import leave, rank
from moe_cli.moe import parallel
from moe_cli.run import run_one
from moe_cli.store import Run


def main(outputs: str, file: str) -> None:
    torch.set_default_dtype(torch.float64)
    parallel.start()
    stop, parallel.stop = parallel.stop, lambda: None
    for folder, last in json.loads(Path(file).read_text()):

        def observe(view: Any, last: int | None = last) -> None:
            if view.state.step == last and rank() == 0:  # the others must hear of it
                os.kill(os.getpid(), signal.SIGTERM)

        run_one(Run(Path(folder)), Path(outputs), observe)
    stop()
    leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
