"""Data sets of Hugging Face, local: in their formats, streamed or not, bounded, wrong in every way."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.compose import load_config
from moe_cli.config.data import HubConfig
from moe_cli.data.corpora import Corpus, load_corpus
from moe_cli.errors import DataError
from moe_cli.runs.folder import create_run
from moe_cli.tasks.causal_lm import TextTask
from tests.data.test_corpora import load as load_text
from tests.tiny import finish, tiny_config, words

datasets = pytest.importorskip("datasets")
TEXTS = [words(200 + 7 * number, number) for number in range(30)]
FORMATS = ("arrow", "dict", "parquet", "jsonl", "file")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the library's cache in the test's folder and the library offline."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def saved(folder: Path, kind: str) -> Path:
    """The texts in one of the library's formats."""
    rows = datasets.Dataset.from_dict({"text": TEXTS, "number": list(range(len(TEXTS)))})
    if kind == "arrow":
        rows.save_to_disk(str(folder))
    elif kind == "dict":
        datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(str(folder))
    else:
        folder.mkdir()
        if kind == "parquet":
            rows.to_parquet(str(folder / "train.parquet"))
        else:
            (folder / "train.jsonl").write_text(
                "".join(json.dumps({"text": text, "number": 1}) + "\n" for text in TEXTS)
            )
    return folder / "train.jsonl" if kind == "file" else folder


def load(path: Path | str, cache: Path, **options: Any) -> Corpus:
    return load_corpus(HubConfig(path=str(path), **options), 16, cache)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_corpus(tmp_path: Path, kind: str, streaming: bool) -> None:
    """Tokens, split and hash are those of the same texts as JSON lines; batches too, in the first epoch and the hundredth."""
    corpus = load(saved(tmp_path / "set", kind), tmp_path, streaming=streaming, val_fraction=0.1)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    own = load_text(tmp_path / "own.jsonl", tmp_path)
    for key in ("sha256", "num_documents", "num_bytes"):
        assert own.meta[key] == corpus.meta[key]
    assert own.val.tolist() == corpus.val.tolist()
    for index in (0, 7, 1000):
        batches = [TextTask(each, 16, seed=3).train_batch(index, 4).inputs.tolist() for each in (own, corpus)]
        assert batches[0] == batches[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_bounds_hold(tmp_path: Path, streaming: bool) -> None:
    """max_documents and max_bytes keep whole documents from the first on, and at least one."""
    path = saved(tmp_path / "set", "parquet")
    assert 5 == load(path, tmp_path, streaming=streaming, max_documents=5).meta["num_documents"]
    room = sum(map(len, TEXTS[:4]))
    for max_bytes, number in ((room, 4), (room - 1, 3), (1, 1)):
        corpus = load(path, tmp_path, streaming=streaming, max_bytes=max_bytes)
        assert (number, sum(map(len, TEXTS[:number]))) == (corpus.meta["num_documents"], corpus.meta["num_bytes"])


def test_another_split_and_column(tmp_path: Path) -> None:
    """data.split in the library's own words."""
    assert 3 == load(saved(tmp_path / "set", "dict"), tmp_path, split="test").meta["num_documents"]
    assert 15 == load(saved(tmp_path / "two", "parquet"), tmp_path, split="train[:50%]").meta["num_documents"]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("arrow", {"field": "body"}, "has no column 'body': it has 'text', 'number'"),
        ("parquet", {"field": "body", "streaming": True}, "has no column 'body': it has 'text', 'number'"),
        ("parquet", {"field": "number"}, "column 'number' is int, not text"),
        ("dict", {"split": "valid"}, "has no split 'valid': it has train, test"),
        ("parquet", {"split": "valid"}, "cannot be read: "),
        ("arrow", {"split": "test"}, "data.split=test has no effect: .* has no splits. Leave it out."),
        ("file", {"split": "test"}, "data.split=test has no effect"),
        ("arrow", {"subset": "en"}, "data.subset=en has no effect"),
        ("dict", {"subset": "en"}, "data.subset=en has no effect"),
        ("parquet", {"revision": "abc"}, "data.revision=abc has no effect"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, kind: str, options: Any, message: str) -> None:
    """A column or a split that is not there."""
    with pytest.raises(DataError, match=message) as error:
        load(saved(tmp_path / "set", kind), tmp_path, **options)
    assert len(str(error.value).splitlines()) <= 3


def test_code_of_a_data_set_is_not_run(tmp_path: Path) -> None:
    """A folder whose script would leave a mark: it is an error, or the script is passed over."""
    folder, mark = tmp_path / "set", tmp_path / "mark"
    folder.mkdir()
    (folder / "set.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for streaming in (False, True):
        with pytest.raises(DataError, match="cannot be read"):
            load(folder, tmp_path, streaming=streaming)
    assert not mark.exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1" + b"x" * 50])
def test_damaged_files_are_said(tmp_path: Path, damage: bytes) -> None:
    """Empty or torn."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.parquet").write_bytes(damage)
    with pytest.raises(DataError, match=r"data.path=\S+ (cannot be read|has no text)"):
        load(tmp_path / "set", tmp_path)


def test_a_name_on_the_hub_stays_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what lies here becomes an absolute path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    paths = [load_config(["data=hf", f"data.path={path}"]).config.data.path for path in ("you/yours", "mine", "./none")]
    assert ["you/yours", str(tmp_path / "mine"), str(tmp_path / "none")] == paths
    with pytest.raises(DataError, match=r"data.path=\S+none does not exist"):
        load(paths[2], tmp_path)
    with pytest.raises(DataError, match=r"data.path=you/yours cannot be read: "):
        load("you/yours", tmp_path)


def test_a_run_learns_from_a_stream(tmp_path: Path) -> None:
    """From beginning to end."""
    data = HubConfig(path=str(saved(tmp_path / "set", "jsonl")), streaming=True, val_fraction=0.1)
    summary = finish(tiny_config(tmp_path, data=data, train={"steps": 2}), tmp_path).summary()
    assert (summary or {})["corpus"] == "set"


def test_a_folder_with_outputs_is_refused(tmp_path: Path) -> None:
    """The library would read what runs have written as data; without it the same folder is read."""
    (tmp_path / "mine").mkdir()
    lines = "".join(json.dumps({"text": words(300, number)}) + "\n" for number in range(9))
    (tmp_path / "mine" / "a.jsonl").write_text(lines)
    assert 9 == load(tmp_path / "mine", tmp_path / "cache").meta["num_documents"]
    run = create_run(tmp_path / "mine" / "results", "runs", tiny_config(tmp_path / "a.txt"))
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"holds files that are not data.*\n.* results"):
        load(tmp_path / "mine", tmp_path / "cache")
