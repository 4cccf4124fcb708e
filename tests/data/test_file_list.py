"""Every kind of data has the same rules for links, duplicates, pipes, outputs, and exclusions."""

import gzip
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.data import (
    FashionMnistConfig,
    ImageFolderConfig,
    MovieLensConfig,
    TextFilesConfig,
    TokenFilesConfig,
)
from moe_cli.config.model import MMoEConfig, ViTConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import ImageTask, RatingTask
from moe_cli.data.load import Data, data_notes, load_data
from moe_cli.errors import DataError
from moe_cli.runs.folder import create_run
from tests.data.made_token_files import raw
from tests.data.test_corpora import write
from tests.tiny import tiny_config, words

LENGTH = 16


def read(data: Any, outputs: Path) -> Data:
    """The data of a configuration as it is resolved before a run."""
    family: dict[str, Any] = {}
    if isinstance(data, ImageFolderConfig | FashionMnistConfig):
        family = {"model": ViTConfig(), "task": ImageTask()}
    elif isinstance(data, MovieLensConfig):
        family = {"model": MMoEConfig(), "task": RatingTask()}
    return load_data(resolve(RunConfig(data=data, **family)).config.data, LENGTH, outputs)


def notes(data: Data) -> list[str]:
    return data_notes(data, RunConfig())


