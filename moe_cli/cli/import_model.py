"""moe import."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from moe_cli.cli.echo import echo
from moe_cli.cli.options import AsJson, Outputs, Overrides, print_json, print_notes
from moe_cli.formatting import format_bytes, format_loss


def import_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder with config.json, safetensors and tokenizer.json; or OWNER/NAME of the hub."
        ),
    ],
    overrides: Overrides = None,
    evaluate: Annotated[bool, typer.Option("--eval/--no-eval", help="Evaluate it on the validation split.")] = True,
    outputs: Outputs = None,
    as_json: AsJson = False,
) -> None:
    """Bring a model of transformers in as a run, and evaluate it.

    Only JSON and safetensors are read, and nothing in them is executed. Settings choose the data. A name of the hub
    is fetched, where no folder has that name.

    Examples:
        moe import ./OLMoE-1B-7B data=text data.path=notes.txt
        moe import allenai/OLMoE-1B-7B-0924 --no-eval
    """
    from moe_cli.cli.console import CommandConsole
    from moe_cli.exchange.hub import find_model
    from moe_cli.exchange.import_folder import evaluate_imported, import_folder, imported_before
    from moe_cli.runs.folder import outputs_folder

    found_in = outputs_folder(outputs)
    with CommandConsole(stderr=True).status("import") as status:
        folder = find_model(model, found_in, on_file=lambda name: status.update(f"fetch: {name}"))
        before = imported_before(folder, found_in, overrides or [])
        if before is None:
            run, notes = import_folder(
                folder,
                found_in,
                overrides or [],
                on_bytes=lambda done, total: status.update(f"import: {format_bytes(done)} of {format_bytes(total)}"),
            )
        else:
            run, notes = before, (f"{folder} was imported before, with these settings and weights: nothing is copied.",)
        print_notes(notes)
        results: Mapping[str, Any] = run.summary() or {}
        if evaluate and not results:
            status.update("evaluation")
            results = evaluate_imported(run, found_in)
    loss = results.get("val_loss")
    if as_json:
        print_json({"run": run.id, "path": str(run.path), "status": "imported", "results": results or None})
        return
    echo(f"{run.id}   imported" + ("" if loss is None else f"   {format_loss(results.get('val_bpb'), loss)}"))
    echo(f"  path  {run.path}")
    echo(f"  next  moe {'eval' if loss is None else 'sample'} {run.id}")
