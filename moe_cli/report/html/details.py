"""The curves of runs and what their experts did, thinned so that a page of any number of runs stays small."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_cli.formatting import plural, printable
from moe_cli.report.aggregate import Row
from moe_cli.report.expert_usage import LayerHealth, health
from moe_cli.report.html.thin import rounded, thinned
from moe_cli.report.long_format import drawn_curves
from moe_cli.report.render.expert_usage import spelled
from moe_cli.runs.folder import COMPLETED, Run

# With all of these a page has about 1.5 MB.
MOST_POINTS, MOST_CELLS, MOST_DETAILS = 40_000, 80_000, 80_000
MOST_RUNS = 400
LONGEST_CURVE, SHORTEST_CURVE = 150, 16
MOST_DOMAINS, MOST_TOKENS = 12, 5
# The curves that are drawn: their name in metrics.jsonl and what it means.
METRICS = {
    "val/bpb": "validation, bits per byte (part of the split)",
    "val/loss": "validation, nats per token (part of the split)",
    "train/loss": "training loss, nats per token",
    "moe/max_violation": "worst load above the mean in training (MaxVio)",
    "val/max_violation": "worst load above the mean in validation (MaxVio)",
    "val/dead_experts": "dead experts, share",
    "val/routing_entropy": "routing entropy, share of the most possible",
    "moe/dropped_fraction": "dropped in training, share of assignments",
    "train/aux_loss": "balancing loss",
    "train/grad_norm": "norm of the gradient",
    "lr": "learning rate",
}


def curve_content(runs: Sequence[Sequence[Row]]) -> tuple[dict[str, Any], list[str]]:
    """The curves of the runs of each row, and a line on what was left out."""
    chosen = [(index, run) for index, members in enumerate(runs) for run in members]
    kept = chosen[:MOST_RUNS]
    frame = drawn_curves([Run(Path(run["path"])) for _, run in kept], METRICS)
    frame = frame[frame["metric"].isin(list(METRICS)) & frame["value"].notna() & frame["tokens"].notna()]
    groups = {key: part for key, part in frame.groupby(["group", "run", "metric"], sort=False)}  # noqa: C416
    metrics = [name for name in METRICS if any(key[2] == name for key in groups)]
    most = min(LONGEST_CURVE, max(SHORTEST_CURVE, MOST_POINTS // max(1, len(groups))))
    series = []
    for row, run in kept:
        for number, metric in enumerate(metrics):
            part = groups.get((run["group"], run["run"], metric))
            if part is None:
                continue
            steps, tokens = [int(each) for each in part["step"]], [int(each) for each in part["tokens"]]
            at, values = thinned(steps, part["value"].tolist(), most)
            by_step = dict(zip(steps, tokens, strict=True))
            series.append({"row": row, "metric": number, "step": at, "tokens": [by_step[step] for step in at],
                           "value": [rounded(value) for value in values]})  # fmt: skip
    left = len(chosen) - len(kept)
    notes = (
        [f"Curves of the first {MOST_RUNS} runs only: the page would be too large with those of {left} more."]
        if left
        else []
    )
    return {"metrics": [METRICS[name] for name in metrics], "series": series}, notes


def expert_content(runs: Sequence[Sequence[Row]]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the experts of each sparse run did, as far as there is room, and a line on what was left out."""
    cells, details = MOST_CELLS, MOST_DETAILS
    content: list[dict[str, Any]] = []
    left = 0
    for index, members in enumerate(runs):
        for run in members:
            if run["status"] != COMPLETED or run["expert"] == 1:
                continue
            if cells <= 0:
                left += 1
                continue
            layers = health(Run(Path(run["path"]))).layers
            if not layers:
                continue
            cells -= sum(len(layer.load) for layer in layers)
            shown = []
            for layer in layers:
                size = _size(layer)
                shown.append(_layer(layer, size <= details))
                details -= size if size <= details else 0
            content.append({"row": index, "seed": run["seed"], "layers": shown})
    notes = [f"Experts of {plural(left, 'run')} are left out: the page would be too large."] if left else []
    return content, notes


def _size(layer: LayerHealth) -> int:
    domains = min(MOST_DOMAINS, len(layer.by_domain)) * len(layer.load)
    return len(layer.co_activation) ** 2 + domains + MOST_TOKENS * 2 * len(layer.top_tokens)


def _layer(layer: LayerHealth, whole: bool) -> dict[str, Any]:
    domains = sorted(layer.by_domain.items(), key=lambda item: -max(item[1]))[:MOST_DOMAINS]
    pairs = [
        [0 if i == j else round(100 * cell) for j, cell in enumerate(row)] for i, row in enumerate(layer.co_activation)
    ]
    return {
        "layer": layer.layer,
        "load": [round(load, 2) for load in layer.load],
        "pairs": pairs if whole and any(map(any, pairs)) else [],
        "domains": [[printable(name)[:60], [round(100 * share) for share in row]] for name, row in domains] if whole else [],
        "tokens": [[f"{spelled(token)} {_share(token.times, token.total)}" for token in row[:MOST_TOKENS]]
                   for row in layer.top_tokens] if whole else [],
    }  # fmt: skip


def _share(times: int, total: int) -> str:
    return f"{100 * times / total:.0f} %" if total else "-"
