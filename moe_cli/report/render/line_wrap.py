"""Where does a line of text break in a terminal? The one line wrap of tables, captions, notes and errors."""

import re
import textwrap
from collections.abc import Sequence

MIN_WIDTH = 20
# The spaces of a quantity, which stays on one line: 18.5 MB, -0.2 % +- 0.9. JOINT is in no text that is printed.
_QUANTITY = re.compile(r"(?<=\d) (?=%|\+-|[kMGTPEZY]?(?:B|FLOP)\b)|(?<=%) (?=\+- )|(?<=\+-) (?=<?\d)")
JOINT = "\x00"


def wrap_lines(
    text: str, width: int, indent: str = "", continued: str = "  ", break_long_words: bool = True
) -> list[str]:
    """Returns a text on as many lines as it takes, broken between words; later lines begin with `continued`."""
    lines = textwrap.wrap(
        _QUANTITY.sub(JOINT, text),
        max(MIN_WIDTH, width),
        initial_indent=indent,
        subsequent_indent=continued,
        break_long_words=break_long_words,
        break_on_hyphens=False,
    )
    return [line.replace(JOINT, " ") for line in lines]


def pack(pieces: Sequence[str], width: int, gap: str = "   ", indent: str = "") -> list[str]:
    """Returns pieces on as few lines as hold them whole. A piece longer than a line has a line of its own."""
    lines = list(pieces[:1])
    for piece in pieces[1:]:
        if len(lines[-1]) + len(gap) + len(piece) <= width:
            lines[-1] += gap + piece
        else:
            lines[-1] += gap.rstrip()
            lines.append(indent + piece)
    return lines
