"""Comparison of two runs: settings, results, curves, and whether their results are comparable."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moe_cli.config.build import flatten_dict
from moe_cli.files.reading import number_in
from moe_cli.formatting import count
from moe_cli.metrics import BY_KEY, LOSS, ROUTING, SIZE, SPEED, eval_windows, keys_of
from moe_cli.report.comparability import TOKENIZER_SETTINGS, budget_aspect, data_aspect, validation_aspect
from moe_cli.report.curves import tokens_per_step
from moe_cli.report.expert_usage import expert_load
from moe_cli.runs.curves import Curve, validation_curves
from moe_cli.runs.folder import Run
from moe_cli.runs.status import RunStatus, read_status

# Not comparable between different texts.
LOSS_METRICS = keys_of(LOSS)
PER_TOKEN = tuple(key for key in LOSS_METRICS if key != "val_bpb")
# The metrics shown, in this order. Sizes were chosen: a smaller one is not better.
SHOWN = keys_of(LOSS, SIZE, SPEED, ROUTING)


@dataclass(frozen=True)
class MetricDifference:
    """One metric of both runs.

    Attributes:
        verdict: `better` or `worse`, of B against A; "" if the metric has no better direction.
    """

    name: str
    a: float | None
    b: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def relative(self) -> float | None:
        return self.difference / abs(self.a) if self.difference is not None and self.a else None


@dataclass(frozen=True)
class RunComparison:
    """The comparison of run A with run B.

    Attributes:
        settings: those that differ, with the value of A and of B; None where a run has no such setting.
        caveats: the reasons why results are not comparable; empty if they are.
    """

    a: RunStatus
    b: RunStatus
    settings: dict[str, tuple[Any, Any]]
    measures: list[MetricDifference]
    caveats: list[str]

    def record(self) -> dict[str, Any]:
        """Returns the comparison as a JSON object."""
        return {
            "a": self.a.run.id,
            "b": self.b.run.id,
            "caveats": self.caveats,
            "settings": {key: {"a": a, "b": b} for key, (a, b) in self.settings.items()},
            "metrics": {
                measure.name: {
                    "a": measure.a,
                    "b": measure.b,
                    "difference": measure.difference,
                    "relative": measure.relative,
                    "b_is": measure.verdict or None,
                }
                for measure in self.measures
            },
            "curves": {
                name.lower(): [{"tokens": int(x), curve.result: y} for x, y in curve.points]
                for name, curve in curves_over_tokens(self).items()
            },
            "tokens_per_expert": {
                name: {str(layer): load for layer, load in expert_load(run).items()}
                for name, run in (("a", self.a.run), ("b", self.b.run))
            },
        }


def compare_runs(first: Run, second: Run) -> RunComparison:
    """Compares two runs; the newest estimates are the results of one that is not complete."""
    a, b = read_status(first), read_status(second)
    configs = flatten_dict(first.config_dict()), flatten_dict(second.config_dict())
    names = dict.fromkeys([*configs[0], *configs[1]])
    settings = {
        key: (configs[0].get(key), configs[1].get(key)) for key in names if configs[0].get(key) != configs[1].get(key)
    }
    caveats, meaningless = _caveats((a, b), configs, settings)
    results = _results(a), _results(b)
    measures = []
    for name in SHOWN:
        pair = results[0].get(name), results[1].get(name)
        if pair != (None, None):
            measures.append(MetricDifference(name, *pair, "" if name in meaningless else _verdict(name, *pair)))
    return RunComparison(a, b, settings, measures, caveats)


def _results(status: RunStatus) -> Mapping[str, float | None]:
    newest = {
        "val_bpb": status.val_bpb,
        "val_loss": status.val_loss,
        "train_loss": status.train_loss,
        "tokens_per_second": status.tokens_per_second,
        "max_violation": status.max_violation,
        "dead_experts": status.dead_experts,
        "steps": float(status.step),
    }
    return {**newest, **{key: number_in(value) for key, value in status.results.items()}}


def _verdict(name: str, a: float | None, b: float | None) -> str:
    metric = BY_KEY[name]
    if a is None or b is None or a == b or not metric.direction or metric.kind == SIZE:
        return ""
    return "better" if (b - a) * metric.direction > 0 else "worse"


def _caveats(
    runs: Sequence[RunStatus], configs: Sequence[Mapping[str, Any]], differing: Collection[str]
) -> tuple[list[str], set[str]]:
    """Returns the reasons why two runs are not comparable, and the metrics whose difference is then meaningless."""
    caveats, meaningless = [], set[str]()
    texts = [_text(status) for status in runs]
    if None in texts:
        texts = ["unknown", "unknown"]
    data = [data_aspect(*pair) for pair in zip(configs, texts, strict=True)]
    if data[0] != data[1] or validation_aspect(configs[0]) != validation_aspect(configs[1]):
        cause = "learned different tasks" if data[0][1] != data[1][1] else "learned from different texts"
        caveats.append(f"they {cause}: no loss of one says anything about the other")
        meaningless |= set(LOSS_METRICS)
    if not {*TOKENIZER_SETTINGS}.isdisjoint(differing):
        caveats.append("their tokens differ: losses per token cannot be compared, bits per byte can")
        meaningless |= set(PER_TOKEN)
    if eval_windows(configs[0]) != eval_windows(configs[1]):
        caveats.append(
            "their validation tokens have unlike contexts: give both the same eval.context_length and eval.stride"
        )
        meaningless |= set(LOSS_METRICS) - {"train_loss"}
    tokens = [number_in(status.results.get("tokens")) for status in runs]
    budgets = [budget_aspect(*pair) for pair in zip(configs, tokens, strict=True)]
    if None not in tokens and budgets[0] != budgets[1]:
        caveats.append(
            f"they learned from {count(tokens[0] or 0)} and {count(tokens[1] or 0)} tokens: different budgets"
        )
        meaningless |= set(LOSS_METRICS)
    unfinished = [name for name, status in zip("AB", runs, strict=True) if not status.results]
    if unfinished:
        caveats.append(
            f"{' and '.join(unfinished)} {'is' if len(unfinished) == 1 else 'are'} not complete: "
            "its results are estimates on part of the validation text"
        )
        meaningless |= set(LOSS_METRICS)
    return caveats, meaningless


def _text(status: RunStatus) -> Any:
    corpus = status.run.meta().get("corpus")
    return status.results.get("corpus_sha256") or (corpus.get("sha256") if isinstance(corpus, dict) else None)


def curves_over_tokens(comparison: RunComparison) -> dict[str, Curve]:
    """Returns the curves of A and B in one unit and over tokens, so that batches of different sizes compare."""
    runs = {"A": comparison.a.run, "B": comparison.b.run}
    found = {}
    for (name, run), curve in zip(runs.items(), validation_curves(list(runs.values())), strict=True):
        per_step = tokens_per_step(run) or 1
        found[name] = replace(curve, points=tuple((step * per_step, value) for step, value in curve.points))
    return found
