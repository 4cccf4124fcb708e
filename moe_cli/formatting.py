"""Numbers in readable form: 1.23M, 1m 32s, +21 %; and untrusted text without terminal control characters."""

import math
import re
import sys
from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"
# The same heights where the terminal has no blocks.
DIGITS = "12345678"
YEAR = 31_557_600  # seconds


def count(value: float) -> str:
    """Formats a count with three significant digits and a unit: 853, 24.1k, 2.00M, 1.31G, up to Y, 1e24."""
    if abs(value) < 999.5:
        return f"{value:z.0f}"
    for unit in "kMGTPEZY":
        value /= 1000
        if abs(value) < 999.5:
            return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}{unit}"
    return f"{value:.3g}Y"


def format_half_width(value: float, digits: int, form: str = "f") -> str:
    """Formats half the width of an interval. One that rounds to nothing is small, not absent: <0.1."""
    text = f"{value:.{digits}{form}}"
    return text if float(text) or not value else f"<{10**-digits:.{digits}f}"


def format_bytes(value: float) -> str:
    """Formats a size with its unit: 853 B, 24.1 kB, 1.31 GB."""
    return _with_unit(value, "B")


def format_flops(value: float) -> str:
    """Formats an amount of computation with its unit: 853 FLOP, 5.32 MFLOP."""
    return _with_unit(value, "FLOP")


def _with_unit(value: float, unit: str) -> str:
    text = count(value)
    prefix = text[-1] if text[-1].isalpha() else ""
    return f"{text.removesuffix(prefix)} {prefix}{unit}"


def plural(number: int, noun: str) -> str:
    """Formats a count with its noun: 1 seed, 2 seeds, 1,024 runs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """Returns the first names, and the number of others: a, b and 3 more."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(text: str | None, default: str) -> str:
    """Returns the first line of a text that is not blank; the default for None and for a text of blanks."""
    return next(iter((text or "").strip().splitlines()), default)


def or_dash(value: float | None, digits: int = 3) -> str:
    """Returns the value with `digits` after the point, or - for None."""
    return "-" if value is None else f"{value:z.{digits}f}"


def format_loss(bits_per_byte: float | None, nats: float, target: str = "token") -> str:
    """Formats the result of a run: in bits per byte, or nats per token, image or other target if bytes are unknown."""
    return f"{nats:z.3f} nats/{target}" if bits_per_byte is None else f"{bits_per_byte:z.3f} bits/byte"


def duration(seconds: float) -> str:
    """Formats a duration: 8s, 1m 32s, 2h 5m, 12 years."""
    seconds = round(seconds)
    if seconds >= 2 * YEAR:
        return f"{seconds // YEAR:,} years"
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60}m"


def age(seconds: float) -> str:
    """Formats an age with one unit, for lists: 8s, 32m, 5h, 12d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def parse_duration(text: str) -> float | None:
    """Returns the seconds in 30s, 10m, 2h, 1d or 1h30m; None for anything else, and for nothing at all."""
    found = re.fullmatch(
        r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text.replace(" ", ""), re.ASCII
    )
    if not found:
        return None
    parts = zip(found.groups(), (86_400, 3600, 60, 1), strict=True)
    return sum(int(number) * size for number, size in parts if number) or None


def percent(share: float, signed: bool = False) -> str:
    """Formats a fraction: 21 %, or +21 % when signed; one digit after the point below 10 %."""
    value = 100 * share
    text = f"{value:{'+' if signed else ''}.{0 if abs(value) >= 9.95 else 1}f}"
    return ("0" if not float(text) else text) + " %"


def bars(load: Sequence[float], width: int, blocks: str = BARS) -> str:
    """Draws one block per expert, as high as its load; a fair load is half height. Neighbours merge beyond `width`."""
    total = sum(load)
    if not total:
        return blocks[0] * min(len(load), width)
    per_bar = -(-len(load) // width)
    groups = [load[first : first + per_bar] for first in range(0, len(load), per_bar)]
    fair = total / len(load)
    heights = [max(group) / (2 * fair) for group in groups]
    return "".join(blocks[min(7, int(8 * height))] for height in heights)


def sparkline(values: Sequence[float], width: int) -> str:
    """Returns a block for each value, the lowest value lowest; beyond `width`, one for the mean of neighbours."""
    if not values:
        return ""
    shown = values
    if len(values) > width:
        edges = [round(place * len(values) / width) for place in range(width + 1)]
        shown = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)


def is_utf8(text: str) -> bool:
    """Returns whether a text can be written as UTF-8: not names with other bytes, nor lone surrogates in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_utf8(text: str) -> str:
    """Returns the text with unencodable parts escaped: a byte as \\xff, a lone surrogate as \\ud800."""
    if is_utf8(text):
        return text
    whole = "".join(part if is_utf8(part) or "\udc80" <= part <= "\udcff" else f"\\u{ord(part):04x}" for part in text)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sanitise(text: str) -> str:
    """Returns the text with everything that could move a cursor, start a line or turn writing around shown as '?'."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)


def foreign_name(text: str) -> str:
    """Returns a name or a value from a file of another program for a message: at most 80 harmless characters."""
    return sanitise(text[:80])


def print_line(text: str) -> None:
    """Prints a line on standard error, without control characters; a closed stream is no error."""
    if sys.stderr is not None:
        print(sanitise(text), file=sys.stderr, flush=True)  # noqa: T201
