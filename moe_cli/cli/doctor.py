"""moe doctor."""

from typing import TYPE_CHECKING, Any

import typer

from moe_cli.cli.options import AsJson, Outputs, print_json

if TYPE_CHECKING:
    from rich.text import Text

    from moe_cli.execution.doctor import Diagnosis, OptionalPackages

LABEL_WIDTH = 10


def doctor(outputs: Outputs = None, as_json: AsJson = False) -> None:
    """Check this installation: versions, cores, GPUs and folders.

    Examples:
        moe doctor
        moe doctor --json
    """
    from dataclasses import asdict

    from moe_cli import __version__
    from moe_cli.execution.doctor import diagnose
    from moe_cli.runs.folder import outputs_folder

    diagnosis, terminal = diagnose(__version__, outputs_folder(outputs)), _terminal()
    if as_json:
        print_json({**asdict(diagnosis), "terminal": terminal})
    else:
        _print(diagnosis, terminal)
    if diagnosis.problems:
        raise typer.Exit(1)


def _terminal() -> dict[str, Any]:
    """Returns what standard output can show."""
    import sys

    from moe_cli.cli.console import CommandConsole, text_width
    from moe_cli.cli.echo import ascii_only, is_screen

    console = CommandConsole()
    return {
        "columns": text_width(console),
        "cursor_control": is_screen(sys.stdout),
        "colors": console.color_system is not None and not console.no_color,
        "unicode": not ascii_only(),
    }


def _print(diagnosis: "Diagnosis", terminal: dict[str, Any]) -> None:
    from rich.text import Text

    from moe_cli.cli.console import CommandConsole, print_lines, text_width
    from moe_cli.formatting import sanitise
    from moe_cli.report.render.terminal import wrap

    console = CommandConsole()
    lines = [
        Text.assemble((f"{label:<{LABEL_WIDTH}}", "dim"), sanitise(text)) for label, text in _rows(diagnosis, terminal)
    ]
    lines += [Text("optional packages", "dim"), *map(_package_line, diagnosis.optional)]
    for problem in diagnosis.problems:
        lines += wrap(f"problem: {problem}", text_width(console), "red")
    for note in diagnosis.notes:
        lines += wrap(f"note: {note}", text_width(console), "yellow")
    if not diagnosis.problems:
        lines.append(Text("No problems found.", "green"))
    print_lines(console, lines)


def _rows(diagnosis: "Diagnosis", terminal: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns label and text of each line on the machine."""
    from moe_cli.formatting import format_bytes

    def yes(key: str) -> str:
        return "yes" if terminal[key] else "no"

    torch, cores = diagnosis.torch, f"{diagnosis.cores}"
    if diagnosis.cores < diagnosis.machine_cores:
        cores += f" of {diagnosis.machine_cores} (by affinity or quota)"
    threads = f"up to {diagnosis.cores}" if diagnosis.threads is None else f"{diagnosis.threads} (OMP_NUM_THREADS)"
    total, available = (
        "unknown" if size is None else format_bytes(size)
        for size in (diagnosis.memory_bytes, diagnosis.available_bytes)
    )
    gpus = [f"{torch.gpus.count(name)} x {name}" for name in dict.fromkeys(torch.gpus)] if torch else []
    return [
        ("moe", f"{diagnosis.moe}   {diagnosis.package}"),
        ("python", f"{diagnosis.python}   {diagnosis.platform}   {diagnosis.executable}"),
        ("torch", f"{torch.version}   build: {torch.build}" if torch else "cannot be imported"),
        ("cores", f"{cores}   busy with other work: {diagnosis.busy_cores:g}   threads: {threads}"),
        ("memory", f"{total}   available: {available}"),
        ("GPU", f"{', '.join(gpus) or 'none'}   train.precision=auto is {torch.precision if torch else 'unknown'}"),
        (
            "outputs",
            f"{'writable' if diagnosis.is_writable else 'not writable'}   free: {format_bytes(diagnosis.free_bytes)}   "
            f"{diagnosis.outputs}",
        ),
        *([("settings", f"packaged, after those of {diagnosis.conf}")] if diagnosis.conf else []),
        (
            "terminal",
            f"{terminal['columns']} columns   colors: {yes('colors')}   Unicode: {yes('unicode')}   "
            f"cursor control: {yes('cursor_control')}",
        ),
    ]


def _package_line(packages: "OptionalPackages") -> "Text":
    """Returns the line of a feature: its first package with its version, or the command that installs all."""
    from rich.text import Text

    if packages.found:
        name, version = next(iter(packages.versions.items()))
        return Text(f"  {packages.name:<12}{packages.purpose:<21}{name} {version}")
    missing = f"missing: {packages.install}"
    return Text.assemble(f"  {packages.name:<12}{packages.purpose:<21}", (missing, "yellow"))
