"""Settings of the probes: generated questions with one exact answer each, so that the best loss is 0.

A question is a text of fixed length: a new line, a prompt, `=`, and the answer. Each character is a token. Nothing is
generated here: sizes and the chance level follow from the settings.
"""

import math
import string
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from moe_cli.config.ranges import check_between
from moe_cli.config.settings import Settings, setting
from moe_cli.errors import ConfigError

# The first character of a question, and the one between prompt and answer.
START, ANSWER = "\n", "="
ARROW, EDGE_END = ">", " "
# The symbols of numbers and nodes, in order: digits, letters, then the letters of Unicode from U+00C0 on.
ALPHANUMERICS = string.digits + string.ascii_uppercase + string.ascii_lowercase
NUMERALS = ALPHANUMERICS + "".join(chr(code) for code in range(0xC0, 0x250) if code not in (0xD7, 0xF7))
# The sign of each operation of data=modular.
SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
MAX_QUESTIONS = 2**20


@dataclass(frozen=True)
class _Probe(Settings, ABC):
    group: ClassVar[str] = "data"
    tokenizer: ClassVar[str] = "chars"
    num_bpe_tokens: ClassVar[int | None] = None
    test_fraction: ClassVar[float] = 0.0
    seed: int = setting(between=(0, 2**32))

    @property
    @abstractmethod
    def prompt_symbols(self) -> str:
        """Returns the characters of prompts."""

    @property
    @abstractmethod
    def answer_symbols(self) -> str:
        """Returns the characters of answers."""

    @property
    @abstractmethod
    def prompt_length(self) -> int:
        """Returns the characters of a prompt, between START and ANSWER."""

    @property
    @abstractmethod
    def answer_length(self) -> int:
        """Returns the characters of an answer."""

    @property
    @abstractmethod
    def num_train(self) -> int:
        """Returns the number of training questions."""

    @property
    @abstractmethod
    def num_val(self) -> int:
        """Returns the number of validation questions."""

    @property
    def alphabet(self) -> str:
        """Returns the characters of all questions, which the settings fix."""
        return "".join(sorted({START, ANSWER, *self.prompt_symbols, *self.answer_symbols}))

    @property
    def vocab_size(self) -> int:
        """Returns the number of tokens: the alphabet, and the separator between the splits."""
        return len(self.alphabet) + 1

    @property
    def context_length(self) -> int:
        """Returns the tokens that a model reads of a question: all but the last."""
        return len(START) + self.prompt_length + len(ANSWER) + self.answer_length - 1

    @property
    def chance_accuracy(self) -> float:
        """Returns the share of right answers of a model that draws each token of an answer from `answer_symbols`."""
        return float(len(self.answer_symbols)) ** -self.answer_length

    @property
    def chance_loss(self) -> float:
        """Returns the loss of such a model, in nats per token of an answer."""
        return math.log(len(self.answer_symbols))


@dataclass(frozen=True)
class PhonebookConfig(_Probe):
    """Names with numbers to memorise (arXiv:2410.19034, figure 4a). Both splits ask for every number.

    Attributes:
        entries: number of names, which differ.
        name_length: letters of a name.
        number_length: digits of a number.
    """

    val_fraction: ClassVar[float] = 0.0
    name: Literal["phonebook"] = "phonebook"
    entries: int = setting(between=(2, MAX_QUESTIONS))
    name_length: int = setting(between=(1, 32))
    number_length: int = setting(between=(1, 32))

    def check(self) -> None:
        names = len(string.ascii_lowercase) ** self.name_length
        if self.entries > names:
            raise ConfigError(
                f"data.entries={self.entries} is more than the {names:,} names of data.name_length={self.name_length} "
                f"letters. Use data.name_length={self.name_length + 1}"
            )

    @property
    def prompt_symbols(self) -> str:
        return string.ascii_lowercase

    @property
    def answer_symbols(self) -> str:
        return string.digits

    @property
    def prompt_length(self) -> int:
        return self.name_length

    @property
    def answer_length(self) -> int:
        return self.number_length

    @property
    def num_train(self) -> int:
        return self.entries

    @property
    def num_val(self) -> int:
        return self.entries


