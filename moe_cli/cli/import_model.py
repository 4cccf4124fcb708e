"""moe import."""

from pathlib import Path
from typing import Annotated

import typer

from moe_cli.cli.options import AsJson, Outputs, Overrides, print_json, print_notes
from moe_cli.cli.terminal import echo
from moe_cli.formatting import format_bytes, format_loss


def import_model(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with config.json, safetensors and tokenizer.json.")
    ],
    overrides: Overrides = None,
    evaluate: Annotated[bool, typer.Option("--eval/--no-eval", help="Evaluate it on the validation split.")] = True,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Bring a model of transformers in as a run, and evaluate it.

    Only JSON and safetensors are read, and nothing in the folder is executed. Settings choose the data.

    Examples:
        moe import ./OLMoE-1B-7B data=text data.path=notes.txt
        moe import ./model --no-eval
    """
    from moe_cli.cli.console import Terminal
    from moe_cli.exchange.import_folder import evaluate_imported, import_folder
    from moe_cli.runs.folder import outputs_folder

    found_in = outputs_folder(outputs)
    with Terminal(stderr=True).status("import") as status:
        run, notes = import_folder(
            folder.expanduser(),
            found_in,
            overrides or [],
            on_bytes=lambda done, total: status.update(f"import: {format_bytes(done)} of {format_bytes(total)}"),
        )
        print_notes(notes)
        if evaluate:
            status.update("evaluation")
        results = evaluate_imported(run, found_in) if evaluate else {}
    loss = results.get("val_loss")
    if as_json:
        print_json({"run": run.id, "path": str(run.path), "status": "imported", "results": results or None})
        return
    echo(f"{run.id}   imported" + ("" if loss is None else f"   {format_loss(results.get('val_bpb'), loss)}"))
