"""Validation curves in every display that draws one, for every task: in bits per byte, or in nats where there are no bytes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from moe_cli.cli.runs.diff import print_comparison
from moe_cli.cli.runs.show import print_run, run_record
from moe_cli.cli.runs.watch import run_panel
from moe_cli.cli.search import _step
from moe_cli.config.data import TokenFilesConfig
from moe_cli.metrics import ESTIMATES, TARGETS, target_name
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.columns import curve_column
from moe_cli.report.equal_time import estimates_over_time
from moe_cli.report.load import rows_below
from moe_cli.report.run_comparison import compare_runs
from moe_cli.runs.curves import Curve, validation_curve, validation_curves
from moe_cli.runs.folder import Run
from moe_cli.runs.status import read_status
from tests.data.made_token_files import raw
from tests.report.folders import complete
from tests.tiny import TINY, finish, tiny_config, words

KINDS = {
    "gpt": "bits/byte",
    "tokens": "nats/token",
    "bert": "nats/masked token",
    "t5": "nats/target token",
    "vit": "nats/image",
    "mmoe": "nats/pair",
}


def trained(kind: str, folder: Path) -> Run:
    """A tiny run of this family, or of one on ready-made tokens."""
    (folder / "words.txt").write_text(words(4000))
    changes: dict[str, Any] = {**TINY.get(kind, {})}
    if kind == "tokens":
        raw(folder / "tokens" / "train.bin", np.arange(3000) % 50)
        raw(folder / "tokens" / "val.bin", np.arange(300) % 50)
        changes = {"data": TokenFilesConfig(path=str(folder / "tokens"), vocab_size=50)}
    return finish(tiny_config(folder / "words.txt", train={"eval_every": None}, **changes), folder / "outputs")


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_has_a_curve_everywhere(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """runs show, diff, watch, the search's panel, the report's sparkline and the recommendation draw the same estimates."""
    run = trained(kind, tmp_path)
    curve = validation_curve(run)
    assert (KINDS[kind], True) == (curve.unit, len(curve.points) > 1)
    assert [{"step": step, curve.result: value} for step, value in curve.points] == run_record(run)["curve"]
    print_run(run)
    assert f"{curve.unit} at {len(curve.points)} evaluations" in capsys.readouterr().out
    comparison = compare_runs(run, run)
    assert [value for _, value in curve.points] == [point[curve.result] for point in comparison.record()["curves"]["a"]]
    print_comparison(comparison)
    assert f"validation, {curve.unit}, against training tokens" in capsys.readouterr().out
    console = Console(file=io.StringIO(), width=100)
    console.print(run_panel(read_status(run), curve.values, 100, 0.0))
    assert isinstance(console.file, io.StringIO)
    assert f"curve {curve.values[0]:.3f}" in console.file.getvalue()
    assert _step(run).endswith(f"{'bpb' if kind == 'gpt' else 'loss'} {curve.values[-1]:.3f}")
    column = curve_column(aggregate_seeds(rows_below(tmp_path / "outputs")).configurations)
    assert column is not None
    assert curve.values == [value for _, value in estimates_over_time(str(run.path), ESTIMATES[curve.result])]


def test_the_kinds_are_all_there_are() -> None:
    """Every task is among those whose curves are drawn."""
    configs = [tiny_config(Path("words.txt"), **TINY.get(kind, {})) for kind in KINDS]
    assert set(TARGETS.values()) == {target_name(config.to_dict()) for config in configs}


def test_two_runs_are_drawn_in_one_unit(tmp_path: Path) -> None:
    """Runs in bits per byte and in nats are both drawn in nats; a run without an evaluation decides no unit."""
    runs = [complete(tmp_path, 1.7, expert=expert) for expert in (2, 4, 8)]
    texts = [{"val/bpb": 2.0, "val/loss": 1.4}, {"val/bpb": None, "val/loss": 1.5}]
    for run, record in zip(runs, texts, strict=False):
        (run.path / "metrics.jsonl").write_text(json.dumps({"step": 10, **record}))
    bits, nats, none = runs
    assert [
        Curve("val_loss", "nats/token", ((10, 1.4),)),
        Curve("val_loss", "nats/token", ((10, 1.5),)),
    ] == validation_curves([bits, nats])
    assert [((10, 2.0),), ()] == [curve.points for curve in validation_curves([bits, none])]
    assert "bits/byte" == validation_curve(bits).unit
    assert [[{"tokens": 10 * bits.config().tokens_per_step, "val_loss": 1.4}]] == [
        compare_runs(bits, nats).record()["curves"]["a"]
    ]