@dataclass(frozen=True)
class ShortestPathConfig(_Probe):
    """Small random graphs with a question for the only shortest path between two nodes (arXiv:2410.19034, figure 4b).

    Attributes:
        nodes, edges: sizes of each graph. Edges have no direction.
        hops: edges of the shortest path. The answer has its nodes without the first.
        train_graphs, val_graphs: number of graphs in each split. All graphs differ.
    """

    val_fraction: ClassVar[float] = 0.0
    name: Literal["shortest_path"] = "shortest_path"
    nodes: int = setting(between=(3, len(ALPHANUMERICS)))
    edges: int = setting(between=(2, 1024))
    hops: int = setting(between=(2, len(ALPHANUMERICS) - 1))
    train_graphs: int = setting(between=(2, MAX_QUESTIONS))
    val_graphs: int = setting(between=(2, MAX_QUESTIONS))

    def check(self) -> None:
        check_between("data.edges", self.edges, 2, math.comb(self.nodes, 2))
        check_between("data.hops", self.hops, 2, min(self.edges, self.nodes - 1))
        graphs = math.comb(math.comb(self.nodes, 2), self.edges)
        if self.train_graphs + self.val_graphs > graphs:
            raise ConfigError(
                f"data.train_graphs={self.train_graphs} and data.val_graphs={self.val_graphs} are more than the "
                f"{graphs:,} graphs of {self.nodes} nodes and {self.edges} edges. Raise data.nodes, or lower both."
            )

    @property
    def prompt_symbols(self) -> str:
        return EDGE_END + ARROW + self.answer_symbols

    @property
    def answer_symbols(self) -> str:
        return ALPHANUMERICS[: self.nodes]

    @property
    def prompt_length(self) -> int:
        return 3 * self.edges - len(EDGE_END) + len(ARROW) + 2

    @property
    def answer_length(self) -> int:
        return self.hops

    @property
    def num_train(self) -> int:
        return self.train_graphs

    @property
    def num_val(self) -> int:
        return self.val_graphs


@dataclass(frozen=True)
class ModularConfig(_Probe):
    """Arithmetic modulo a number, with held-out pairs of operands (arXiv:2201.02177, section 3).

    Attributes:
        operation: multiply and divide have no operand 0, and need a prime modulus, so that all answers are equally
            frequent.
        val_fraction: fraction of the pairs that are held out.
    """

    name: Literal["modular"] = "modular"
    modulus: int = setting(between=(3, len(NUMERALS)))
    operation: Literal["add", "subtract", "multiply", "divide"] = setting()
    val_fraction: float = setting(between=(0.01, 0.99))

    def check(self) -> None:
        if self.smallest_operand and not _is_prime(self.modulus):
            prime = next(number for number in range(self.modulus - 1, 1, -1) if _is_prime(number))
            raise ConfigError(
                f"data.modulus={self.modulus} is not prime, and data.operation={self.operation} needs a prime number. "
                f"Use data.modulus={prime}, or data.operation=add"
            )
        if min(self.num_train, self.num_val) < 2:
            raise ConfigError(
                f"data.val_fraction={self.val_fraction:g} of {self.num_pairs} pairs leaves {self.num_train} for "
                f"training and {self.num_val} for validation. Raise data.modulus."
            )

    @property
    def smallest_operand(self) -> int:
        return 1 if self.operation in ("multiply", "divide") else 0

    @property
    def num_pairs(self) -> int:
        return (self.modulus - self.smallest_operand) ** 2

    @property
    def prompt_symbols(self) -> str:
        return SIGNS[self.operation] + self.answer_symbols

    @property
    def answer_symbols(self) -> str:
        return NUMERALS[self.smallest_operand : self.modulus]

    @property
    def prompt_length(self) -> int:
        return 2 + len(SIGNS[self.operation])

    @property
    def answer_length(self) -> int:
        return 1

    @property
    def num_train(self) -> int:
        return self.num_pairs - self.num_val

    @property
    def num_val(self) -> int:
        return round(self.val_fraction * self.num_pairs)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


ProbeConfig = PhonebookConfig | ShortestPathConfig | ModularConfig
# The settings of each probe, by its name.
PROBE_CLASSES: dict[str, Any] = {kind.name: kind for kind in get_args(ProbeConfig)}
