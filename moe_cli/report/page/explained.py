"""An explained text as one page for a browser; its content is `moe_cli.cli.explained.page_content`."""

from moe_cli.report.page import Parts, assembled

GENERATOR = "moe explain"
SCRIPTS = ("draw.js", "experts.js", "frame.js", "explained.js")


def explained_page(content: dict[str, object], title: str, plain: str, program: str) -> str:
    """The page; `plain` is what is shown where scripts are switched off."""
    parts = Parts(title, plain, f"{GENERATOR}, {program}", SCRIPTS, ("page.css", "explained.css"), ("text", "text"))
    return assembled(content, parts)
