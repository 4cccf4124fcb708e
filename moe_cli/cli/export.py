"""moe export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.options import AsJson, Checkpoint, Outputs, PluginFiles, RunName, print_json, trained_run
from moe_cli.cli.terminal import echo
from moe_cli.formatting import format_bytes, sanitise

if TYPE_CHECKING:
    from moe_cli.exchange.export_run import Export

FORMATS = ("hf",)


def export(
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is empty or does not exist.")],
    form: Annotated[
        str, typer.Option("--format", metavar="hf", help="hf: a folder for transformers.", show_default=True)
    ] = "hf",
    checkpoint: Checkpoint = "latest",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that has files.")] = False,
    outputs: Outputs = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained model as a folder that transformers loads.

    Models without a counterpart there are refused. Nothing but safetensors and JSON is written.

    Examples:
        moe export latest model
        moe export latest model --checkpoint best --force
    """
    from moe_cli.config.build import check_choice
    from moe_cli.runs.folder import outputs_folder

    check_choice("--format", form, FORMATS)
    found_in = outputs_folder(outputs)
    found = trained_run(found_in, run)

    from moe_cli.cli.console import Terminal
    from moe_cli.exchange.export_run import export_run

    with Terminal(stderr=True).status("export") as status:
        result = export_run(
            found,
            found_in,
            folder.expanduser(),
            checkpoint,
            force=force,
            on_bytes=lambda done, total: status.update(f"export: {format_bytes(done)} of {format_bytes(total)}"),
        )
    if as_json:
        print_json(_to_dict(result))
        return
    shown = sanitise(str(result.folder))
    echo(f"{shown}   {result.architecture}   step {result.step:,}   {format_bytes(result.num_bytes)}")
    if not result.has_tokenizer:
        echo("note: the run read ready-made tokens: there is no tokenizer.json.", fg="yellow", err=True)


def _to_dict(result: "Export") -> dict[str, object]:
    return {
        "run": result.run,
        "step": result.step,
        "folder": str(result.folder),
        "architecture": result.architecture,
        "bytes": result.num_bytes,
        "files": [path.name for path in result.files],
    }
