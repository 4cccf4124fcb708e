"""Trials of a search, read from its journal, and the importance of each setting. Imports Optuna on first use.

The journal is search.journal in the sweep's folder. Optuna writes it, one JSON line per event.
"""

import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moe_cli.errors import ConfigError, MoeError
from moe_cli.files.reading import Unreadable, open_regular
from moe_cli.files.writing import append, edit, hold

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

JOURNAL = "search.journal"
STUDY = "search"
# The attribute of a study with the settings that all its trials share.
IDENTITY = "identity"
# With fewer completed trials, no importances are computed.
MIN_TRIALS = 8
# The fraction of trials that counts as good. A tenth of twenty trials would be only two.
TOP_QUANTILE = 0.25
# The largest journal that is read: ten thousand trials take some ten million bytes.
MAX_JOURNAL_BYTES = 2**28
_MOVE = "Move it away: the same command then begins a new search, and runs that are there count."
# What Optuna raises on a journal that it did not write so.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RecursionError)


def import_optuna() -> ModuleType:
    """Imports Optuna, with errors as its only output. Raises MoeError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("a search needs Optuna, which is not installed: pip install 'moe-cli[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class JournalLock:
    """Held by Optuna while it appends to the journal, in place of its own lock, which outlives a killed process.

    What a killed process has half written at the end is cut off, for the next line would be joined to it.
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self._lock: Any = None

    def acquire(self) -> bool:
        self._lock = hold(self.journal.with_name(".journal.lock"))
        self._lock.__enter__()
        with edit(self.journal) as file:
            file.truncate(_end_of_lines(file))
        return True

    def release(self) -> None:
        self._lock.__exit__(None, None, None)


def _end_of_lines(file: Any) -> int:
    """Returns the offset of the end of the last complete line."""
    end: int = file.seek(0, os.SEEK_END)
    if not end:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    file.seek(0)
    return int(file.read().rfind(b"\n")) + 1


def open_journal(folder: Path) -> "JournalStorage":
    """Returns the journal in a sweep's folder, made if it is not there. Raises MoeError: it cannot be read, or made."""
    import_optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    with suppress(FileNotFoundError):
        _check_journal(path)
    lock: Any = JournalLock(path)
    try:
        append(path).close()  # Optuna opens it by its name
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise MoeError(f"{path} cannot be used: {error.strerror}.") from None
    except _DAMAGE:
        raise MoeError(f"{path} is damaged. {_MOVE}") from None


def _check_journal(path: Path) -> None:
    """Raises FileNotFoundError if the journal does not exist, and MoeError if it cannot be read."""
    try:
        open_regular(path, MAX_JOURNAL_BYTES).close()
    except Unreadable as problem:
        raise MoeError(f"{path} {problem}. {_MOVE}") from None


def load_study(folder: Path) -> "Study | None":
    """Returns the search of a sweep's folder; None if there is none. Raises MoeError if it cannot be read."""
    try:
        _check_journal(folder / JOURNAL)
    except FileNotFoundError:
        return None
    optuna = import_optuna()
    storage = open_journal(folder)
    if not storage.get_all_studies():
        return None
    study: Study = optuna.load_study(study_name=STUDY, storage=storage)
    return study


def objectives_of(study: "Study") -> list[str]:
    """Returns the names of the results that are searched for."""
    names = study.user_attrs.get(IDENTITY, {}).get("objectives")
    return [str(name) for name in names] if names else [f"value {index}" for index in range(len(study.directions))]


def importances(study: "Study") -> dict[str, dict[str, float]]:
    """Computes each setting's share of the importance for each objective, the largest first. The shares sum to 1.

    The method is PED-ANOVA (arXiv:2304.10255): the difference between the settings of the best quarter of the trials
    and those of all trials. The result is empty with fewer than MIN_TRIALS completed trials, or if all are equal.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(completed) < MIN_TRIALS:
        return {}
    found = {}
    for index, name in enumerate(objectives_of(study)):
        sign = -1.0 if study.directions[index] == StudyDirection.MAXIMIZE else 1.0
        if len({trial.values[index] for trial in completed}) < 2:
            continue

        def target(trial: "FrozenTrial", index: int = index, sign: float = sign) -> float:
            return sign * float(trial.values[index])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that smaller values are better, which `sign` handles
            shares = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP_QUANTILE), target=target
            )
        found[name] = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return found


def importance_lines(found: dict[str, dict[str, float]]) -> list[str]:
    """Returns a line for each objective: importance for val_bpb: optim.lr 0.71, k 0.18."""
    return [
        f"importance for {name}: {', '.join(f'{key} {share:.2f}' for key, share in shares.items())}"
        for name, shares in found.items()
    ]


def load_importances(paths: Iterable[str]) -> tuple[dict[str, dict[str, dict[str, float]]], tuple[str, ...]]:
    """Returns the importances of every search that these run folders belong to, by the name of the sweep.

    Also returns notes on searches whose importances are missing, so that the report can continue without them.
    """
    found, notes = {}, []
    for folder in map(Path, dict.fromkeys(os.path.dirname(path) for path in paths)):
        try:
            study = load_study(folder)
            if study is not None:
                found[folder.name] = importances(study)
        except MoeError as error:
            notes.append(f"importances of {folder.name}: {error}")
        except _DAMAGE:
            notes.append(f"importances of {folder.name}: {folder / JOURNAL} is damaged.")
    return found, tuple(notes)
