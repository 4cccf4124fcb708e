"""moe plan."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import AsJson, ConfigDir, Outputs, Overrides, PluginFiles, print_json, print_notes
from moe_cli.config.bounds import GPUS, shortened

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from moe_cli.config.schema import RunConfig

Gpus = Annotated[int, typer.Option(metavar="N", help="Number of GPUs that train it.")]
Gpu = Annotated[str, typer.Option(metavar="NAME", help="Model of GPU: h100, h200, b200, mi300x, a100, l4 or rtx4090.")]
Mfu = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Model FLOP utilisation: the share of the GPU's peak that is reached, with the optimizer's FLOPs.",
    ),
]

# The share that large dense models reach: 38 to 43 % in bfloat16 on H100 (arXiv:2407.21783, table 4).
DEFAULT_MFU = 0.4


def plan(
    overrides: Overrides = None,
    gpus: Gpus = 1,
    gpu: Gpu = "h100",
    mfu: Mfu = DEFAULT_MFU,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the size, memory, FLOPs and time of a configuration.

    No model is built. For the time on this machine: moe train --dry-run

    Examples:
        moe plan expert=8 --gpus 1 --gpu l4
        moe plan experiment=published/mixtral_8x7b
    """
    from moe_cli.config.build import did_you_mean
    from moe_cli.config.compose import load_config
    from moe_cli.costs.multi_gpu import GPU_MODELS
    from moe_cli.costs.training_cost import training_cost
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder

    if not 1 <= gpus <= GPUS:
        raise ConfigError(f"--gpus={shortened(gpus)} must be at least 1{f' and at most {GPUS}' if gpus > 1 else ''}.")
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu={mfu:g} must be above 0 and at most 1.")
    if gpu not in GPU_MODELS:
        raise ConfigError(f"--gpu={gpu}:{did_you_mean(gpu, GPU_MODELS)} Available: {', '.join(GPU_MODELS)}.")
    resolved = load_config(overrides or [], "plan", config_dir)
    print_notes(resolved.notes)
    config = resolved.config
    vocab_size = _vocab_size(config, outputs_folder(outputs))
    content = training_cost(config, vocab_size, gpus, GPU_MODELS[gpu], mfu)
    if as_json:
        print_json(content)
    else:
        _print(content)


def _vocab_size(config: "RunConfig", outputs: "Path") -> int:
    """Returns the vocabulary size of the model, else of its data, which are read only if tokens must be counted."""
    from moe_cli.config.data import CorpusConfig, TokenFilesConfig
    from moe_cli.config.probes import ProbeConfig
    from moe_cli.execution.data import load_data_read_only, model_vocab_size

    if config.model.vocab_size is not None:
        return config.model.vocab_size
    if config.data.tokenizer == "bytes":
        return 256 + config.task.special_tokens
    if isinstance(config.data, CorpusConfig) and config.data.num_bpe_tokens is not None:
        return config.data.num_bpe_tokens + config.task.special_tokens
    if isinstance(config.data, ProbeConfig):
        return config.data.vocab_size + config.task.special_tokens
    if isinstance(config.data, TokenFilesConfig):
        return (config.data.vocab_size or 0) + config.task.special_tokens
    return model_vocab_size(config, load_data_read_only(config.data, config.model.context_length, outputs))


def _print(content: dict[str, Any]) -> None:
    from rich.text import Text

    from moe_cli.cli.console import CommandConsole, print_lines
    from moe_cli.config.ranges import format_setting
    from moe_cli.formatting import count, format_flops, percent, plural

    console = CommandConsole()
    shape = "dense" if content["expert"] == 1 else f"{content['expert']}x{format_setting(content['k'])}"
    active = percent(content["active_params"] / content["params"])
    budget = "a time"
    if content["tokens"] is not None:
        parts = f"{count(content['model_flops'])} model + {count(content['optimizer_flops'])} optimizer"
        budget = f"{count(content['tokens'])} tokens   {format_flops(content['training_flops'])}: {parts}"
    without = [content[key] for key in ("non_embedding_params", "active_non_embedding_params")]
    parameters = f"{count(content['params'])} total   {count(content['active_params'])} active ({active})"
    if None not in without:
        parameters += f"   {count(without[0])} and {count(without[1])} without embeddings"
    optimizer = count(content["optimizer_flops_per_step"] / content["tokens_per_step"])
    rows = [
        ("model", f"{shape}   vocabulary {content['vocab_size']:,}   context {content['context_length']:,}"),
        ("parameters", parameters),
        (
            "compute",
            f"{format_flops(content['forward_flops_per_token'])}/token forward   "
            f"{format_flops(content['flops_per_token'])}/token in training: "
            f"{count(content['model_flops_per_token'])} model + {optimizer} optimizer",
        ),
        ("training", f"{budget}   {plural(content['tokens_per_step'], 'token')} a step"),
        ("time", _time(content)),
    ]
    for label, text in rows:
        console.print(f"  [dim]{label:<12}[/] {text}", highlight=False, soft_wrap=True)
    print_lines(console, [Text("  ") + line for line in _table(content)])
    explained = ["dp: the whole model on each GPU. Bytes of each GPU, in float32, at even load."]
    if len(content["shares"]) > 1:
        explained += [
            "fsdp: weights, gradients and optimizer state sharded. gathered: one block with all its shards.",
            "ep N: the experts divided among N GPUs. all-to-all: bytes sent per step.",
        ]
    for line in explained:
        console.print(f"  {line}", style="dim", soft_wrap=True)


def _time(content: dict[str, Any]) -> str:
    from moe_cli.formatting import count, duration, format_flops, percent

    gpu = content["gpu"]
    rate = f"{count(content['tokens_per_second'])} tokens/s on {content['gpus']} x {gpu['name']}"
    assumed = f"at {percent(content['mfu'])} of {format_flops(gpu['flops'])}/s each (--mfu)"
    length = "" if content["seconds"] is None else f"{_days(content['seconds'], duration)}   "
    return f"{length}{rate} {assumed}"


def _days(seconds: float, duration: Any) -> str:
    days = seconds / 86_400
    if days >= 1000:
        return f"about {duration(seconds)}"
    if seconds < 0.5:
        return "less than 1s"
    return "about " + (f"{days:,.0f} days" if days >= 10 else f"{days:.1f} days" if days >= 2 else duration(seconds))


def _table(content: dict[str, Any]) -> "list[Text]":
    from moe_cli.formatting import format_bytes
    from moe_cli.report.render.terminal import plain_table

    parts = {
        "state": "state_bytes",
        "gathered": "gathered_bytes",
        "batch": "activation_bytes",
        "memory": "memory_bytes",
        "all-to-all": "all_to_all_bytes",
    }
    rows = []
    for share in content["shares"]:
        launch = share["shard"] + (f" ep {share['members']}" if share["members"] > 1 else "")
        numbers = [format_bytes(share[name]) if share[name] else "-" for name in parts.values()]
        rows.append([launch, *numbers, "yes" if share["fits"] else "no"])
    return plain_table(["launch", *parts, f"fits in {content['gpu']['memory_bytes'] / 1e9:g} GB"], rows, None)
