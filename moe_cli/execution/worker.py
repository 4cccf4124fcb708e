"""The process that executes one run of a sweep, and its exit codes.

python -m moe_cli.execution.worker RUN_FOLDER OUTPUTS
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from moe_cli.distributed.launch import hard_exit, is_distributed, launched_by_moe
from moe_cli.errors import DiskFull, LostProcess, MoeError, RunBusy
from moe_cli.execution.run import run_one
from moe_cli.execution.runtime_tuning import configure_libraries, configure_malloc
from moe_cli.files.writing import is_full
from moe_cli.formatting import print_line
from moe_cli.runs.folder import Run
from moe_cli.training.signals import exit_with_parent

# Exit codes of a worker. EXIT_BUSY means that the worker did not execute the run, which may start again.
EXIT_OK, EXIT_FAILED, EXIT_BUSY, EXIT_DISK_FULL, EXIT_INTERRUPTED = 0, 1, 4, 5, 130
# Environment variable with the parent's pid; the worker exits when that process dies.
PARENT_PID_ENV = "MOE_PARENT"


def main(run_folder: str, outputs: str) -> int:
    """Executes a run and returns the exit code. If it failed, status.json has the reason."""
    run = Run(Path(run_folder))
    try:
        run_one(run, Path(outputs))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (MoeError, OSError) as error:
        if not isinstance(error, MoeError) and not is_full(error):
            raise
        if str(error) and not (isinstance(error, LostProcess) and launched_by_moe()):
            with suppress(OSError):
                print_line(f"error: {error}")
        if isinstance(error, RunBusy):
            return EXIT_BUSY
        return EXIT_DISK_FULL if is_full(error) or isinstance(error, DiskFull) else EXIT_FAILED
    return EXIT_OK if run.summary() or is_distributed() else EXIT_INTERRUPTED


if __name__ == "__main__":
    configure_libraries()
    configure_malloc()
    if parent := os.environ.pop(PARENT_PID_ENV, None):
        exit_with_parent(int(parent))
    code = main(*sys.argv[1:])
    if is_distributed():
        hard_exit(code)
    sys.exit(code)