def lines(path: Path, count: int = 9) -> list[str]:
    """Writes records and gives their texts."""
    texts = [words(300, number) for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return sorted(texts)


class Kind:
    """A kind of data in a folder: what makes an item of it, how it is read and how many items were found."""

    def __init__(
        self, ending: str, make: Callable[[Path, int], None], data: Callable[..., Any], count: Callable[[Any], int]
    ) -> None:
        self.ending = ending
        self.make = make
        self.data = data
        self.count = count


def make_text(path: Path, number: int) -> None:
    path.write_text(words(200, number))


def make_image(path: Path, number: int) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(path)


def make_tokens(path: Path, number: int) -> None:
    raw(path, np.random.default_rng(number).integers(0, 1000, 400))


KINDS = {
    "text": Kind(".txt", make_text, TextFilesConfig, lambda data: data.meta["num_documents"]),
    "images": Kind(
        ".png", make_image, lambda **given: ImageFolderConfig(val_fraction=0.3, **given),
        lambda data: data.meta["num_documents"],
    ),
    "tokens": Kind(
        ".bin", make_tokens, lambda **given: TokenFilesConfig(vocab_size=1000, **given),
        lambda data: (data.meta["train_tokens"] + data.meta["val_tokens"] + 399) // 400,
    ),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def fill(root: Path, kind: Kind, items: int = 4) -> Path:
    """Folders a and b with items in each."""
    for place, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for number in range(items):
            kind.make(root / name / f"{number}{kind.ending}", 100 * place + number)
    return root


@every_kind
def test_linked_folders_are_followed(tmp_path: Path, kind: Kind) -> None:
    """A link to a folder elsewhere counts like a folder inside, under the name of the link."""
    fill(tmp_path / "away", kind)
    root = fill(tmp_path / "mine", kind)
    (root / "c").symlink_to(tmp_path / "away" / "a")
    found = read(kind.data(path=str(root)), tmp_path / "outputs")
    assert 12 == kind.count(found)
    assert "tokens" == found.meta["name"] or "c" in found.meta["domains"]


@every_kind
def test_every_file_counts_once(tmp_path: Path, kind: Kind) -> None:
    """Loops, links to what is there already and hard links add nothing, and are noted."""
    root = fill(tmp_path / "mine", kind)
    plain = read(kind.data(path=str(root)), tmp_path / "outputs")
    assert [] == [note for note in notes(plain) if "left out" in note]
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "other").symlink_to(root / "a")
    (root / "b" / "self").symlink_to(root / "b" / "self")
    (root / "a" / f"9{kind.ending}").symlink_to(root / "a" / f"0{kind.ending}")
    os.link(root / "b" / f"1{kind.ending}", root / "b" / f"8{kind.ending}")
    found = read(kind.data(path=str(root)), tmp_path / "outputs")
    assert (kind.count(plain), plain.meta["sha256"]) == (kind.count(found), found.meta["sha256"])
    said = "\n".join(notes(found))
    assert f"left out as already read under another name: a/9{kind.ending}, b/8{kind.ending}, b/other" in said
    assert "left out as a link to a folder around the data: a/loop" in said


@pytest.mark.parametrize("kind", [KINDS["text"], KINDS["tokens"]])
def test_patterns_do_not_go_round_in_loops(tmp_path: Path, kind: Kind) -> None:
    """With two loops there are more paths than can be followed; each file still counts once."""
    root = fill(tmp_path / "mine", kind)
    for name in ("x", "y", "z"):
        (root / "a" / name).symlink_to(root)
    found = read(kind.data(path=f"{root}/**/*{kind.ending}"), tmp_path / "outputs")
    assert 8 == kind.count(found)


@every_kind
def test_what_is_excluded_is_left_out(tmp_path: Path, kind: Kind) -> None:
    """A pattern is a name at any depth, or with a slash a path from the folder; what has no effect is noted."""
    root = fill(tmp_path / "mine", kind)
    for pattern, left in [("0*", 6), ("b/[01]*", 6), ("**/3*", 6), (f"b/**/1{kind.ending}", 7), (("0*", "a/1*"), 5)]:
        given = (pattern,) if isinstance(pattern, str) else pattern
        found = read(kind.data(path=str(root), exclude=given), tmp_path / "outputs")
        assert left == kind.count(found), pattern
        assert any(note.startswith("left out by data.exclude: ") for note in notes(found))
    for idle, given in (("*.log", ("0*", "*.log")), ("b/0*", ("b/0*", "0*"))):
        found = read(kind.data(path=str(root), exclude=given), tmp_path / "outputs")
        assert f"data.exclude={idle} leaves nothing out" in notes(found)
    with pytest.raises(DataError, match=r"data.exclude=\*.log has no effect: data.path=.* is a file"):
        read(kind.data(path=str(root / "a" / f"0{kind.ending}"), exclude=("*.log",)), tmp_path / "outputs")


@every_kind
def test_outputs_are_no_data(tmp_path: Path, kind: Kind) -> None:
    """This run's outputs folder, another one of any name, and a run folder that was copied, wherever they lie."""
    root = fill(tmp_path / "mine", kind)
    before = read(kind.data(path=str(root)), root / "mine")
    for place in (root / "mine", root / "a" / "results"):
        run = create_run(place, "runs", tiny_config(tmp_path / "a.txt"))
        kind.make(run.path / f"made{kind.ending}", 7)
        kind.make(place / f"made{kind.ending}", 8)
    run.path.rename(root / "a" / "moved")
    (root / "own").mkdir()
    kind.make(root / "own" / f"made{kind.ending}", 9)
    found = read(kind.data(path=str(root)), root / "own")
    assert (kind.count(before), before.meta["sha256"]) == (kind.count(found), found.meta["sha256"])
    assert any(note.endswith(": a/moved, a/results, mine and 1 more") for note in notes(found))


@every_kind
@pytest.mark.parametrize("place", ["", "runs", "run"])
def test_outputs_are_refused_as_a_data_path(tmp_path: Path, kind: Kind, place: str) -> None:
    """An outputs folder, the folder of a sweep and a run folder, with what to do."""
    run = create_run(tmp_path / "results", "runs", tiny_config(tmp_path / "a.txt"))
    path = {"": tmp_path / "results", "runs": run.path.parent, "run": run.path}[place]
    kind.make(path / f"made{kind.ending}", 7)
    with pytest.raises(DataError, match=f"data.path={path} .*outputs of moe are not data"):
        read(kind.data(path=str(path)), tmp_path / "outputs")


@every_kind
@pytest.mark.parametrize("special", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, special: str
) -> None:
    """A pipe, a socket and a device as the data path are named; in a folder they are left out, and noted."""
    path = tmp_path / f"special{kind.ending}"
    root = fill(tmp_path / "mine", kind)
    inside = root / "a" / path.name
    if special == "pipe":
        os.mkfifo(path)
        os.mkfifo(inside)
    elif special == "socket":
        for place in (path, inside):
            monkeypatch.chdir(place.parent)  # a socket's path may not be long
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(place.name)
    else:
        path = Path("/dev/zero")
        inside.symlink_to(path)
    with pytest.raises(DataError, match=f"data.path={path} is a {special}, and only files are read"):
        read(kind.data(path=str(path)), tmp_path / "outputs")
    found = read(kind.data(path=str(root)), tmp_path / "outputs")
    assert 8 == kind.count(found)
    assert f"left out as a {special}: a/{inside.name}" in notes(found)


def test_process_substitution_is_refused_by_its_name() -> None:
    """A path such as /dev/fd/63 stays what was typed, and is a pipe."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(DataError, match=f"data.path=/dev/fd/{reading} is a pipe, and only files are read"):
            read(TextFilesConfig(path=f"/dev/fd/{reading}"), Path("outputs"))
    finally:
        os.close(reading)
        os.close(writing)


def test_files_of_fixed_names_may_be_no_pipes(tmp_path: Path) -> None:
    """Ratings, Fashion-MNIST and tokenizers are refused as text is, without waiting for the other end of a pipe."""
    for name in ("u.data", "train-images-idx3-ubyte.gz", "tokenizer.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "a.txt").write_text(words(3000))
    pytest.importorskip("tokenizers")
    cases = {
        "u.data": MovieLensConfig(path=str(tmp_path)),
        "train-images-idx3-ubyte.gz": FashionMnistConfig(path=str(tmp_path)),
        "tokenizer.json": TextFilesConfig(path=str(tmp_path / "a.txt"), tokenizer=str(tmp_path / "tokenizer.json")),
    }
    for name, data in cases.items():
        with pytest.raises(DataError, match=f"{name} is a pipe, and only files are read"):
            read(data, tmp_path / "outputs")


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the listing and the reading nothing is taken for granted."""
    from moe_cli.data import file_list

    path = tmp_path / "a.txt"
    os.mkfifo(path)
    monkeypatch.setattr(file_list, "check_readable", lambda path, label: os.stat(__file__))
    caught: list[BaseException] = []

    def opened() -> None:
        try:
            file_list.open_file(path)
        except DataError as error:
            caught.append(error)

    thread = threading.Thread(target=opened, daemon=True)
    thread.start()
    thread.join(20)
    assert [f"{path} is a pipe, not a file."] == list(map(str, caught))


@pytest.mark.parametrize("given", ["file", "folder", "pattern"])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".txt.gz", ".parquet"])
def test_a_link_says_by_its_own_name_what_a_file_is(tmp_path: Path, ending: str, given: str) -> None:
    """In the layout of the Hugging Face cache, where names are links to blobs that are called by their hash."""
    snapshot = tmp_path / "datasets--me--mine" / "snapshots" / "abc" / "data"
    blob = tmp_path / "datasets--me--mine" / "blobs" / "0f343b0931126a20f133d67c2b018a3b"
    texts = lines(blob)
    if ending == ".txt.gz":
        blob.write_text(texts[0] * 10)
        texts = [texts[0] * 10]
    if ending.endswith(".gz"):
        blob.write_bytes(gzip.compress(blob.read_bytes()))
    if ending == ".parquet":
        parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.table({"text": texts}), blob)
    snapshot.mkdir(parents=True)
    (snapshot / f"train{ending}").symlink_to("../../../blobs/" + blob.name)
    path = {"file": snapshot / f"train{ending}", "folder": snapshot.parent, "pattern": snapshot / "*"}[given]
    found: Any = read(TextFilesConfig(path=str(path)), tmp_path / "outputs")
    assert len(texts) == found.meta["num_documents"]
    assert sum(map(len, texts)) == found.meta["num_bytes"]


