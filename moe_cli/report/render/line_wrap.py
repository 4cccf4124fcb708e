"""Where does a line of text break in a terminal? The one line wrap of tables, captions, notes and errors."""

import textwrap
from collections.abc import Sequence

MIN_WIDTH = 20


def wrap_lines(
    text: str, width: int, indent: str = "", continued: str = "  ", break_long_words: bool = True
) -> list[str]:
    """Returns a text on as many lines as it takes, broken between words; later lines begin with `continued`."""
    return textwrap.wrap(
        text,
        max(MIN_WIDTH, width),
        initial_indent=indent,
        subsequent_indent=continued,
        break_long_words=break_long_words,
        break_on_hyphens=False,
    )


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
