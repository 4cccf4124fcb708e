"""moe runs experts --study, and moe eval with other data: figures, refusals, and text of others on the page."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.config.routers import SoftConfig
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.import_folder import import_folder
from moe_cli.runs.folder import Run
from tests.runner import CliRunner
from tests.tiny import TINY, finish, tiny_config, words

HOSTILE = "<script>x\x1b[2J"
Study = Callable[..., Result]


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two domains, one with a hostile name."""
    folder = tmp_path_factory.mktemp("domains")
    for name in (HOSTILE, "digits"):
        (folder / name).mkdir()
        for number in range(4):
            text = words(200, number)
            text = text if name == HOSTILE else "".join(str(ord(letter) % 10) for letter in text)
            (folder / name / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture
def study(finished: Run) -> Study:
    """`moe runs experts RUN --study`, of the run that tests share unless another is named."""
    outputs = str(finished.path.parents[1])
    return lambda *options, run=finished.id, columns=80: CliRunner().invoke(
        app, ["runs", "experts", run, *map(str, options), "--outputs", outputs], env={"COLUMNS": str(columns)}
    )


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_tables_fit(study: Study, domains: Path, columns: int) -> None:
    """Each measure has its table, no line is wider than the terminal, and no name controls it."""
    other = ("data=text", f"data.path={domains}", "data.val_fraction=0.5")
    result = study("--study", *other, "--earlier", "6", columns=columns)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert "\x1b[2J" not in result.stdout
    text = re.sub(r"\s+", " ", result.stdout)
    for start in ("specialisation by domain", "assignments that repeat", "hits of a cache", "experts chosen together"):
        assert start[:30] in text
    assert "choices that an earlier" in text


def test_a_domain_without_validation_text_is_named(study: Study, domains: Path) -> None:
    """A study of fewer domains than the folder has says which are missing, and what to do."""
    result = study("--study", "data=text", f"data.path={domains}", "eval.k=1", columns=200)
    assert result.exit_code == 0, result.output
    assert "of 1 domain" in result.stdout
    assert "; 1 expert per token." in result.stdout
    assert "is held out, so it has no validation loss. Raise data.val_fraction to hold some out." in result.stderr


def test_the_page_shows_names_as_text(study: Study, domains: Path, tmp_path: Path) -> None:
    """The page is one file without the markup of a domain's name."""
    page = tmp_path / "experts.html"
    result = study("--study", "data=text", f"data.path={domains}", "data.val_fraction=0.5", "-o", page)
    assert result.exit_code == 0, result.output
    content = page.read_text(encoding="utf-8")
    assert "<script>x" not in content
    assert "Specialisation by domain" in content


def test_an_imported_model_has_the_figures_of_its_run(domains: Path, tmp_path: Path) -> None:
    """A run and its model after export and import give the same study, with the tokenizer of each."""
    pytest.importorskip("tokenizers")
    config = tiny_config(domains, model={"ffn_type": "glu"}, data={"val_fraction": 0.5}, train={"precision": "float32"})
    outputs = tmp_path / "outputs"
    own = finish(config, outputs)
    export_run(own, tmp_path / "outputs", tmp_path / "model")
    data = ["data=text", f"data.path={domains}", "data.val_fraction=0.5"]
    imported = import_folder(tmp_path / "model", outputs, data)[0]
    found = []
    for run in (own, imported):
        words = ["runs", "experts", run.id, "--study", *data, "--json", "--outputs", str(outputs)]
        found.append(json.loads(CliRunner().invoke(app, words).stdout))
    assert found[0]["layers"] == found[1]["layers"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)


def test_other_text_is_evaluated_with_the_tokens_of_the_run(finished: Run, domains: Path) -> None:
    """moe eval of the run's own text named again equals moe eval without it; of other text it names the data."""
    outputs = ["--json", "--outputs", str(finished.path.parents[1])]
    own = f"data.path={finished.config().data.path}"  # type: ignore[union-attr]
    other = ["data=text", f"data.path={domains}", "data.val_fraction=0.5", "--domains"]
    results = [
        json.loads(CliRunner().invoke(app, ["eval", finished.id, *added, *outputs]).stdout)
        for added in ([], ["data=text", own], other)
    ]
    assert results[0] == results[1]
    assert {"digits", HOSTILE} == set(results[2]["evaluations"][0]["domains"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=python"], "Add --study"),
        (["--earlier", "3"], "Add --study"),
        (["--study", "data.val_fraction=0.2"], "would move the split"),
        (["--study", "data=text", "data.path=none.txt"], "none.txt"),
        (["--study", "data=text", "data.path={domains}", "data.tokenizer=chars"], "keeps the tokenizer"),
        (["--study", "data=python,text"], "data has 2 values"),
        (["--study", "data=digits"], "is no text"),
        (["--study", "data=tokens", "data.path={domains}", "data.vocab_size=50000"], "without .bin"),
        (["--study", "eval.k=1,2"], "eval.k has 2 values"),
        (["--study", "eval.k=9"], "9"),
        (["--study", "eval.stride=4"], "eval.stride"),
        (["--study", "expert=4"], "fixed once a model is trained"),
        (["--study", "eval.kk=2"], "'eval.kk' is no setting of this command. Did you mean 'eval.k'?"),
        (["--study", "--layer", "7"], "sparse layers 1 to 2"),
        (["--study", "--split", "train"], "--split"),
        (["--study", "--earlier", "99"], "no checkpoint '99'"),
        (["--study", "--earlier", "nothing"], "nothing"),
        (["--study", "--json", "-o", "x.html"], "give one of them"),
        (["--study", "-o", "x.pdf"], ".html"),
    ],
)
def test_wrong_input_is_refused_in_words(study: Study, domains: Path, options: list[str], message: str) -> None:
    """Exit code 2 or 1 and at most four lines, with what is wrong."""
    result = study(*(option.format(domains=domains) for option in options), columns=200)
    assert result.exit_code in (1, 2), result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) <= 4
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert": 1, "k": 1}, "dense model"),
        ({**TINY["bert"], "router": SoftConfig(), "k": None}, "router=soft"),
        ({"data": {"tokenizer": "chars"}}, "only the characters of its own text"),
    ],
)
def test_models_that_cannot_be_studied_are_refused(
    text_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """A dense model and soft routing have no choices; characters of one text are not those of another."""
    config = tiny_config(text_file, **changes, train={"steps": 1})
    run = finish(config, tmp_path)
    words = ["runs", "experts", run.id, "--study", "data=text", f"data.path={text_file}", "--outputs", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert (2, True) == (result.exit_code, message in re.sub(r"\s+", " ", result.output)), result.output


def test_earlier_models_must_route_alike(finished: Run, text_file: Path, study: Study) -> None:
    """A run with other experts has no choices in common."""
    outputs = finished.path.parents[1]
    config = tiny_config(Path(finished.config().data.path), expert=8, k=2, train={"steps": 1})  # type: ignore[union-attr,arg-type]
    other = finish(config, outputs)
    result = study("--study", "--earlier", other.id, columns=200)
    assert (2, True) == (result.exit_code, "sparse layers of 8 experts" in result.output), result.output
