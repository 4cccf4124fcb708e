"""Which data a run learns from: one class for each kind, told apart by `name`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.ranges import at_least, between
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class CorpusConfig:
    """What the `python` and `text` corpora share."""

    tokenizer: Literal["bytes", "chars"] = "bytes"
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        between("data.val_fraction", self.val_fraction, 0.001, 0.5)


@dataclass(frozen=True)
class PythonData(CorpusConfig):
    name: Literal["python"] = "python"


@dataclass(frozen=True)
class TextData(CorpusConfig):
    """The user's own texts. `field` is where .jsonl and .parquet hold them; null: "text"."""

    name: Literal["text"] = "text"
    path: str | None = None
    field: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("data=text needs a file or folder. Add: data.path=FILE_OR_FOLDER")


@dataclass(frozen=True)
class TokenData:
    """Ready-made token files: little-endian integers of `dtype`, with or without a header."""

    tokenizer: ClassVar[str] = "ids"  # whose text nobody knows here
    name: Literal["tokens"] = "tokens"
    path: str | None = None
    dtype: Literal["uint8", "uint16", "uint32"] = "uint16"
    vocab_size: int | None = None
    val_fraction: float = 0.01
    val_tokens: int | None = 2**20

    def __post_init__(self) -> None:
        between("data.val_fraction", self.val_fraction, 0.0001, 0.5)
        at_least("data.val_tokens", self.val_tokens, 2)
        if not self.path:
            raise ConfigError("data=tokens needs a file or folder of tokens. Add: data.path=FILE_OR_FOLDER")
        if self.vocab_size is None:
            raise ConfigError(
                "data=tokens needs to know how many tokens there are. Add, for GPT-2's: data.vocab_size=50257"
            )
        between("data.vocab_size", self.vocab_size, 2, 2**32)


DataConfig = PythonData | TextData | TokenData
