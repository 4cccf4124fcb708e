"""moe sample."""

import math
import time
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.echo import echo
from moe_cli.cli.options import SAMPLING, Checkpoint, Outputs, PluginFiles, RunName, check_text, option, trained_run
from moe_cli.config.bounds import SAMPLE_TOKENS, TOP_K
from moe_cli.formatting import plural

if TYPE_CHECKING:
    from moe_cli.runs.folder import Run


Prompt = Annotated[str, typer.Option(help="Text to continue.", show_default="a new line")]
Tokens = Annotated[int, typer.Option(min=1, max=SAMPLE_TOKENS, help="Number of tokens to write.")]
Temperature = Annotated[
    float,
    option(SAMPLING, min=0, help="Sampling temperature; 0: always the likeliest token.", show_default=True),
]
TopK = Annotated[
    int | None,
    option(SAMPLING, min=1, max=TOP_K, metavar="K", help="Sample from the K likeliest tokens.", show_default="all"),
]
TopP = Annotated[
    float | None,
    option(
        SAMPLING,
        metavar="P",
        help="Nucleus sampling: from the smallest set of tokens with cumulative probability P.",
        show_default="all",
    ),
]
Seed = Annotated[int, option(SAMPLING, min=0, max=2**63 - 1, help="Random seed.", show_default=True)]


def sample(  # noqa: PLR0913  (an option each)
    run: RunName,
    prompt: Prompt = "\n",
    tokens: Tokens = 400,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = "latest",
    outputs: Outputs = None,
    plugin: PluginFiles = None,
) -> None:
    """Write text with a trained model.

    Examples:
        moe sample latest --prompt "def "
        moe sample latest --tokens 100 --temperature 0
    """
    _check(prompt, temperature, top_k, top_p)
    from moe_cli.runs.folder import outputs_folder

    folder = outputs_folder(outputs)
    found = trained_run(folder, run)
    _check_task(found)

    import torch

    from moe_cli.execution.trained_model import load_trained
    from moe_cli.training.generate import SamplingParams, decode_stream
    from moe_cli.training.generate import sample as draw
    from moe_cli.training.precision import autocast

    trained = load_trained(found, folder, checkpoint)
    tokenizer = trained.tokenizer
    torch.manual_seed(seed)  # for router=random, which draws too
    sampling = SamplingParams(temperature, top_k, 1.0 if top_p is None else top_p)
    read, length = trained.task.prompt(prompt), trained.config.model.context_length
    cached = getattr(trained.config.model, "has_cache", True)  # False for a plug-in's model without one
    ids = draw(trained.model, read, tokens, length, sampling, seed, tokenizer.vocab_size, cached)
    echo(prompt, nl=False)
    started = time.perf_counter()
    with autocast(trained.config.train.precision, next(trained.model.parameters()).device):
        for text in decode_stream(ids, tokenizer.decode):
            echo(_shown(text), nl=False)
    seconds = time.perf_counter() - started
    echo()
    echo(f"{plural(tokens, 'token')}, {tokens / seconds:,.0f} tokens/s", dim=True, err=True)


def _shown(text: str) -> str:
    """Returns the text without characters that move a terminal's cursor. The end of a document becomes a newline."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\n" if char == "\0" else "?" for char in text)


def _check(prompt: str, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises ConfigError when the request cannot be met."""
    from moe_cli.errors import ConfigError

    check_text("--prompt", prompt)
    if not math.isfinite(temperature):
        raise ConfigError(f"--temperature {temperature} is not a number. Use 0 to 2.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p {top_p:g} must be above 0 and at most 1.")
    options = [name for name, value in (("--top-k", top_k), ("--top-p", top_p)) if value is not None]
    if temperature == 0 and options:
        raise ConfigError(
            f"--temperature 0 takes the likeliest token: {' and '.join(options)} would change nothing. "
            "Leave out one or the other."
        )


def _check_task(run: "Run") -> None:
    """Raises ConfigError when the run's model writes no text."""
    from moe_cli.errors import ConfigError

    config = run.config()
    if config.task.kind != "causal_lm":
        raise ConfigError(
            f"{run.id} learned task={config.task.name}: its model does not write text. "
            "Name a run with task=causal_lm (model=gpt or lstm)."
        )
