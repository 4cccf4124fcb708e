"""moe: experiments with sparse mixtures of experts. Importing the package imports no torch.

The names below are imported when they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_cli.api.decide import decide
    from moe_cli.api.inspect_runs import explain, report_table
    from moe_cli.api.sweep import sweep
    from moe_cli.api.train import train
    from moe_cli.moe.balance import load_balancing_loss, router_z_loss
    from moe_cli.moe.layer import MoELayer
    from moe_cli.moe.sparse_expert_model import SparseExpertModel
    from moe_cli.report.load import load_runs
    from moe_cli.report.long_format import load_curves, load_routing
    from moe_cli.report.recommend.recommendation import recommend

__version__ = "0.1.0"
__all__ = [
    "MoELayer",
    "SparseExpertModel",
    "decide",
    "explain",
    "load_balancing_loss",
    "load_curves",
    "load_routing",
    "load_runs",
    "recommend",
    "report_table",
    "router_z_loss",
    "sweep",
    "train",
]

_LAZY_EXPORTS = {
    "MoELayer": "moe_cli.moe.layer",
    "SparseExpertModel": "moe_cli.moe.sparse_expert_model",
    "load_balancing_loss": "moe_cli.moe.balance",
    "router_z_loss": "moe_cli.moe.balance",
    "load_runs": "moe_cli.report.load",
    "load_curves": "moe_cli.report.long_format",
    "load_routing": "moe_cli.report.long_format",
    "recommend": "moe_cli.report.recommend.recommendation",
    "train": "moe_cli.api.train",
    "sweep": "moe_cli.api.sweep",
    "decide": "moe_cli.api.decide",
    "explain": "moe_cli.api.inspect_runs",
    "report_table": "moe_cli.api.inspect_runs",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module 'moe_cli' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LAZY_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
