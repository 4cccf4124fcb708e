"""moe scaling --bet and --bets through simulated run folders: predictions, refusals, scores, and files of others."""

import json
import math
import shlex
import shutil
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.files.checksums import write_sealed
from moe_cli.files.reading import forget_notes, noted
from moe_cli.files.writing import write_json
from moe_cli.report.intervals import proportion_interval
from moe_cli.report.scaling.bet_scores import Outcome, calibrate, score_bets
from moe_cli.report.scaling.bets import Bet, read_bets
from moe_cli.report.scaling.settings import configure, sizes_of
from tests.report.folders import complete, stopped
from tests.report.scaling.planted import JOINT, joint
from tests.runner import CliRunner

STEPS, SEEDS, LATER = (64, 128, 256), (0, 1), 1024
NOISE = 0.002


def planted_loss(expert: int, steps: int, seed: int) -> float:
    """A power law with a floor, 1 % lower for each doubling of the experts."""
    own = np.random.default_rng((expert, steps, seed)).normal(0, NOISE)
    return float((1.6 + 0.9 * (steps / 64) ** -0.35) * (1 - 0.01 * math.log2(expert)) * math.exp(own + 0.004 * seed))


def train(outputs: Path, expert: int, steps: int, seed: int, sweep: str = "curves", **results: Any) -> None:
    """Writes the folder of a complete run with the planted loss."""
    k = {} if expert == 1 else {"k": 1}
    loss = planted_loss(expert, steps, seed)
    complete(outputs, loss, sweep, results or None, expert=expert, train__steps=steps, seed=seed, **k)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a dense model and two sparse ones at three budgets, two seeds each."""
    outputs = tmp_path_factory.mktemp("bets")
    for expert in (1, 4, 8):
        for steps in STEPS:
            for seed in SEEDS:
                train(outputs, expert, steps, seed)
    return outputs


@pytest.fixture
def outputs(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "outputs"))


def scaling(outputs: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["scaling", *words, "--outputs", str(outputs)])


def place(outputs: Path, *texts: str) -> dict[str, Any]:
    """Places bets on the sweep and returns what --json prints."""
    result = scaling(outputs, "curves", *(word for text in texts for word in ("--bet", text)), "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


BET = f"expert=8 k=1 train.steps={LATER}"


def test_a_bet_is_written_and_scored(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction is that of the planted law; runs of the printed command are the outcome, and of no older run."""
    [bet] = place(outputs, BET)["bets"]
    file = outputs / "curves/bets" / f"{bet['digest']}.json"
    before = file.read_bytes()
    truth = [np.mean([planted_loss(expert, LATER, seed) for seed in SEEDS]) for expert in (8, 1)]
    assert truth == pytest.approx([bet["loss"], bet["baseline_loss"]], rel=0.03)
    assert bet["low"] < bet["loss"] < bet["high"]
    assert 0.9 < bet["wins"] < 1
    assert (18, [0, 1], "val_bpb", "tokens") == (len(bet["runs"]), bet["seeds"], bet["metric"], bet["equal"])
    assert "No scaling law: ludziejewski needs at least 3 sizes of model" in bet["method"]
    # The words of each command lead to the digests of the bet.
    for command, expert in zip(bet["commands"], (8, 1), strict=True):
        words = shlex.split(command)
        assert ["moe", "sweep", "--name", "curves-bets"] == [*words[:2], *words[-2:]]
        assert "seed=0,1" == words[-3]
        config = load_config([*words[2:-3], "seed=0"]).config
        assert expert == config.expert
        assert expert == 1 or config.digest == bet["digest"]
    train(outputs, 8, LATER, 0, "curves-bets")
    assert "1/2 seeds" in scaling(outputs, "curves", "--bets").stdout
    train(outputs, 8, LATER, 1, "curves-bets")
    train(outputs, 1, LATER, 0, "curves-bets")
    [scored] = json.loads(scaling(outputs, "--bets", "--json").stdout)["bets"]
    assert (pytest.approx(truth[0]), None) == (scored["measured"], scored["won"])
    train(outputs, 1, LATER, 1, "curves-bets")
    found = json.loads(scaling(outputs, "curves", "--bets", "--json").stdout)
    [scored] = found["bets"]
    assert (True, True, True) == (scored["inside"], scored["won"], scored["right"])
    assert truth[1] == pytest.approx(scored["baseline_measured"])
    assert (1, 1, 1, 1) == tuple(found["calibration"][key] for key in ("scored", "inside", "winners", "right"))
    assert found["calibration"]["brier"] == pytest.approx((1 - scored["wins"]) ** 2)
    assert before == file.read_bytes()
    for width in (80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = scaling(outputs, "curves", "--bets").stdout
        assert max(map(len, text.splitlines())) <= width
        assert "1 of 1 bet scored: 1 inside the 80 % interval" in text
        assert "winner: 1 of 1 right; Brier score" in text
    # A new bet is printed with the record of the earlier ones.
    text = scaling(outputs, "curves", "--bet", f"expert=1 train.steps={2 * LATER}").stdout
    assert "Earlier bets:\n1 of 1 bet scored: 1 inside the 80 % interval" in text
    # Now the run exists, and the bet too.
    assert "a bet is placed before its run exists" in scaling(outputs, "curves", "--bet", BET).stderr


def test_only_runs_on_the_data_and_after_the_bet_count(outputs: Path) -> None:
    """Runs on other data, of other seeds than the bet's, or copied from before the bet, are no outcome."""
    place(outputs, BET)
    for seed in SEEDS:
        train(outputs, 8, LATER, seed, "other", corpus_sha256="cd" * 32)
        train(outputs, 8, LATER, seed + 7, "seeds")
    old = outputs / "old"
    for seed in SEEDS:
        train(outputs, 8, LATER, seed, "old")
    for status in old.glob("*/status.json"):
        write_json(status, {"status": "completed", "created": time.time() - 10_000})
    [outcome] = score_bets(outputs)
    assert ((), None) == (outcome.seeds, outcome.measured)


def test_what_is_printed_when_placed(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction, the probability, the price, the method, the file, and the commands that settle the bet."""
    monkeypatch.setenv("COLUMNS", "80")
    text = scaling(outputs, "curves", "--bet", BET, "--bet", f"expert=1 train.steps={LATER}").stdout
    assert "Earlier bets" not in text
    for words in (
        "bits/byte, 80 % interval",
        "beats the dense model of equal tokens",
        "times the FLOPs of the largest run",
        "curve of loss over training tokens",
        "it does not change",
        "moe sweep expert=8 k=1 train.steps=1024",
        "winner: no bet, because the runs do not predict a dense model",
        "moe scaling curves --bets",
    ):
        assert words in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("expert", "give settings such as"),
        ("expert=8 'k=1", "a quote is not closed"),
        ("exprt=8 train.steps=1024", "Did you mean 'expert'?"),
        ("expert=8 k=1 train.minutes=3", "the budget is a time"),
        ("expert=8 k=1 train.steps=1024 seed=7", "the seeds of a bet are those of the sweep"),
        (
            "expert=8 k=1 train.steps=256",
            "a bet is placed before its run exists, and there is one (completed): curves/",
        ),
        ("expert=8 k=1 train.steps=99999", "A bet is on 1.1 to 16 times"),
        ("expert=8 k=1 train.steps=200", "A bet is on 1.1 to 16 times"),
        ("expert=8 k=1 train.steps=1024 data=shakespeare", "A bet is on the data, the task and the model family"),
        ("expert=8 k=1 train.steps=1024 model.d_model=192", "model.d_model=192, and the runs of curves have 96."),
        ("expert=8 k=1 train.steps=1024 optim.lr=0.5", "A bet extrapolates only settings that its sweep varies"),
        ("expert=64 k=1 train.steps=1024", "only their budget can be extrapolated, and none has this expert"),
    ],
)
def test_what_is_refused(swept: Path, words: str, message: str) -> None:
    """With exit code 2, in at most three lines, and without a file."""
    result = scaling(swept, "curves", "--bet", words)
    assert (2, True) == (result.exit_code, message in " ".join(result.stderr.split())), result.output
    assert len(result.stderr.splitlines()) <= 3
    assert not (swept / "curves/bets").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bet", BET], "--bet rests on the runs of one sweep"),
        (["nothing", "--bet", BET], "no sweep 'nothing'"),
        (["nothing", "--bets"], "no sweep 'nothing'"),
        (["curves", "--bet", BET, "--bets"], "--bets cannot be combined with --bet."),
        (["curves", "--bets", "--law", "clark"], "--law cannot be combined with --bet or --bets."),
        (["curves", "--bet", BET, "--bet", f"train.steps={LATER} expert=8 k=1"], "are one configuration"),
    ],
)
def test_options_that_do_not_fit(swept: Path, words: list[str], message: str) -> None:
    result = scaling(swept, *words)
    assert (2, True) == (result.exit_code, message in " ".join(result.stderr.split())), result.output
    assert not (swept / "curves/bets").exists()


def test_a_bet_is_placed_once_and_before_any_run(outputs: Path) -> None:
    """A second bet on a configuration is refused, and so is one on a run that has begun, of any seed and sweep."""
    place(outputs, BET)
    assert "bets do not change" in scaling(outputs, "curves", "--bet", BET).stderr
    stopped(outputs, "interrupted", group="elsewhere", expert=4, k=1, train__steps=LATER, seed=9)
    result = scaling(outputs, "curves", "--bet", f"expert=4 k=1 train.steps={LATER}")
    assert (2, True) == (result.exit_code, "there is one (interrupted): elsewhere/" in " ".join(result.stderr.split()))


def test_no_bet_rests_on_too_little(tmp_path: Path) -> None:
    """Two budgets are no curve, one seed shows no noise, and one budget varies nothing."""
    for number, (steps, seeds, message) in enumerate(
        (
            (STEPS[:2], SEEDS, "needs at least 3 budgets"),
            (STEPS, SEEDS[:1], "do not show the noise of a run"),
            (STEPS[:1], SEEDS, "the runs have one of numbers of training tokens"),
        )
    ):
        outputs = tmp_path / str(number)
        for expert in (1, 8):
            for budget in steps:
                for seed in seeds:
                    train(outputs, expert, budget, seed)
        result = scaling(outputs, "curves", "--bet", f"expert=8 k=1 train.steps={4 * steps[-1]}")
        assert (2, True) == (result.exit_code, message in " ".join(result.stderr.split())), result.output


def test_unusable_files_are_errors_of_their_own(outputs: Path) -> None:
    """A file that was edited, cut off, forged, renamed or linked to a device is named; the other bets count."""
    [bet] = place(outputs, BET)["bets"]
    folder = outputs / "curves/bets"
    text = (folder / f"{bet['digest']}.json").read_text()
    values = {key: value for key, value in json.loads(text).items() if key != "checksum"}
    (folder / "edited.json").write_text(text.replace('"wins"', '"loses"'))
    (folder / "cut.json").write_text(text[: len(text) // 2])
    (folder / "device.json").symlink_to("/dev/zero")
    write_sealed(folder / "renamed.json", values)
    bad: dict[str, Any] = {"low": values["loss"] * 2, "wins": 1.5, "seeds": [0, 0], "runs": "all", "metric": "cost"}
    bad |= {"configuration": {"expert": "__import__('os')"}, "placed": None, "loss": "1", "commands": [["moe"]]}
    for number, (key, value) in enumerate(bad.items()):
        write_sealed(folder / f"{number}.json", {**values, key: value})
    result = scaling(outputs, "curves", "--bets")
    assert 0 == result.exit_code, result.output
    assert "0 of 1 bet scored" in result.stdout
    assert "edited.json is not as it was written" in result.stderr
    forget_notes()
    assert [bet["digest"]] == [found.digest for found in read_bets([outputs / "curves"])]
    names = ("edited", "cut", "device", "renamed", *map(str, range(len(bad))))
    assert [] == [name for name in names if not any(f"{name}.json" in line for line in noted())]
    forget_notes()


def test_the_record_of_calibration() -> None:
    """Coverage with its interval, mean width, Brier score and right winners are those of the definitions."""
    bet = Bet(
        "0", "s", 1.0, "v", "t", "val_bpb", (0,), 2.0, 1.9, 2.1, 2.1, 0.8, "tokens", 1.0, 4.0, "m", (), None, (), {}, {}
    )
    outcomes = [Outcome(bet, (0,), 2.0, True, 2.1, True)] * 3 + [Outcome(bet, (0,), 2.3, False, 2.1, False)]
    found = calibrate([*outcomes, Outcome(bet, (), None, None, None, None)])
    assert (5, 4, 3, 0.75, 4, 3) == (
        found.bets, found.scored, found.inside, found.coverage, found.winners, found.right,
    )  # fmt: skip
    assert found.brier == pytest.approx((3 * 0.2**2 + 0.8**2) / 4)
    assert found.mean_width == pytest.approx(0.1)
    assert (found.coverage_low, found.coverage_high) == proportion_interval(3, 4)


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 4), (8, 10), (10, 10), (700, 1000)])
def test_the_interval_of_a_proportion_inverts_the_score_test(successes: int, trials: int) -> None:
    """At its ends the observed fraction is 1.96 standard errors away, with the error at that end."""
    share = successes / trials
    for end in proportion_interval(successes, trials):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) / math.sqrt(end * (1 - end) / trials) == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.slow
def test_a_law_predicts_where_the_runs_support_one(tmp_path: Path) -> None:
    """With four sizes, three budgets and four expansions, a law predicts the largest size at four times the tokens."""
    wanted = {}
    for width, steps, expert in [*product((32, 64, 96, 128), (100, 400, 1600), (1, 2, 4, 8)), (128, 6400, 4)]:
        words = [f"expert={expert}", "k=1", f"model.d_model={width}", f"train.steps={steps}"]
        configured = configure(words, 256, "test")
        point = sizes_of(configured)
        loss = float(joint(point, **JOINT)[0])
        if steps == 6400:
            wanted = {"words": " ".join(words), "loss": loss / 0.7}
            continue
        noisy = loss * math.exp(np.random.default_rng((width, steps, expert)).normal(0, 0.003))
        results = {
            "params": int(point.params[0]),
            "active_params": int(point.active[0]),
            "tokens": configured.tokens,
            "flops_per_token": configured.flops / configured.tokens,
            "val_loss": noisy,
            "vocab_size": 256,
        }
        k = {} if expert == 1 else {"k": 1}
        complete(tmp_path, noisy / 0.7, "curves", results, expert=expert, train__steps=steps, model__d_model=width, **k)
    [bet] = place(tmp_path, str(wanted["words"]))["bets"]
    assert bet["method"].startswith("scaling law ")
    assert bet["loss"] == pytest.approx(wanted["loss"], rel=0.02)
    assert (True, 48) == (bet["wins"] > 0.5, len(bet["runs"]))
    assert 3.9 < bet["compute_factor"] < 4.1
    assert shlex.split(bet["commands"][0])[:2] == ["moe", "train"]
    result = scaling(tmp_path, "curves", "--bet", "expert=4 k=1 model.d_model=128 train.steps=6400 model.num_layers=8")
    assert "model.num_layers=8, and the runs of curves have 4." in " ".join(result.stderr.split())
