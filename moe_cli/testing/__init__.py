"""The conformance kit: does a router, a loss, a model, a task, an executor or a metric keep what others rely on?

Each function raises AssertionError with one sentence at the first broken promise. No test framework is needed:

    from moe_cli.testing import check_router
    check_router(MyRouter)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_cli.testing.balance import check_balance
    from moe_cli.testing.executor import check_executor
    from moe_cli.testing.metric import check_metric
    from moe_cli.testing.model import check_model
    from moe_cli.testing.router import check_router
    from moe_cli.testing.task import check_task

__all__ = ["check_balance", "check_executor", "check_metric", "check_model", "check_router", "check_task"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'moe_cli.testing' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"moe_cli.testing.{name.removeprefix('check_')}"), name)
