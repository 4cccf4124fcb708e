"""Does a metric of the report keep the promises of one?"""

from moe_cli.errors import ConfigError
from moe_cli.metrics import BY_KEY, Metric
from moe_cli.plugins import Plugin
from moe_cli.report.metric_plugins import compute_metric
from moe_cli.report.run_row import Results, RunRow, Value
from moe_cli.runs.folder import COMPLETED
from moe_cli.testing.promise import expected_to_run, require

_SETTINGS: dict[str, Value] = {
    "expert": 8,
    "k": 2,
    "router": "topk",
    "balance": "switch",
    "seed": 0,
    "model.d_model": 96,
}
_RESULTS = {"val_loss": 1.2, "val_bpb": 1.7, "params": 1e6, "active_params": 4e5, "tokens": 1e7, "seconds": 60.0}
FORMATS = ("number", "count", "bytes", "percent", "signed percent")


def check_metric(metric: Plugin) -> None:
    """Checks a metric: its entry in the registry, and that it takes runs with few results, twice the same.

    Raises:
        AssertionError: the first promise that is broken.
    """
    name, entry = metric.name, metric.metric
    require(isinstance(entry, Metric), name, "it is no plug-in of a metric.")
    assert isinstance(entry, Metric)
    require(name not in BY_KEY, name, "the program has a metric of this name, which comes first.")
    require(entry.direction in (-1, 0, 1), name, f"its direction is {entry.direction}, not -1, 0 or 1.")
    require(entry.format in FORMATS, name, f"its format is {entry.format!r}, not one of {', '.join(FORMATS)}.")
    for title in ("label", "title", "unit"):
        require(bool(str(getattr(entry, title)).strip()), name, f"its {title} is empty.")
    for results in ({}, _RESULTS):
        run = RunRow("run", "sweep", "/run", COMPLETED, None, 0.0, (), dict(_SETTINGS), {}, Results(**results))
        try:
            values = [compute_metric(run, name, metric.code()) for _ in range(2)]
        except ConfigError as error:
            raise AssertionError(str(error)) from None
        require(values[0] == values[1], name, "it is not the same twice.")
        if values[0] is not None:
            with expected_to_run(name, "writing its value"):
                entry.write(values[0])
        is_unchanged = run.settings == _SETTINGS and run.results == Results(**results)
        require(is_unchanged, name, "it changes the run.")
