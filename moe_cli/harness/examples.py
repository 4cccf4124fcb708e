"""Makes the examples of the packaged tasks for lm-evaluation-harness: the same ones for the same seed."""

import random
from pathlib import Path
from typing import Any

from moe_cli.errors import DataError
from moe_cli.files.reading import Unreadable, read_bytes

NUM_EXAMPLES = 500
MAX_TEXT_BYTES = 2**30
NOUNS = ("king", "son", "servant", "man", "prophet", "daughter", "city", "house", "river", "tree", "tent", "sword")
IRREGULAR = {"man": "men", "city": "cities"}
PREPOSITIONS = ("near", "behind", "with", "before")
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
ENDS = {"is": "here", "was": "there", "has": "no bread"}
NAMES = ("Anna", "David", "Ruth", "Peter", "Mary", "Simon", "Martha", "John")
THINGS = ("bread", "water", "gold", "oil", "wine", "salt", "silver", "wood")
CALLS = ("len", "max", "min", "sum", "list", "set", "sorted", "print", "tuple")
VALUES = ("x", "y", "name", "value", "items", "0", "1", "self")
BRACKETS = {"(": ")", "[": "]", "{": "}"}


def agreement(number: int = NUM_EXAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """Returns pairs of sentences: the verb agrees with its subject, or with a noun of the other number before it."""
    draw = random.Random(f"agreement {seed}")
    pairs = []
    for _ in range(number):
        subject, other = draw.sample(NOUNS, 2)
        is_plural = draw.random() < 0.5
        forms = draw.choice(VERBS)
        start = f"the {_form(subject, is_plural)} {draw.choice(PREPOSITIONS)} the {_form(other, not is_plural)} "
        right, wrong = (f"{start}{forms[plural]} {ENDS[forms[0]]}." for plural in (is_plural, not is_plural))
        pairs.append(_pair(draw, right, wrong))
    return pairs


def brackets(number: int = NUM_EXAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """Returns pairs of lines of Python of equal length: the brackets match, or one that closes is of another kind."""
    draw = random.Random(f"brackets {seed}")
    pairs = []
    for _ in range(number):
        line = f"{draw.choice(VALUES[:5])} = {draw.choice(CALLS)}({_nested(draw, draw.randint(1, 3))})\n"
        places = [place for place, sign in enumerate(line) if sign in BRACKETS.values()]
        place = draw.choice(places)
        others = [sign for sign in BRACKETS.values() if sign != line[place]]
        pairs.append(_pair(draw, line, line[:place] + draw.choice(others) + line[place + 1 :]))
    return pairs


def last_word(number: int = NUM_EXAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """Returns passages whose last word only their first sentences tell."""
    draw = random.Random(f"last word {seed}")
    passages = []
    for _ in range(number):
        names, things = draw.sample(NAMES, 2), draw.sample(THINGS, 2)
        owners = [f"{name} has the {thing}." for name, thing in zip(names, things, strict=True)]
        who = draw.randrange(2)
        text = f"{' '.join(owners)} {names[1 - who]} goes away. {names[who]} stays here with the"
        passages.append({"text": text, "word": things[who]})
    return passages


def file_text(path: str | None) -> list[dict[str, Any]]:
    """Returns the text of a file. Raises DataError if it cannot be read, or if no file is named."""
    if not path:
        raise DataError("the task moe_text needs a file of text: --metadata text=notes.txt")
    try:
        return [{"text": read_bytes(Path(str(path)).expanduser(), MAX_TEXT_BYTES).decode()}]
    except (Unreadable, OSError, UnicodeDecodeError):
        raise DataError(f"text={path} of the task moe_text is no UTF-8 file that can be read.") from None


def _form(noun: str, is_plural: bool) -> str:
    return IRREGULAR.get(noun, f"{noun}s") if is_plural else noun


def _nested(draw: random.Random, depth: int) -> str:
    """Returns an expression with nested calls, indices and dictionaries."""
    if depth == 0:
        return draw.choice(VALUES)
    inner = _nested(draw, depth - 1)
    return draw.choice(
        (
            f"{draw.choice(CALLS)}({inner})",
            f"[{inner}, {draw.choice(VALUES)}]",
            f"items[{inner}]",
            f"{{{inner}: {draw.choice(VALUES)}}}",
        )
    )


def _pair(draw: random.Random, right: str, wrong: str) -> dict[str, Any]:
    """Returns both texts in random order, so that equal scores are right half the time."""
    label = draw.randrange(2)
    return {"choices": [wrong, right] if label else [right, wrong], "label": label}
