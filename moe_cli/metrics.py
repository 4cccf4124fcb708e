"""What the tasks measure beside the loss: how each is called, written, and which way is better."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moe_cli.formatting import count, percent


@dataclass(frozen=True)
class Measure:
    """Attributes:
    label: as people read it.
    better: -1, low; 1, high.
    share: written in percent; else with three digits.
    """

    label: str
    better: int
    share: bool = False

    def write(self, value: float) -> str:
        return percent(value) if self.share else f"{value:z.3f}"


# What an answer is given for, by task: the loss is so many nats each.
TARGETS = {"causal_lm": "token", "masked_lm": "masked token", "span_corruption": "target token", "images": "image",
           "ratings": "pair"}  # fmt: skip
# By their names in summary.json without `val_`.
MEASURES = {
    "accuracy": Measure("accuracy", 1, share=True),
    "calibration_error": Measure("calibration error", -1, share=True),
    "rmse": Measure("RMSE", -1),
    "auc": Measure("AUC", 1),
    "pseudo_perplexity": Measure("pseudo-perplexity", -1),
}
# What those of a data set are held against, by their names in summary.json, see `moe_cli.data.ratings.references`.
REFERENCES = {
    "majority_accuracy": Measure("accuracy of the commonest class", 1, share=True),
    "commonest_accuracy": Measure("accuracy of the commonest token", 1, share=True),
    "unigram_loss": Measure("nats by how frequent tokens are", -1),
    "mean_rmse": Measure("RMSE of the mean", -1),
    "biases_rmse": Measure("of user and item means", -1),
    "best_rmse": Measure("at best", -1),
    "best_auc": Measure("AUC at best", 1),
}


@dataclass(frozen=True)
class RoutingMeasure:
    """How a text's routing is measured, in the words of docs/reference/metrics.md.

    Attributes:
        label: as a column's heading.
        range: from what to what it goes.
        meaning: what it is, and what its ends say.
    """

    label: str
    range: str
    meaning: str


# By their names in summary.json; of the load, in `moe runs health`.
ROUTING = {
    "load": RoutingMeasure("load", "0 to E / K", "an expert's assignments over a fair share of them: 1 is fair, 0 is never asked, E / K is asked by every token"),
    "max_violation": RoutingMeasure("MaxVio", "0 to E / K - 1", "(largest load - mean) / mean: 0 is best, all experts are asked alike; at most E / K - 1, every token asks the same K"),
    "routing_entropy": RoutingMeasure("entropy", "0 to 1", "mean entropy of a token's routing probabilities / ln E: 0 is sure, 1 is undecided"),
    "dropped_fraction": RoutingMeasure("dropped", "0 to 1", "share of assignments without room: 0 is best and what dropless means, 1 is all of them"),
}  # fmt: skip


def target(config: Mapping[str, Any]) -> str:
    """What the answers of a run are given for, from its config.json."""
    task = config.get("task")
    return target_of(task.get("name") if isinstance(task, dict) else None)


def target_of(task: Any) -> str:
    """What the answers of a task are given for; runs from before there were tasks guess tokens."""
    return TARGETS.get(task or "causal_lm", "target") if isinstance(task, str | None) else "target"


def eval_windows(settings: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What decides from how much text a validation token is predicted, of settings by their dotted names: the tokens of a
    window, those to the next one, and how documents are packed. None: the data are no text.
    """
    if settings.get("task.name") in ("images", "ratings"):
        return None
    length = settings.get("eval.context_length") or settings.get("model.context_length")
    return (length, settings.get("eval.stride") or length, settings.get("data.packing") or "concat")


def sees_later_tokens(drop: str) -> str:
    """What to say of a capacity-limited loss of a causal model where `drop` is not `causal`."""
    return (
        f"drop={drop} sees later tokens: experts have room for the whole batch, so a token may lose its place to one after "
        "it. drop=causal does not"
    )


def written(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Those of a task's measures that are among the values: accuracy 31 %."""
    known = {name: values.get(prefix + name) for name in MEASURES}
    return [f"{MEASURES[name].label} {MEASURES[name].write(value)}"
            for name, value in known.items() if isinstance(value, int | float)]  # fmt: skip


def references(values: Mapping[str, Any]) -> list[str]:
    """Those that are among the values: RMSE of the mean 0.931."""
    return [f"{measure.label} {measure.write(values[name])}" for name, measure in REFERENCES.items()
            if isinstance(values.get(name), int | float)]  # fmt: skip


# Sizes and FLOPs that differ by less count as equal: widths of experts are rounded.
EQUAL = 1.02


def unequal_flops(
    trainings: Iterable[tuple[float | None, float | None, float | None]], *, can_match: bool
) -> str | None:
    """A note that trainings of equal active parameters and tokens differ in FLOPs; None where they do not.

    Args:
        trainings: of each its active parameters, its tokens (None: a time) and its FLOPs per token, model and optimizer.
        can_match: whether some have experts that match=flops would size otherwise.
    """
    known = sorted((tokens or 0, size, flops) for size, tokens, flops in trainings if size and flops)
    alike: list[list[tuple[float, float, float]]] = []
    for each in known:
        first = alike[-1][0] if alike else None
        if first and first[0] == each[0] and each[1] <= EQUAL * first[1]:
            alike[-1].append(each)
        else:
            alike.append([each])
    spans = [(min(flops), max(flops)) for group in alike if (flops := [each[2] for each in group])]
    least, most = max(spans, key=lambda span: span[1] / span[0], default=(1.0, 1.0))
    if most <= EQUAL * least:
        return None
    return (
        f"equal active parameters are not equal FLOPs: a training token costs {count(least)} to {count(most)} "
        f"({most / least:.2g}x), optimizer included{'. For equal FLOPs: match=flops' if can_match else ''}"
    )
