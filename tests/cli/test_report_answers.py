"""moe scaling, moe report --plot, moe runs experts, and what is drawn where the terminal is not UTF-8."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Moe
from tests.report.folders import complete, sweep_of_three_seeds

TRUE = {"a": 20.0, "alpha": 0.25, "delta": -0.1, "b": 60.0, "beta": 0.3, "c": 1.1}


@pytest.fixture
def outputs(planted: Path, tmp_path: Path) -> Path:
    """A copy of the planted runs."""
    return Path(shutil.copytree(planted, tmp_path / "outputs"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three sizes, expansions and budgets whose losses follow Ludziejewski's form with a little noise."""
    outputs, noise = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    for size in (1e5, 4e5, 1.6e6):
        for expert in (1, 4, 16):
            for steps in (100, 400, 1600):
                tokens = steps * 2048
                loss = TRUE["a"] * expert ** TRUE["delta"] * size ** -TRUE["alpha"]
                loss = (loss + TRUE["b"] * tokens ** -TRUE["beta"] + TRUE["c"]) * float(np.exp(noise.normal(0, 0.002)))
                results: dict[str, Any] = {
                    "active_params": size,
                    "params": size * (1 + 0.6 * (expert - 1)),
                    "tokens": tokens,
                    "flops_per_token": 6 * size,
                    "val_loss": loss,
                }
                width = {1e5: 48, 4e5: 96, 1.6e6: 192}[size]
                complete(
                    outputs,
                    loss / 0.7,
                    "scaling",
                    results,
                    expert=expert,
                    k=1,
                    train__steps=steps,
                    model__d_model=width,
                )
    return outputs


def test_a_fit_is_printed_with_its_answers(outputs: Path, moe: Moe) -> None:
    """The law with constants near those planted, dense equivalents, a prediction and the largest held out."""
    found = moe("scaling", "scaling", "--law", "ludziejewski", "--predict", "expert=32")
    assert 0 == found.exit_code, found.output
    for part in ("scaling law ludziejewski", "alpha", "equals a dense model of", "predicted, not run"):
        assert part in found.stdout
    record = json.loads(moe("scaling", "scaling", "--law", "ludziejewski", "--validate", "--json").stdout)
    constants = {each["name"]: each for each in record["constants"]}
    assert TRUE["c"] == pytest.approx(constants["c"]["value"], abs=0.1)
    assert 27 == record["configurations"]
    assert record["validation"]["error"] < 0.02
    assert all(each["compute_ratio"] > 1 for each in record["dense_equivalents"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("scaling --law abc", "ludziejewski"),
        ("scaling --where 'expert == 999'", "no run matches"),
        ("scaling --predict expert", "give settings such as"),
        ("""scaling --predict "'expert=8" """, "quote is not closed"),
        ("scaling --predict 'expert=8 train.minutes=3'", "the budget is a time"),
        ("scaling --where 'expert == 4'", "moe sweep scaling"),
        ("scaling --json -o law.html", "give the name of a .html file, without --json"),
        ("report --plot val_bpb", "as Y:X"),
        ("report --plot val_bpb:nope", "no column 'nope'"),
        ("report --plot val_bpb:expert --format csv", "give one of them"),
    ],
)
def test_wrong_requests_are_refused(outputs: Path, moe: Moe, words: str, says: str) -> None:
    """In a few lines with what to do, exit code 2."""
    command, *options = shlex.split(words)
    found = moe(command, "scaling", *options)
    assert 2 == found.exit_code
    assert says in found.stderr
    assert len(found.stderr.splitlines()) <= 6


def test_one_size_of_model_supports_no_law(tmp_path: Path, moe: Moe) -> None:
    """It says what is missing and which sweep would give it."""
    sweep_of_three_seeds(tmp_path / "outputs")
    found = moe("scaling")
    assert 2 == found.exit_code
    assert "needs at least 3 sizes of model; these runs have 1" in found.stderr
    assert "moe sweep scaling" in found.stderr


def test_a_plot_is_drawn(tmp_path: Path, moe: Moe) -> None:
    """With a mark for dense and each k."""
    sweep_of_three_seeds(tmp_path / "outputs")
    found = moe("report", "--plot", "val_bpb:expert")
    assert 0 == found.exit_code
    assert "o dense   x k=1   + k=2" in found.stdout
    assert "val_bpb against expert" in found.stdout


def test_health_is_refused_where_there_is_none(tmp_path: Path, moe: Moe) -> None:
    """Dense, not evaluated, or no such layer: each in its own words; JSON for programs."""
    outputs = tmp_path / "outputs"
    dense, bare, known = (complete(outputs, 1.8, expert=expert) for expert in (1, 4, 8))
    line = {"step": 10, "layer": 0, "tokens_per_expert": [1] * 8}
    (known.path / "routing.jsonl").write_text(json.dumps(line) + "\n")
    for run, words, says in (
        (dense, [], "dense model"),
        (bare, [], "not evaluated yet"),
        (known, ["--layer", "2"], "sparse layers 1 to 1"),
    ):
        found = moe("runs", "experts", run.id, *words)
        assert 2 == found.exit_code
        assert says in found.stderr
    assert [1.0] * 8 == json.loads(moe("runs", "experts", known.id, "--json").stdout)["layers"][0]["load"]
    assert "load: 1 is a fair share" in moe("runs", "experts", known.id).stdout


def test_a_terminal_without_utf8_gets_ascii(tmp_path: Path) -> None:
    """Curves, loads, maps and charts in ASCII; never a traceback."""
    outputs = tmp_path / "outputs"
    runs = [complete(outputs, 1.8, expert=4, seed=seed) for seed in (0, 1)]
    for run in runs:
        line = {"step": 10, "layer": 0, "tokens_per_expert": [6, 2, 0, 0]}
        (run.path / "routing.jsonl").write_text(json.dumps(line) + "\n")
        lines = [json.dumps({"step": step, "val/bpb": 3.0 - step / 20}) for step in (10, 20)]
        (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    one, other = (run.id for run in runs)
    code = f"""
import sys
from moe_cli.cli.app import main
for command in (["diff", {one!r}, {other!r}], ["show", {one!r}], ["experts", {one!r}]):
    sys.argv = ["moe", "runs", *command]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MOE_OUTPUTS": str(outputs)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (0, b"") == (found.returncode, found.stderr)
    assert b"8511" in found.stdout
