"""The command lm-eval with the model `moe` and the tasks of this package: python -m moe_cli.harness run --model moe ...

Releases of lm_eval up to 0.4.13 read no entry points, so that their own command does not know the model.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from moe_cli.cli.echo import echo_error
from moe_cli.errors import MoeError

NAME = "moe"
TASKS = Path(__file__).parent / "tasks"
MODEL = "moe_cli.harness.model:MoELM"


def register() -> None:
    """Makes the model known to lm_eval in this process. Its class is imported when it is used."""
    import lm_eval.models  # noqa: F401  (its models are registered only into an empty registry)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=MODEL)


def with_tasks(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of lm-eval; where they name no folder of tasks, with that of this package."""
    takes_tasks = arguments[:1] and arguments[0] in ("run", "ls", "validate")
    if not takes_tasks or any(word.partition("=")[0] == "--include_path" for word in arguments):
        return list(arguments)
    return [*arguments, "--include_path", str(TASKS)]


def main() -> int:
    """Runs lm-eval. Returns the exit code: 2 after an error of the user, in one line."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        echo_error("error", "lm_eval is not installed. Install it: pip install 'moe-cli[eval]'")
        return 2
    register()
    sys.argv = ["lm-eval", *with_tasks(sys.argv[1:])]
    try:
        cli_evaluate()
    except MoeError as error:
        echo_error("error", str(error))
        return 2
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        echo_error("error", f"{error}. List them: python -m moe_cli.harness ls tasks")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
