"""moe explain."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.options import (
    AsJson,
    Checkpoint,
    Outputs,
    PluginFiles,
    RunName,
    check_text,
    print_json,
    print_written,
    trained_run,
)

if TYPE_CHECKING:
    from moe_cli.cli.explain_output import ExplainResult
    from moe_cli.config.schema import RunConfig
    from moe_cli.config.training import EvalConfig
    from moe_cli.execution.trained_model import TrainedModel
    from moe_cli.runs.folder import Run
    from moe_cli.training.explain import TextToken

# The families that read a text without changes.
EXPLAINABLE_MODELS = ("gpt", "bert", "lstm")
MAX_TOKENS = 16_384
# The number of tokens of a page that a browser without scripts shows.
MAX_NOSCRIPT_TOKENS = 1024
COMMAND = "moe explain"


def explain(  # noqa: PLR0913  (an option each)
    run: RunName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text, in quotes; - for standard input.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="SETTING=VALUE", help="eval.k and eval.capacity.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Show one sparse layer, counted from 1, with more experts per token."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Write a page without network instead."),
    ] = None,
    checkpoint: Checkpoint = "latest",
    outputs: Outputs = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Show which experts each token of a text goes to.

    Examples:
        moe explain latest "def __init__(self):"
        moe explain latest "the cat sat" -o cat.html
    """
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder

    if page and as_json:
        raise ConfigError("--json prints, --output writes a page: give one of them.")
    if page:
        from moe_cli.report.export import check_files

        check_files([page], (".html",), COMMAND)
    folder = outputs_folder(outputs)
    _print_result(
        explain_run(trained_run(folder, run), folder, text, overrides or [], layer, checkpoint), page, as_json
    )


def explain_run(
    found: "Run", folder: Path, text: str, overrides: list[str], layer: int | None, checkpoint: str
) -> "ExplainResult":
    """Returns the experts of each token of a text, in a trained run.

    Raises ConfigError: the text is empty, the model reads no text or is dense, or a setting is wrong.
    """
    text = _read(text)
    config = found.config()
    _check(found.id, config, layer)
    policy = _policy(config, overrides)

    from moe_cli.cli.explain_output import ExplainResult
    from moe_cli.execution.trained_model import load_trained
    from moe_cli.training.explain import explain as explain_text

    trained = load_trained(found, folder, checkpoint)
    tokens = _tokens(trained, text)
    explanation = explain_text(
        trained.model, tokens, config.sparse_layers, config.model.context_length, policy, trained.config.train.precision
    )
    name, shown = trained.tokenizer.name, None if layer is None else layer - 1
    return ExplainResult(found.id, trained.step, config, policy, name, explanation, shown)


def _tokens(trained: "TrainedModel", text: str) -> "list[TextToken]":
    """Returns the tokens of a text, as the model reads documents.

    Raises ConfigError: no tokenizer is known, or too many tokens.
    """
    from moe_cli.data.tokenizers import find_separator
    from moe_cli.errors import ConfigError
    from moe_cli.training.explain import TextToken, text_tokens

    prefix = trained.task.document_prefix
    separator = find_separator(trained.tokenizer)
    if prefix and prefix != [separator]:  # a character that begins every text
        text, prefix = trained.tokenizer.decode(trained.task.prompt(text)), []
    tokens = text_tokens(text, trained.tokenizer)
    if len(tokens) > MAX_TOKENS:
        raise ConfigError(f"the text has {len(tokens):,} tokens: {MAX_TOKENS:,} are the most. Give a part of it.")
    return [*(TextToken(token_id, "", 0) for token_id in prefix), *tokens]


def _read(text: str) -> str:
    """Returns the text to explain. Raises ConfigError if it is empty or not UTF-8."""
    where = "TEXT"
    if text == "-":
        where, content = "standard input", sys.stdin.buffer.read()
        text = content.decode("utf-8", errors="surrogateescape")
    check_text(where, text)
    return text


def _check(run: str, config: "RunConfig", layer: int | None) -> None:
    """Raises ConfigError: the model reads no text or is dense, or the layer does not exist."""
    from moe_cli.errors import ConfigError

    if config.model.name not in EXPLAINABLE_MODELS:
        raise ConfigError(
            f"{run} is a {config.model.name}, which reads no plain text: {COMMAND} takes runs of "
            f"{', '.join(EXPLAINABLE_MODELS)}."
        )
    if config.dense:
        raise ConfigError(f"{run} is a dense model (expert=1): every token goes through the same network.")
    number = len(config.sparse_layers)
    if layer is not None and not 1 <= layer <= number:
        raise ConfigError(f"--layer {layer}: {run} has sparse layers 1 to {number}.")


def _policy(config: "RunConfig", overrides: list[str]) -> "EvalConfig":
    """Returns the evaluation settings of the run, with the overrides."""
    from moe_cli.cli.evaluate import one_policy
    from moe_cli.errors import ConfigError

    for word in overrides:
        if "=" not in word:
            raise ConfigError(
                f"'{word}' is no setting. A text of several words stands in quotes: {COMMAND} RUN \"...\""
            )
    return one_policy(config, overrides, COMMAND, context_length=None, stride=None)


def _print_result(result: "ExplainResult", page: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from moe_cli.cli.console import print_fitted
    from moe_cli.cli.echo import ascii_only
    from moe_cli.cli.explain_output import explained_lines

    if as_json:
        layers = [asdict(layer) for layer in result.layers]
        content = {**asdict(result.found), "layers": layers}
        print_json(
            {
                "run": result.run,
                "step": result.step,
                "k": result.k,
                "capacity": result.policy.capacity,
                "tokenizer": result.tokenizer,
                **content,
            }
        )
        return
    if page is not None:
        _write(result, page.expanduser())
        return
    print_fitted(lambda width: explained_lines(result, width, ascii_only()))


def _write(result: "ExplainResult", path: Path) -> None:
    """Writes the page atomically."""
    import time

    from moe_cli import __version__
    from moe_cli.cli.console import PIPED_WIDTH
    from moe_cli.cli.explain_output import explained_lines, page_content, title
    from moe_cli.report.html.explain_page import explain_page
    from moe_cli.report.report_file import write_file

    program = f"moe {__version__}"
    made = f"made by {program}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
    plain = "\n".join(line.plain for line in explained_lines(result, PIPED_WIDTH, most=MAX_NOSCRIPT_TOKENS))
    write_file(path, explain_page(page_content(result, made), title(result), plain, program))
    print_written([path])
