"""decision.json in the folder of a decision: what is fixed before its first run. Its state is in the run folders.

space, question, by, given_budget, rules, overrides, where   what is decided, and how
candidates     name, configuration, tie-break cost, and the expected seconds of a run, with those that any budget takes
limits         minutes and runs of the last command
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moe_cli.config.build import build
from moe_cli.config.run_config_json import from_dict
from moe_cli.config.schema import RunConfig
from moe_cli.decisions.plan import DENSE_NAME, DecisionPlan, make_rules
from moe_cli.decisions.terms import DECISION_FILE, Candidate, Rules
from moe_cli.errors import ConfigError
from moe_cli.files.reading import number_in, read_json, whole_number_in
from moe_cli.files.writing import hold, write_json

MAX_MINUTES = 1e7
# What is known of a candidate before the first run.
AMOUNTS = ("tie_break_cost", "seconds", "fixed_seconds")


@dataclass(frozen=True)
class LimitOptions:
    """The limits as options: minutes of wall clock, runs, or both; None means no limit of this kind."""

    minutes: float | None = None
    runs: int | None = None

    def options(self) -> list[str]:
        """Returns the limits as they are typed: --minutes 45, --runs 60."""
        minutes = [] if self.minutes is None else [f"--minutes {self.minutes:g}"]
        return minutes if self.runs is None else [*minutes, f"--runs {self.runs}"]


def make_limit_options(minutes: float | None, runs: int | None) -> LimitOptions:
    """Returns the limits of a command. Raises ConfigError for none, or for minutes that are no positive number."""
    if minutes is None and runs is None:
        raise ConfigError("give a budget: --minutes 45, or --runs 60. --dry-run prints what each stage costs.")
    if minutes is not None and not 0 < minutes <= MAX_MINUTES:
        raise ConfigError(f"--minutes {minutes:g} must be above 0 and at most {MAX_MINUTES:g}.")
    return LimitOptions(minutes, runs)


@dataclass(frozen=True)
class DecisionRecord:
    """The content of decision.json."""

    plan: DecisionPlan
    candidates: tuple[Candidate, ...]
    limits: LimitOptions
    parallel: int = 1


def read_decision(folder: Path) -> DecisionRecord | None:
    """Returns the record of a decision's folder; None if there is none.

    Raises ConfigError if it is damaged or of another version.
    """
    values = read_json(folder / DECISION_FILE)
    if values is None:
        if (folder / DECISION_FILE).exists():
            raise ConfigError(f"{folder / DECISION_FILE} cannot be read.\nRestore it, or decide again: --name NAME")
        return None
    try:
        return _parse(folder.name, values)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ConfigError(
            f"{folder / DECISION_FILE} is damaged or of another version: {str(error).splitlines()[0][:120]}\n"
            "Restore it, or decide again: --name NAME"
        ) from None


def _parse(name: str, values: dict[str, Any]) -> DecisionRecord:
    rules = make_rules(values["rules"], build(RunConfig, {"seed": values["rules"]["first_seed"]}).seed)
    found = values["candidates"]
    plan = DecisionPlan(
        name,
        str(values["space"]),
        str(values["question"]),
        {str(entry["name"]): from_dict(entry["config"]) for entry in found},
        rules,
        str(values["by"]),
        (str(values["given_budget"][0]), float(values["given_budget"][1])),
        overrides=tuple(map(str, values["overrides"])),
        where=tuple(map(str, values["where"])),
    )
    if DENSE_NAME not in plan.configs:
        raise ConfigError("it has no dense model.")
    amounts = {str(entry["name"]): tuple(_amount(entry[name]) for name in AMOUNTS) for entry in found}
    limits = values["limits"]
    return DecisionRecord(
        plan,
        make_candidates(plan, amounts),
        LimitOptions(number_in(limits.get("minutes")), whole_number_in(limits.get("runs"))),
        whole_number_in(values.get("parallel")) or 1,
    )


def _amount(value: Any) -> float:
    """Returns a finite number of at least 0. Raises ValueError for anything else."""
    number = number_in(value)
    if number is None or number < 0:
        raise ValueError(f"{value!r} is not an amount")
    return number


def make_candidates(plan: DecisionPlan, amounts: dict[str, tuple[float, ...]]) -> tuple[Candidate, ...]:
    """Returns the candidates of a plan with their `AMOUNTS`."""
    return tuple(Candidate(name, name == DENSE_NAME, *amounts[name]) for name in plan.configs)


def write_decision(folder: Path, record: DecisionRecord) -> None:
    """Writes decision.json. The first command fixes all but the limits, which are those of the last command."""
    plan = record.plan
    values = {
        "space": plan.space,
        "question": plan.question,
        "by": plan.by,
        "given_budget": list(plan.given_budget),
        "overrides": list(plan.overrides),
        "where": list(plan.where),
        "rules": asdict(plan.rules),
        "limits": asdict(record.limits),
        "parallel": record.parallel,
        "candidates": [
            {
                "name": candidate.name,
                **{name: getattr(candidate, name) for name in AMOUNTS},
                "config": plan.configs[candidate.name].to_dict(),
            }
            for candidate in record.candidates
        ],
    }
    with ExitStack() as stack:
        with suppress(OSError):  # file systems without locks
            stack.enter_context(hold(folder / ".decision.lock"))
        if read_json(folder / DECISION_FILE) != json.loads(json.dumps(values)):
            write_json(folder / DECISION_FILE, values)


def check_same_decision(plan: DecisionPlan, known: DecisionPlan, folder: Path) -> None:
    """Raises ConfigError if the folder holds another decision: other candidates, rules, seeds or training budget.

    The baseline's other budgets may differ: no claim depends on them.
    """
    different = [
        *(["--by"] if plan.by != known.by else []),
        *([f"train.{plan.given_budget[0]}"] if plan.given_budget != known.given_budget else []),
        *_different_rules(plan.rules, known.rules),
        *_different_candidates(plan, known),
    ]
    if different:
        raise ConfigError(
            f"{folder} holds another decision: it differs in {', '.join(different[:3])}.\n"
            f"Give this one a name of its own: --name {plan.name}-2"
        )


def _different_rules(rules: Rules, known: Rules) -> Sequence[str]:
    own, other = asdict(replace(rules, baseline_budgets=())), asdict(replace(known, baseline_budgets=()))
    return [("seed" if name == "first_seed" else name) for name in own if own[name] != other[name]]


def _different_candidates(plan: DecisionPlan, known: DecisionPlan) -> Sequence[str]:
    if plan.configs.keys() != known.configs.keys():
        new = [name for name in plan.configs if name not in known.configs]
        gone = [name for name in known.configs if name not in plan.configs]
        return [f"its candidates ({'new: ' + new[0] if new else 'without ' + gone[0]})"]
    changed = [name for name, config in plan.configs.items() if config.digest != known.configs[name].digest]
    return [f"the settings of {changed[0]}"] if changed else []
