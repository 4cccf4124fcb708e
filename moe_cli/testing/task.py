"""Does a task on texts keep the promises of one? B sequences, L positions, V tokens."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from moe_cli.config.compose import load_config
from moe_cli.config.data import TextFilesConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import replace_unchecked
from moe_cli.config.tasks import TaskConfig
from moe_cli.data.load import Data, load_data
from moe_cli.errors import MoeError
from moe_cli.models.registry import make_model
from moe_cli.plugins import Plugin
from moe_cli.tasks.base import Task
from moe_cli.tasks.registry import make_task
from moe_cli.testing.promise import equal, expected_to_run, require

B, L = 4, 16
TEXT = "The quick brown fox jumps over the lazy dog. " * 200
SIZES = ("num_layers=4", "d_model=16", "d_ff=32", f"context_length={L}")


@dataclass(frozen=True)
class _Case:
    """A task under test: its configuration, and a short text."""

    name: str
    config: RunConfig
    data: Data

    def task(self, **changes: Any) -> Task:
        with expected_to_run(self.name, "building it"):
            return make_task(replace(self.config, **changes), self.data)

    def model(self, task: Task) -> torch.nn.Module:
        return make_model(self.config, task.vocab_size).eval()

    def train_batch(self, task: Task, *arguments: int) -> Any:
        with expected_to_run(self.name, f"train_batch{arguments}"):
            return task.train_batch(*arguments)

    def val_batches(self, task: Task) -> list[Any]:
        with expected_to_run(self.name, "val_batches"):
            return list(task.val_batches(B))


def check_task(task: Plugin | TaskConfig | str) -> None:
    """Checks a task on texts: batches by seed and index, their parts, the validation split, loss, score and metrics.

    Args:
        task: a plug-in, the settings of a task, or a name.

    Raises:
        AssertionError: the first promise that is broken.
    """
    with TemporaryDirectory() as folder:
        case = _case(task, Path(folder))
        for check in CHECKS:
            check(case)


def _case(task: Any, folder: Path) -> _Case:
    name = task if isinstance(task, str) else task.name
    (folder / "text.txt").write_text(TEXT)
    overrides = ["expert=1", f"data.path={folder / 'text.txt'}", *(f"model.{size}" for size in SIZES)]
    try:
        if isinstance(task, Plugin):
            assert task.config is not None, f"{name}: it is no plug-in of a task."
            task = task.config()
        kind = task if isinstance(task, str) else task.kind
        config = load_config([*overrides, f"task={kind}"]).config
        config = config if isinstance(task, str) else replace_unchecked(config, task=task)
        assert isinstance(config.data, TextFilesConfig), f"{name}: it is no task on texts."
        return _Case(name, config, load_data(config.data, L, folder))
    except MoeError as error:
        raise AssertionError(f"{name}: its settings cannot be resolved: {error}") from None


def _tensors(batch: Any) -> dict[str, Tensor]:
    found = {entry.name: getattr(batch, entry.name) for entry in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _same(first: Any, second: Any) -> bool:
    one, other = _tensors(first), _tensors(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_vocabulary(case: _Case) -> None:
    """The task has the ids of the data, and `special_tokens` more."""
    expected = int(case.data.meta["vocab_size"]) + case.config.task.special_tokens
    found = case.task().vocab_size
    require(found == expected, case.name, f"vocab_size is {found}, and data and special_tokens have {expected} ids.")


def check_training_batches(case: _Case) -> None:
    """A batch depends on the seed and its index alone; parts of it make up the whole."""
    first, second = case.task(), case.task()
    case.train_batch(first, 3, B)  # what was read before has no influence
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = case.train_batch(second, 0, B)
    whole = case.train_batch(first, 0, B)
    require(_same(whole, again), case.name, "a training batch depends on more than the seed and its index.")
    require(whole.num_examples == B, case.name, f"a batch of {B} examples has {whole.num_examples}.")
    parts = [_tensors(case.train_batch(first, 0, B, part, 2)) for part in range(2)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    is_whole = all(torch.equal(value, joined[name]) for name, value in _tensors(whole).items())
    require(is_whole, case.name, "two halves of a training batch are not the batch.")


def check_validation(case: _Case) -> None:
    """The validation split is the same each time and for every seed, and a part of it is smaller."""
    task = case.task()
    first = case.val_batches(task)
    for other in (case.val_batches(task), case.val_batches(case.task(seed=case.config.seed + 1))):
        is_same = len(first) == len(other) and all(_same(*pair) for pair in zip(first, other, strict=True))
        require(is_same, case.name, "the validation split differs from one evaluation or seed to another.")
    targets = sum(batch.num_targets for batch in first)
    require(targets > 0, case.name, "the validation split has no targets.")
    with expected_to_run(case.name, "val_batches with max_tokens"):
        part = sum(batch.num_targets for batch in task.val_batches(B, max_tokens=2 * L))
    require(0 < part < targets, case.name, f"max_tokens={2 * L} gives {part} of {targets} targets.")


def check_loss(case: _Case) -> None:
    """The loss is a finite scalar with a gradient; the score of a batch has the same loss and routed ids."""
    task = case.task()
    model = case.model(task)
    batch = case.train_batch(task, 0, B)
    with expected_to_run(case.name, "loss"):
        loss, _ = task.loss(model, batch)
    require(loss.ndim == 0 and bool(loss.isfinite()), case.name, "the loss is no finite scalar.")
    require(loss.requires_grad, case.name, "the loss has no gradient: nothing is learned.")
    batch = case.val_batches(task)[0]
    with expected_to_run(case.name, "score"), torch.no_grad():
        expected, scored = task.loss(model, batch)[0], task.score(model, batch)
    require(equal(expected, scored.loss), case.name, "score and loss differ for the same batch.")


def check_metrics(case: _Case) -> None:
    """The metrics of a batch are finite numbers."""
    task = case.task()
    model, batch = case.model(task), case.val_batches(task)[0]
    with expected_to_run(case.name, "metrics"), torch.no_grad():
        found = task.metrics(task.score(model, batch).sums, batch.num_targets)
        numbers = all(torch.isfinite(torch.tensor(float(value))) for value in found.values())
    require(numbers, case.name, "a metric is not a finite number.")


CHECKS: tuple[Callable[[_Case], None], ...] = (
    check_vocabulary,
    check_training_batches,
    check_validation,
    check_loss,
    check_metrics,
)
