"""Recommendation on the command line: from training to the report."""

from pathlib import Path

import pytest

from tests.cli.conftest import ONCE, Moe

SMALL = (
    "model.d_model=16",
    "model.d_ff=32",
    "data.users=40",
    "data.items=30",
    "data.num_pairs=600",
    "data.clusters=2",
    "train.steps=6",
    "train.batch_size=16",
    "train.log_every=2",
    "train.threads=1",
    ONCE,
)


def test_a_recommender_goes_through_every_command(moe: Moe) -> None:
    """A recommender is trained with RMSE, AUC, and the references of its data, then shown, evaluated, and reported."""
    trained = moe("train", "model=mmoe", *SMALL).output
    for words in (
        "ratings, 600 pairs of 40 users and 30 items",
        "nats/pair   RMSE ",
        "   AUC ",
        "(whole split, 120 pairs)",
        "RMSE of the mean ",
        "of user and item means ",
        "   at best ",
        "   AUC at best ",
    ):
        assert words in trained, trained
    assert "bits/byte" not in trained
    assert "perplexity" not in trained
    shown = moe("runs", "show", "latest").output
    assert "RMSE of the mean" in shown
    assert "perplexity" not in shown
    evaluated = moe("eval", "latest", "eval.k=1,2", "--domains")
    assert 0 == evaluated.exit_code, evaluated.output
    assert ["rating", "click"] == sorted(
        (line.split()[0] for line in evaluated.output.splitlines() if line.startswith(("rating", "click"))),
        reverse=True,
    )
    assert 0 == moe("train", "data=ratings", "expert=1", *SMALL).exit_code
    report = moe("report").output
    assert "RMSE" in report
    assert "bits/byte" not in report
    assert "reference: RMSE of the mean" in report
    assert "baseline   expert=1 (dense)" in report
    sampled = moe("sample", "latest", "--prompt", "a")
    assert 2 == sampled.exit_code
    assert "learned task=ratings: its model does not write text." in sampled.output


@pytest.mark.parametrize("first", ["5 6 7 8", "a::b::c"])
def test_a_broken_file_is_an_error_without_a_traceback(moe: Moe, tmp_path: Path, first: str) -> None:
    """Exit code 2, and the line."""
    (tmp_path / "ratings.dat").write_text(f"{first}\n")
    result = moe("train", "data=movielens", f"data.path={tmp_path}", "train.steps=2")
    assert 2 == result.exit_code
    assert f"ratings.dat, line 1: '{first}' is not user::item::rating." in result.output
    assert "Traceback" not in result.output


def test_movielens_trains_and_knows_its_films(moe: Moe, tmp_path: Path) -> None:
    """A folder in its shape: a run, and the command that makes its dense twin."""
    lines = [f"{user}\t{item}\t{1 + (user * item) % 5}\t0\n" for user in range(30) for item in range(20)]
    (tmp_path / "u.data").write_text("".join(lines))
    (tmp_path / "u.item").write_text("".join(f"{item}|Film {item}|x\n" for item in range(20)))
    small = [word for word in SMALL if not word.startswith("data.")]
    result = moe("train", "data=movielens", f"data.path={tmp_path}", *small)
    assert 0 == result.exit_code, result.output
    assert "movielens, 600 pairs of 30 users and 20 items" in result.output
    assert "at best" not in result.output
    routing = next((tmp_path / "outputs").rglob("routing.jsonl")).read_text()
    assert '"Film ' in routing
