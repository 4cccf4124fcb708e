"""Shows the progress of the import of train.upcycle_from=hf:FOLDER."""

from pathlib import Path

from moe_cli.formatting import format_bytes


def with_imported_source(
    overrides: list[str], outputs: Path, *, may_import: bool, like: str | None = None
) -> list[str]:
    """Returns the words of a command with an imported run in place of hf:FOLDER; see `import_upcycle_source`."""
    if not any(word.startswith("train.upcycle_from=") for word in overrides):
        return overrides
    from moe_cli.cli.console import CommandConsole
    from moe_cli.exchange.upcycle_source import import_upcycle_source

    with CommandConsole(stderr=True).status("import") as status:
        return import_upcycle_source(
            overrides,
            outputs,
            may_import=may_import,
            like=like,
            on_bytes=lambda done, total: status.update(f"import: {format_bytes(done)} of {format_bytes(total)}"),
        )
