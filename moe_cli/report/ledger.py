"""How often is each validation set compared on? Counts over the outputs folder, from the looks of all sweeps.

The record `looks` in the sweep.json of each sweep is the only source, see looks.py. The hash of the data is that of the
run that a look names. Verdicts allow for the comparisons of their own report (Holm), and nothing allows for those of
other sweeps on the same validation set: these counts show them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moe_cli.files.reading import read_json
from moe_cli.formatting import plural, sanitise
from moe_cli.report.looks import seeds_of
from moe_cli.report.run_row import RunRow
from moe_cli.report.sweep_record import entries, read_record
from moe_cli.runs.lookup import list_runs

# Without any difference, one of this many comparisons is false at 5 % on average.
MANY_COMPARISONS = 20


@dataclass(frozen=True)
class ValidationUse:
    """How often one validation set was compared on.

    Attributes:
        data: the hash of the data; None for runs that were removed, or do not say.
        corpus: the name of the data; "" if unknown.
        sweeps: the sweeps that were looked at, in order of name.
        looks: the looks at their verdicts, each with more seeds than before.
        comparisons: the configurations compared, each once for each sweep and baseline.
        verdicts: the verdicts read: the comparisons of all looks with more seeds than before.
    """

    data: str | None
    corpus: str
    sweeps: tuple[str, ...]
    looks: int
    comparisons: int
    verdicts: int

    @property
    def is_many(self) -> bool:
        """Returns whether several sweeps made MANY_COMPARISONS or more on it."""
        return self.data is not None and len(self.sweeps) > 1 and self.comparisons >= MANY_COMPARISONS


@dataclass
class _Count:
    """Distinct sweeps, looks, comparisons and verdicts on one validation set, so that no record counts twice."""

    corpus: str = ""
    sweeps: set[str] = field(default_factory=set)
    looks: set[tuple[str, str]] = field(default_factory=set)
    comparisons: set[tuple[str, str, str]] = field(default_factory=set)
    verdicts: set[tuple[str, str, str, int]] = field(default_factory=set)


def read_ledger(outputs: Path, known: Sequence[RunRow] = ()) -> list[ValidationUse]:
    """Returns the use of each validation set in the outputs folder, the most used first. Damaged records are skipped.

    Args:
        known: runs that are already read, so that their files need not be read again.
    """
    data = {run.path: (run.corpus_sha256, run.corpus) for run in known}
    folders: dict[Path, set[str]] = {}
    for run in list_runs(outputs):
        folders.setdefault(run.path.parent, set()).add(run.id)
    counts: dict[str | None, _Count] = {}
    for folder, names in folders.items():
        for look in entries(read_record(folder), "looks"):
            baseline = json.dumps(look.get("baseline"), sort_keys=True)
            seeds = seeds_of(look)
            for name, number in seeds.items():
                digest, corpus = _data_of(folder / name, data) if name in names else (None, None)
                count = counts.setdefault(digest, _Count())
                count.corpus = count.corpus or corpus or ""
                count.sweeps.add(folder.name)
                count.looks.add((str(folder), json.dumps([baseline, seeds], sort_keys=True)))
                count.comparisons.add((str(folder), name, baseline))
                count.verdicts.add((str(folder), name, baseline, number))
    found = [
        ValidationUse(
            digest,
            count.corpus,
            tuple(sorted(count.sweeps)),
            len(count.looks),
            len(count.comparisons),
            len(count.verdicts),
        )
        for digest, count in counts.items()
    ]
    return sorted(found, key=lambda use: (use.data is None, -use.comparisons, use.data or ""))


def _data_of(path: Path, data: dict[str, tuple[str | None, str | None]]) -> tuple[str | None, str | None]:
    """Returns the hash and the name of the data of a run; each run is read once."""
    if str(path) not in data:
        content = read_json(path / "summary.json") or {}
        digest, corpus = content.get("corpus_sha256"), content.get("corpus")
        data[str(path)] = (
            digest if isinstance(digest, str) else None,
            corpus if isinstance(corpus, str) else None,
        )
    return data[str(path)]


def ledger_sentences(uses: Sequence[ValidationUse], runs: Sequence[RunRow]) -> list[str]:
    """Returns a sentence for each validation set of these runs that was used for many comparisons."""
    shown = {run.corpus_sha256 for run in runs}
    return [
        f"The validation set of {data_name(use)} was used for {plural(use.comparisons, 'comparison')} in "
        f"{plural(len(use.sweeps), 'sweep')}; verdicts allow for those of this report alone. See: moe runs ledger"
        for use in uses
        if use.is_many and use.data in shown
    ]


def data_name(use: ValidationUse) -> str:
    """Returns the name and the beginning of the hash of the data: python (29845f)."""
    if use.data is None:
        return "unknown data"
    return f"{sanitise(use.corpus or 'data')} ({sanitise(use.data)[:6]})"