def test_a_name_with_an_ending_counts_before_one_without(tmp_path: Path) -> None:
    """In a whole repository of the cache each blob counts once, under its name in the snapshot."""
    texts = lines(tmp_path / "repository" / "blobs" / "abc")
    (tmp_path / "repository" / "snapshots").mkdir()
    (tmp_path / "repository" / "snapshots" / "train.jsonl").symlink_to("../blobs/abc")
    found: Any = read(TextFilesConfig(path=str(tmp_path / "repository")), tmp_path / "outputs")
    assert len(texts) == found.meta["num_documents"]


@pytest.mark.parametrize("name", ["u.data", "t.bin", "cat.png"])
def test_links_of_every_kind_keep_their_names(tmp_path: Path, name: str) -> None:
    """Ratings, tokens and images too, in files that are links."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    if name == "u.data":
        (blobs / "x").write_text("".join(f"{i % 6}\t{i % 5}\t{1 + i % 5}\t0\n" for i in range(60)))
        (tmp_path / name).symlink_to(blobs / "x")
        assert 60 == read(MovieLensConfig(path=str(tmp_path / name)), tmp_path / "outputs").meta["num_documents"]
    elif name == "t.bin":
        make_tokens(blobs / "x", 0)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / name).symlink_to(blobs / "x")
        data = TokenFilesConfig(path=str(tmp_path / "mine"), vocab_size=1000, val_fraction=0.2)
        assert 1 == KINDS["tokens"].count(read(data, tmp_path / "outputs"))
    else:
        for label, number in (("cat", 0), ("dog", 1), ("cat", 2), ("dog", 3), ("cat", 4), ("dog", 5)):
            make_image(blobs / "blob.png", number)
            (tmp_path / "mine" / label).mkdir(parents=True, exist_ok=True)
            (blobs / "blob.png").rename(blobs / str(number))
            (tmp_path / "mine" / label / f"{number}.png").symlink_to(blobs / str(number))
        assert 6 == read(ImageFolderConfig(path=str(tmp_path / "mine")), tmp_path / "outputs").meta["num_documents"]


def test_a_validation_file_may_be_a_link(tmp_path: Path) -> None:
    """A file that is held out by its name is so under the name of the link."""
    write(tmp_path / "mine", {"train.txt": words(3000)})
    (tmp_path / "elsewhere.txt").write_text(words(500, 1))
    (tmp_path / "mine" / "val.txt").symlink_to(tmp_path / "elsewhere.txt")
    found: Any = read(TextFilesConfig(path=str(tmp_path / "mine")), tmp_path / "outputs")
    assert found.meta["by_name"]
    assert words(500, 1) == found.tokenizer.decode([*found.val]).strip("\0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere.txt"), "is a link to nowhere.txt, which does not exist."),
        (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links."),
        (lambda path: None, "does not exist."),
        (lambda path: path.mkdir(), "is a folder without files."),
    ],
)
def test_a_path_without_files_is_named(tmp_path: Path, make: Any, message: str) -> None:
    """A link that leads nowhere or in a circle, nothing, an empty folder."""
    make(tmp_path / "a.txt")
    with pytest.raises(DataError) as error:
        load_data(TextFilesConfig(path=str(tmp_path / "a.txt")), LENGTH, tmp_path / "outputs")
    assert f"data.path={tmp_path / 'a.txt'} {message}" == str(error.value)


def test_a_name_that_is_too_long_is_an_error_of_ours(tmp_path: Path) -> None:
    """The system refuses it before it looks for it."""
    with pytest.raises(DataError, match="File name too long"):
        load_data(TextFilesConfig(path=str(tmp_path / ("x" * 300))), LENGTH, tmp_path / "outputs")


@given(st.recursive(st.just(("a.txt",)), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8), st.data())
def test_links_never_add_text(tmp_path_factory: pytest.TempPathFactory, tree: Any, draw: st.DataObject) -> None:
    """Whatever links between the folders of a tree there are, the same files count, once each."""
    root = tmp_path_factory.mktemp("tree")
    folders = [root]

    def grow(folder: Path, inner: Any) -> None:
        for number, child in enumerate(inner):
            if isinstance(child, str):
                (folder / child).write_text(words(100, len(folders)))
            else:
                (folder / str(number)).mkdir()
                folders.append(folder / str(number))
                grow(folder / str(number), child)

    grow(root, (*tree, "z.txt"))
    from moe_cli.data.file_list import find_files

    before = [path.stat().st_ino for path in find_files(str(root)).paths]
    for number in range(draw.draw(st.integers(0, 4))):
        source, target = (draw.draw(st.sampled_from(folders)) for _ in range(2))
        (source / f"link{number}").symlink_to(target)
    found = find_files(str(root))
    assert sorted(before) == sorted(path.stat().st_ino for path in found.paths)
    assert not any("link" in str(path.relative_to(root)) for path in found.paths)
