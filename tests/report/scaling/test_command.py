"""moe scaling: laws through simulated run folders, predictions, validation; refused where runs are too few."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.report.scaling.observations import Points
from tests.report.folders import complete
from tests.report.html.pages import content_of
from tests.report.scaling.planted import JOINT, joint
from tests.runner import CliRunner

WIDTHS, STEPS, EXPERTS = (32, 64, 96, 128), (100, 400, 1600), (1, 2, 4, 8)


def planted(outputs: Path, experts: tuple[int, ...] = EXPERTS, widths: tuple[int, ...] = WIDTHS) -> None:
    """Runs of four sizes, three numbers of tokens and four of experts whose losses follow the joint law."""
    draw = np.random.default_rng(0)
    for width in widths:
        for steps in STEPS:
            for expert in experts:
                active, tokens = 60.0 * width**2, steps * 2048.0
                at = Points(
                    *(
                        np.array([value])
                        for value in (
                            active * expert,
                            active,
                            float(expert),
                            1 / expert,
                            1.0,
                            tokens,
                            6 * active * tokens,
                            math.nan,
                            0,
                            1e4,
                            0,
                        )
                    )
                )
                loss = float(joint(at, **JOINT)[0] * math.exp(draw.normal(0, 0.002)))
                results = {
                    "active_params": int(active),
                    "params": int(active * expert),
                    "val_loss": loss,
                    "flops_per_token": 6 * active,
                    "tokens": int(tokens),
                }
                k = {} if expert == 1 else {"k": 1}
                complete(
                    outputs,
                    loss / 0.7,
                    "scaling",
                    results,
                    expert=expert,
                    train__steps=steps,
                    model__d_model=width,
                    **k,
                )


def scaling(outputs: Path, *words: object) -> Result:
    return CliRunner().invoke(app, ["scaling", *map(str, words), "--outputs", str(outputs)])


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaling")
    planted(folder)
    return folder


def fitted(outputs: Path, *words: str) -> dict[str, Any]:
    result = scaling(outputs, "--law", *words, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout, parse_constant=lambda word: pytest.fail(word))
    return content


@pytest.fixture(scope="module")
def found(outputs: Path) -> dict[str, Any]:
    """The joint law with all its answers."""
    near, far = "expert=4 k=1 model.d_model=128 train.steps=1600", "expert=8 k=1 model.d_model=1024 train.steps=1600"
    return fitted(outputs, "ludziejewski", "--validate", "--predict", near, "--predict", far)


@pytest.mark.slow
def test_the_planted_law_is_found(found: dict[str, Any]) -> None:
    """The joint law is fitted to all 48 runs, with intervals, its error about the noise, and a dense equal for each sparse run."""
    assert (48, 48, 0) == (found["runs"], found["configurations"], found["left_out"])
    assert found["residual"] < 0.005
    assert all(each["low"] <= each["value"] <= each["high"] for each in found["constants"])
    assert 36 == len(found["dense_equivalents"])
    for each in found["dense_equivalents"]:
        assert each["compute_ratio"] is None or each["low"] <= each["compute_ratio"] <= (each["high"] or math.inf)


@pytest.mark.slow
def test_auto_says_which_law_and_why_not_the_others(outputs: Path) -> None:
    """All four are accounted for: chosen, fitted with a larger error, or impossible with a reason."""
    found = fitted(outputs, "auto")
    others = {each["law"]: each for each in found["rejected"]}
    assert {"clark", "krajewski", "abnar", "ludziejewski"} == {found["law"], *others}
    for each in others.values():
        assert (each["held_out"] is None) == (each["reason"] is not None)
        assert each["held_out"] is None or each["held_out"] >= found["held_out_error"]


@pytest.mark.slow
def test_a_configuration_that_was_not_run(found: dict[str, Any]) -> None:
    """--predict gives a loss with its interval, and how far beyond what was run it lies."""
    near, far = found["predictions"]
    assert near["low"] < near["loss"] < near["high"]
    assert far["extrapolation_factor"] > 4 > near["extrapolation_factor"]
    assert far["loss"] < near["loss"]


@pytest.mark.slow
def test_the_largest_are_held_out(found: dict[str, Any]) -> None:
    """--validate predicts a fifth of the configurations from the rest."""
    validation = found["validation"]
    assert (38, 10) == (validation["num_fitted"], len(validation["predictions"]))
    assert validation["error"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 200])
def test_lines_fit_the_terminal(outputs: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Constants, errors, equivalents and validation, none wider than the window."""
    monkeypatch.setenv("COLUMNS", str(width))
    far = ("--predict", "expert=8 k=1 model.d_model=2048 train.steps=1600")
    text = scaling(outputs, "--law", "ludziejewski", "--validate", *far).stdout
    assert max(map(len, text.splitlines())) <= width
    for words in (
        "largest, held out",
        "root mean square",
        "lies outside the runs by a factor of",
        "Ludziejewski et al. 2025",
        "delta",
    ):
        assert words in " ".join(text.split())


@pytest.mark.slow
def test_the_page_shows_the_fit(outputs: Path, tmp_path: Path) -> None:
    """With -o page.html the law, its constants and a chart stand in the page."""
    assert 0 == scaling(outputs, "--law", "ludziejewski", "-o", tmp_path / "page.html").exit_code
    sections = content_of((tmp_path / "page.html").read_text(encoding="utf-8"))["sections"]
    charts = [each for each in sections if each["chart"]]
    assert charts
    texts = [cell for each in sections for row in each["rows"] for cell in row] + [
        line for each in sections for line in each["lines"]
    ]
    assert any("delta" in text for text in texts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--law", "chinchilla"],
            "no scaling law 'chinchilla'. There are: clark, krajewski, abnar, ludziejewski, and auto.",
        ),
        (["--law", "ludziejewski", "--predict", "expert"], "give settings such as 'expert=64 k=2"),
        (["--law", "ludziejewski", "--predict", "expert=64 'k=2"], "a quote is not closed"),
        (["--law", "ludziejewski", "--predict", "exprt=64"], "Did you mean 'expert'?"),
        (["--law", "ludziejewski", "--predict", "train.minutes=3"], "the budget is a time"),
        (["--where", "expert > 99"], "no run matches --where 'expert > 99'."),
    ],
)
def test_what_is_refused(outputs: Path, words: list[str], message: str) -> None:
    """With exit code 2, in at most three lines."""
    result = scaling(outputs, *words)
    assert (2, True) == (result.exit_code, message in result.stderr), result.output
    assert len(result.stderr.splitlines()) <= 3


def test_too_few_runs_say_which_to_make(tmp_path: Path) -> None:
    """One size is no law; the command that makes others is named."""
    planted(tmp_path, widths=(64,))
    result = scaling(tmp_path)
    assert (2, True) == (result.exit_code, "moe sweep scaling" in result.stderr), result.output
