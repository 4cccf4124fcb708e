"""A recommendation as the lines of a terminal."""

from moe_cli.report.recommend.recommendation import Recommendation
from moe_cli.report.recommend.text import format_recommendation
from moe_cli.report.render.terminal import wrap


def recommendation_text(found: Recommendation, width: int) -> str:
    """Returns the text of `moe recommend`, wrapped; a command is on one line, so that it can be pasted."""
    lines: list[str] = []
    for number, line in enumerate(format_recommendation(found)):
        indent = "  " if number else ""
        if line.startswith("moe "):
            lines.append(indent + line)
        else:
            lines += [wrapped.plain for wrapped in wrap(line, width, indent=indent)]
    return "\n".join(lines)
