"""Statistics of a text: read from meta.json, damaged or not, and shown by moe recommend and moe runs show."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli import load_runs, recommend
from moe_cli.cli.app import app
from moe_cli.config.data import PackagedCorpusConfig
from moe_cli.data.corpora import load_corpus
from moe_cli.errors import DataError
from moe_cli.files.writing import write_json
from moe_cli.report.data_facts import OWN_TEXTS, NgramFacts, ngram_facts, ngram_sentences
from moe_cli.report.recommend.text import format_recommendation
from tests.report.folders import complete
from tests.runner import CliRunner

FOUR = {"length": 4, "train_tokens": 1_000_000, "seen": 0.75, "repeated": 0.5, "next_nats": 1.25}


def test_damaged_entries_are_left_out() -> None:
    """A file that was edited costs its own figures only."""
    known = ngram_facts({"corpus": {"ngrams": [FOUR, {**FOUR, "seen": "x"}, 3, {**FOUR, "next_nats": None}]}})
    assert (NgramFacts(4, 1_000_000, 0.75, 0.5, 1.25), NgramFacts(4, 1_000_000, 0.75, 0.5, None)) == known
    for damaged in ({}, {"corpus": 3}, {"corpus": {}}, {"corpus": {"ngrams": "a"}}):
        assert () == ngram_facts(damaged)
    assert [] == ngram_sentences((), "bytes")


@pytest.mark.parametrize(("tokenizer", "compared"), [("bytes", True), ("chars", False)])
def test_a_recommendation_states_them(tokenizer: str, compared: bool, tmp_path: Path) -> None:
    """It compares bytes with bytes alone, states what experts gained on them, and predicts no gain."""
    settings: dict[str, Any] = {"data.tokenizer": tokenizer}
    runs = [complete(tmp_path, loss, expert=expert, **settings) for expert, loss in ((1, 1.8), (8, 1.7))]
    for run in runs:
        write_json(run.path / "meta.json", {"corpus": {"ngrams": [FOUR]}})
    answer = recommend(load_runs(tmp_path))
    text = "\n".join(format_recommendation(answer))
    assert "of the n-grams of 4 tokens in validation, 75 % occur in training; of those in training, 50 % repeat" in text
    assert compared == ("The same of other texts" in text)
    assert compared == ("experts lowered the bits/byte" in text and "too few to predict one" in text)
    assert compared == ("What experts gain on such data is not known" not in text)
    assert [FOUR] == list(answer.to_dict()["ngrams"])
    shown = CliRunner().invoke(app, ["runs", "show", runs[0].id, "--outputs", str(tmp_path)]).output
    assert "75 % of validation occur in training" in shown
    assert "1.25 nats" in shown


@pytest.mark.results
@pytest.mark.parametrize("name", OWN_TEXTS)
def test_figures_of_other_texts_are_those_measured_here(name: str, tmp_path: Path) -> None:
    """To two percentage points, as versions of the packages differ."""
    try:
        corpus = load_corpus(PackagedCorpusConfig(name=name), 128, tmp_path)  # type: ignore[arg-type]
    except DataError as missing:
        pytest.skip(str(missing))
    for key in ("seen", "repeated"):
        figures = getattr(OWN_TEXTS[name], key)
        assert list(figures) == pytest.approx([entry[key] for entry in corpus.meta["ngrams"]], abs=0.02)
