"""moe sample."""

import codecs
import math
from typing import Annotated

import typer

from moe_cli.cli.options import Checkpoint, Outputs, RunName


def sample(
    run: RunName,
    prompt: Annotated[str, typer.Option(help="The text to go on from.")] = "\n",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 400,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; 1 draws as trained.")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed, another text.")] = 0,
    checkpoint: Checkpoint = "latest",
    outputs: Outputs = None,
) -> None:
    """Write text with a trained model. Example: moe sample latest --prompt "def " """
    from moe_cli.errors import ConfigError
    from moe_cli.store import find_run, outputs_folder

    if not prompt:
        raise ConfigError("--prompt is empty: give at least one character.")
    if any("\ud800" <= char <= "\udfff" for char in prompt):  # what Python makes of bytes that are no UTF-8
        raise ConfigError("--prompt is not UTF-8 text.")
    if not math.isfinite(temperature):
        raise ConfigError(f"--temperature {temperature} is not a number. Use 0 to 2.")
    folder = outputs_folder(outputs)
    found = find_run(folder, run)

    from moe_cli.run import restore
    from moe_cli.training.sample import sample as draw

    trained = restore(found, folder, checkpoint)
    tokenizer = trained.task.corpus.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{found.id} learned from ready-made tokens (data=tokens): nobody knows the text they stand for."
        )
    ids = draw(
        trained.model,
        trained.task.prompt(prompt),
        tokens,
        trained.config.model.context_length,
        temperature,
        seed,
        tokenizer.vocab_size,
    )
    typer.echo(prompt, nl=False)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a character may span several tokens
    for token in ids:
        text = decoder.decode(tokenizer.to_bytes([token]))
        typer.echo(
            "".join(char if char.isprintable() or char in "\n\t" else "\n" if char == "\0" else "?" for char in text),
            nl=False,
        )
    typer.echo()
