"""What the tasks measure beside the loss: how each is called, written, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_cli.numbers import percent


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
        return percent(value) if self.share else f"{value:.3f}"


# What an answer is given for, by task: the loss is so many nats each.
TARGETS = {"causal_lm": "token", "masked_lm": "masked token", "images": "image"}
# By their names in summary.json without `val_`.
MEASURES = {
    "accuracy": Measure("accuracy", 1, share=True),
    "calibration_error": Measure("calibration error", -1, share=True),
    "pseudo_perplexity": Measure("pseudo-perplexity", -1),
}


def target(config: Mapping[str, Any]) -> str:
    """What the answers of a run are given for, from its config.json."""
    task = config.get("task")
    return target_of(task.get("name") if isinstance(task, dict) else None)


def target_of(task: Any) -> str:
    """What the answers of a task are given for; runs from before there were tasks guess tokens."""
    return TARGETS.get(task or "causal_lm", "target") if isinstance(task, str | None) else "target"


def written(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Those of a task's measures that are among the values: accuracy 31 %."""
    known = {name: values.get(prefix + name) for name in MEASURES}
    return [f"{MEASURES[name].label} {MEASURES[name].write(value)}"
            for name, value in known.items() if isinstance(value, int | float)]  # fmt: skip
