"""The command `moe`, and python -m moe_cli.

Completion is answered before the commands are imported, which takes longer.
"""

import os
import sys


def main() -> None:
    if shell := os.environ.get("_MOE_COMPLETE"):  # set by the script of the shell
        from moe_cli.cli.shell_completion import print_completions

        return print_completions(shell, sys.argv[1:])
    from moe_cli.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
