"""moe export."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.echo import echo
from moe_cli.cli.options import AsJson, Checkpoint, Outputs, PluginFiles, RunName, print_json, trained_run
from moe_cli.formatting import format_bytes, sanitise

if TYPE_CHECKING:
    from moe_cli.exchange.export_run import Export
    from moe_cli.exchange.model_file import ModelFile
    from moe_cli.runs.folder import Run

FORMATS = ("hf", "onnx", "gguf")


def export(  # noqa: PLR0913  (an option each)
    run: RunName,
    target: Annotated[
        Path,
        typer.Argument(metavar="FOLDER|FILE", help="A new or empty folder, or a new file .onnx or .gguf."),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="hf: a folder for transformers; onnx, gguf: a file for onnxruntime or llama.cpp.",
            show_default="by the ending, else hf",
        ),
    ] = None,
    checkpoint: Checkpoint = "latest",
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|float16", help="Of matrices in a file .gguf.", show_default="float32"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that has files, or replace the file.")
    ] = False,
    outputs: Outputs = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained model for another program to run.

    transformers reads a folder, onnxruntime a file .onnx, llama.cpp a file .gguf. Models without a counterpart are
    refused. Nothing that is written can execute code.

    Examples:
        moe export latest model
        moe export latest model.gguf --dtype float16
    """
    from moe_cli.runs.folder import outputs_folder

    kind = _choose_format(target, form)
    _check_dtype(kind, dtype)
    found_in = outputs_folder(outputs)
    found = trained_run(found_in, run)
    if kind == "hf":
        _write_folder(found, found_in, target.expanduser(), checkpoint, force=force, as_json=as_json)
        return

    result = _write_file(kind, found, found_in, target.expanduser(), checkpoint, force=force, dtype=dtype or "float32")
    if as_json:
        print_json(_file_to_dict(result))
    else:
        _print_file(result)


def _choose_format(target: Path, form: str | None) -> str:
    """Returns the format. Raises ConfigError if it is unknown, or contradicts the ending of the file."""
    from moe_cli.config.build import check_choice
    from moe_cli.errors import ConfigError

    ending = target.suffix.lower().removeprefix(".")
    by_ending = ending if ending in FORMATS[1:] else "hf"
    if form is None:
        if ending.isalpha() and ending not in FORMATS and not target.expanduser().is_dir():
            raise ConfigError(
                f"{sanitise(str(target))} looks like a file, and files end in .onnx or .gguf. "
                "For a folder of this name add --format hf."
            )
        return by_ending
    check_choice("--format", form, FORMATS)
    if form != by_ending and form != "hf":
        raise ConfigError(
            f"--format {form} writes a file, and {sanitise(str(target))} does not end in .{form}. Name one that does."
        )
    return form


def _check_dtype(kind: str, dtype: str | None) -> None:
    """Raises ConfigError for a type that is unknown, or that the format does not have."""
    from moe_cli.config.build import check_choice
    from moe_cli.errors import ConfigError

    if dtype is None:
        return
    check_choice("--dtype", dtype, ("float32", "float16"))
    if kind != "gguf":
        raise ConfigError(f"--dtype {dtype} is for files .gguf. Leave it out: weights are float32.")


def _write_file(
    kind: str, run: "Run", outputs: Path, path: Path, checkpoint: str, *, force: bool, dtype: str
) -> "ModelFile":
    from moe_cli.cli.console import CommandConsole

    with CommandConsole(stderr=True).status("export") as status:
        if kind == "onnx":
            from moe_cli.exchange.export_onnx import export_onnx

            return export_onnx(run, outputs, path, checkpoint, force=force)

        from moe_cli.exchange.export_gguf import export_gguf

        return export_gguf(
            run,
            outputs,
            path,
            checkpoint,
            force=force,
            dtype=dtype,
            on_bytes=lambda done: status.update(f"export: {format_bytes(done)}"),
        )


def _write_folder(run: "Run", outputs: Path, folder: Path, checkpoint: str, *, force: bool, as_json: bool) -> None:
    from moe_cli.cli.console import CommandConsole
    from moe_cli.exchange.export_run import export_run

    with CommandConsole(stderr=True).status("export") as status:
        result = export_run(
            run,
            outputs,
            folder,
            checkpoint,
            force=force,
            on_bytes=lambda done, total: status.update(f"export: {format_bytes(done)} of {format_bytes(total)}"),
        )
    if as_json:
        print_json(_to_dict(result))
        return
    shown = sanitise(str(result.folder))
    echo(f"{shown}{os.sep}   {result.architecture}   step {result.step:,}   {format_bytes(result.num_bytes)}")
    if not result.has_tokenizer:
        echo("note: the run read ready-made tokens: there is no tokenizer.json.", fg="yellow", err=True)


def _print_file(result: "ModelFile") -> None:
    echo(f"{sanitise(str(result.path))}   {result.kind}   step {result.step:,}   {format_bytes(result.num_bytes)}")
    for file in result.files[1:]:
        echo(f"{sanitise(str(file))}   its tokenizer")
    if result.lacks_tokenizer:
        echo("note: without a tokenizer: it reads token ids only.", fg="yellow", err=True)
    if result.difference is not None:
        echo(f"onnxruntime's logits differ from those of the run by at most {result.difference:.1g}.")


def _to_dict(result: "Export") -> dict[str, object]:
    return {
        "run": result.run,
        "step": result.step,
        "folder": str(result.folder),
        "architecture": result.architecture,
        "bytes": result.num_bytes,
        "files": [path.name for path in result.files],
    }


def _file_to_dict(result: "ModelFile") -> dict[str, object]:
    return {
        "run": result.run,
        "step": result.step,
        "file": str(result.path),
        "format": result.kind,
        "bytes": result.num_bytes,
        "files": [path.name for path in result.files],
        "difference": result.difference,
    }
