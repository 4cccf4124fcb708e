"""Which runs a sweep consists of: every point composed and validated before the first one starts. Knows no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from moe_cli.config.load import Axis, Composer, load_sweep_file, parse_overrides
from moe_cli.config.parse import show
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.forecast import pin_upcycle
from moe_cli.store import Run, open_or_create_run

AD_HOC = "sweep"


@dataclass(frozen=True)
class Point:
    """One run of a sweep; the label names what varies: expert=16 k=2 seed=1."""

    label: str
    config: RunConfig


@dataclass(frozen=True)
class LeftOut:
    """A point that cannot be, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class SweepPlan:
    """Attributes:
    notes: settings the user gave that have no effect in some points.
    name: the folder under outputs/.
    question: what a named sweep answers; "" for one typed by hand.
    num_repeats: points that came to the same configuration as another, such as dense with each router.
    """

    name: str
    question: str
    points: tuple[Point, ...]
    left_out: tuple[LeftOut, ...]
    num_repeats: int
    num_seeds: int
    notes: tuple[str, ...]

    @property
    def num_configurations(self) -> int:
        return len(self.points) // self.num_seeds

    def pinned(self, outputs: Path) -> "SweepPlan":
        """With the run that points start from found in the outputs folder. Raises MoeError when it does not fit."""
        points = (replace(point, config=pin_upcycle(point.config, outputs)) for point in self.points)
        return replace(self, points=tuple(points))

    def open(self, outputs: Path) -> list[Run]:
        """The run folders of the points, made where they are missing."""
        return [open_or_create_run(outputs, self.name, point.config) for point in self.points]

    def existing(self, outputs: Path) -> list[Run]:
        """The run folders the points have or would have; nothing is made."""
        return [Run(outputs / self.name / point.config.run_id) for point in self.points]


def plan_sweep(
    words: Sequence[str], *, seeds: int | None = None, name: str | None = None, config_dir: Path | None = None
) -> SweepPlan:
    """The runs of `moe sweep WORDS`: the first word may name a file of conf/sweep, the others are settings.

    Args:
        seeds: seeds 0 to seeds - 1 for every configuration; None: what the file says, else 1.
        name: the folder under outputs/; None: the file's name, or "sweep".

    Raises:
        ConfigError: a word is wrong, or no point is left.
    """
    composer = Composer(config_dir)
    axes: dict[str, Axis] = {}
    question, file_name, file_seeds = "", None, None
    if words and "=" not in words[0]:
        file = load_sweep_file(composer, words[0])
        words, question, file_name = words[1:], file.question, file.name
        axes = {axis.key: axis for axis in file.axes}
        file_seeds = file.seeds
    axes |= {axis.key: axis for axis in parse_overrides(words)}
    if seeds is None and "seed" not in axes:
        seeds = file_seeds
    if seeds is not None and "seed" in axes:
        raise ConfigError(
            f"seed={','.join(map(show, axes['seed'].values))} and --seeds {seeds} both choose seeds: give one."
        )
    if not any(len(axis.values) > 1 for axis in axes.values()) and file_name is None and not seeds:
        raise ConfigError(
            "nothing varies. Give several values, as in: moe sweep expert=1,8 k=1,2. Or name a sweep: moe config --groups"
        )
    if "seed" not in axes:
        axes["seed"] = Axis("seed", tuple(range(seeds or 1)))
    points, left_out, repeats, notes = _points(composer, list(axes.values()))
    if not points:
        reasons = "\n".join(f"{point.label}: {point.reason}" for point in left_out[:2])
        raise ConfigError(f"no point of this sweep can be run.\n{reasons}")
    folder = name or file_name or AD_HOC
    if Path(folder).name != folder or folder.startswith("."):
        raise ConfigError(f"--name {folder} must be a plain folder name.")
    return SweepPlan(folder, question, tuple(points), tuple(left_out), repeats, len(set(axes["seed"].values)), notes)


def _points(composer: Composer, axes: list[Axis]) -> tuple[list[Point], list[LeftOut], int, tuple[str, ...]]:
    """All combinations, seeds outermost so that every configuration gets its first result early."""
    axes = sorted(axes, key=lambda axis: axis.key != "seed")
    varying = [axis.key for axis in axes if len(axis.values) > 1 and axis.key != "seed"]
    points: dict[RunConfig, Point] = {}
    left_out: dict[str, LeftOut] = {}
    repeats = 0
    notes: dict[str, None] = {}
    for combination in product(*(axis.values for axis in axes)):
        values: dict[str, Any] = dict(zip((axis.key for axis in axes), combination, strict=True))
        setting = " ".join(f"{key}={show(values[key])}" for key in varying)
        try:
            resolved = composer.point(values)
        except ConfigError as error:
            left_out[setting] = LeftOut(setting or "this point", str(error))
            continue
        config = resolved.config
        notes |= dict.fromkeys(resolved.notes)
        label = f"{setting} seed={config.seed}".strip()
        repeats += config in points
        points.setdefault(config, Point(label, config))
    return list(points.values()), list(left_out.values()), repeats, tuple(notes)
