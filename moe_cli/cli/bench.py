"""moe bench layer, moe bench step, moe bench optimizer, moe bench sweep."""

import re
from collections.abc import Iterable
from typing import Annotated

import typer

from moe_cli.cli.help import HelpCommand, HelpGroup
from moe_cli.cli.options import AsJson, ConfigDir, Overrides, PluginFiles, print_json, print_notes
from moe_cli.config.bounds import BENCH, JOBS, SECONDS, SEEDS, shortened

HELP = """Time a layer, a training step, an optimizer or a sweep.

Examples:
    moe bench layer --experts 8,64
    moe bench step expert=16
    moe bench optimizer
    moe bench sweep
"""
bench = typer.Typer(cls=HelpGroup, no_args_is_help=True, rich_markup_mode=None, help=HELP)

Seconds = Annotated[
    float, typer.Option("--seconds", metavar="S", help="Measure each shape for this time.", min=0.0, max=SECONDS)
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, or auto: a GPU if there is one.")]


def _axis(meaning: str) -> object:
    return typer.Option(metavar="A,B,..", help=meaning)


@bench.command(cls=HelpCommand)
def layer(  # noqa: PLR0913  (an option each)
    tokens: Annotated[str, _axis("Tokens per pass.")] = "2048",
    experts: Annotated[str, _axis("Number of experts.")] = "8,64",
    k: Annotated[str, _axis("Experts per token.")] = "2",
    d_model: Annotated[str, _axis("Width of a token vector.")] = "128",
    d_expert: Annotated[str, _axis("Width of an expert.")] = "256",
    dtype: Annotated[str, _axis("float32 or bfloat16.")] = "float32",
    threads: Annotated[str, _axis("CPU threads.")] = "1",
    dispatch: Annotated[str, _axis("Back ends of the layer.")] = "auto",
    seconds: Seconds = 20.0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time one layer against a dense network and other libraries.

    Forward and backward; the dense network has equal active FLOPs.

    Examples:
        moe bench layer --experts 8,64 --k 2
        moe bench layer --dtype bfloat16 --device cuda
    """
    numbers = {"tokens": tokens, "experts": experts, "k": k, "d_model": d_model, "d_expert": d_expert}
    axes: dict[str, list[int] | list[str]] = {name: _whole_numbers(name, text) for name, text in numbers.items()}
    axes["dtype"] = _choices("dtype", dtype, ("float32", "bfloat16"))
    axes["threads"] = _whole_numbers("threads", threads)

    from moe_cli.bench.layer import make_grid, run_layer_benchmark, to_dicts
    from moe_cli.bench.tables import layer_heading, layer_table, skipped_lines
    from moe_cli.execution.machine import pick_device
    from moe_cli.execution.runtime_tuning import configure_malloc
    from moe_cli.moe.backends.dispatch import BACKENDS

    configure_malloc()  # as in training
    dispatches = _choices("dispatch", dispatch, BACKENDS)
    found: list[dict[str, object]] = []
    for shape in make_grid(axes):
        benchmark = run_layer_benchmark(shape, dispatches, seconds, str(pick_device(device, "--device ")))
        if as_json:
            found += to_dicts(benchmark)
            print_notes(tuple(skipped_lines(benchmark.skipped)))
        else:
            _print(layer_heading(benchmark), layer_table(benchmark), skipped_lines(benchmark.skipped))
    if as_json:
        print_json(found)


@bench.command(cls=HelpCommand)
def step(
    overrides: Overrides = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Time torch.compile too: half a minute each.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Time bfloat16 autocast too.")] = False,
    seconds: Seconds = 30.0,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Time a training step against transformers' Mixtral.

    The optimizer is AdamW, and both models have the same size.

    Examples:
        moe bench step
        moe bench step expert=16 --bf16
    """
    from moe_cli.bench.step import VOCAB_SIZE, run_step_benchmark, step_builders, step_to_dicts, unused_settings_note
    from moe_cli.bench.tables import skipped_lines, step_heading, step_table
    from moe_cli.config.compose import load_config
    from moe_cli.config.overrides import parse_overrides
    from moe_cli.execution.machine import pick_device, pick_threads
    from moe_cli.execution.memory import check_config_memory
    from moe_cli.execution.runtime_tuning import configure_malloc

    configure_malloc()  # as in training
    arguments = overrides or []
    keys = [axis.key for axis in parse_overrides(arguments)]
    kept = [word for word in arguments if word.partition("=")[0].split(".")[0] != "optim"]
    resolved = load_config([*kept, "optim=adamw"], "bench step", config_dir)
    print_notes(resolved.notes + unused_settings_note(keys))

    config = resolved.config
    device = str(pick_device(config.train.device))
    check_config_memory(config, VOCAB_SIZE)
    builders = step_builders(config, compiled, bf16, device)
    benchmark = run_step_benchmark(config, builders, seconds, pick_threads(config), device)
    if as_json:
        print_notes(tuple(skipped_lines(benchmark.skipped)))
        print_json(step_to_dicts(benchmark))
    else:
        _print(step_heading(benchmark), step_table(benchmark), skipped_lines(benchmark.skipped))


@bench.command(cls=HelpCommand)
def optimizer(
    overrides: Overrides = None,
    experts: Annotated[str, _axis("Number of experts; the first is what ratios refer to.")] = "1,8,16,64",
    seconds: Seconds = 60.0,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Time the optimizer's part of a training step.

    With Muon, each number of experts is timed with updates in every step, and with the default period of the experts.

    Examples:
        moe bench optimizer
        moe bench optimizer optim=adamw --experts 1,16
    """
    numbers = _whole_numbers("experts", experts)

    from moe_cli.bench.optimizer import every_step_too, run_optimizer_benchmark
    from moe_cli.bench.step import VOCAB_SIZE
    from moe_cli.bench.tables import optimizer_heading, optimizer_table
    from moe_cli.config.compose import load_config
    from moe_cli.errors import ConfigError
    from moe_cli.execution.machine import pick_device, pick_threads
    from moe_cli.execution.memory import check_config_memory
    from moe_cli.execution.runtime_tuning import configure_malloc

    configure_malloc()  # as in training
    resolved = [load_config([*(overrides or []), f"expert={n}"], "bench optimizer", config_dir) for n in numbers]
    print_notes(resolved[-1].notes)
    configs = [config for result in resolved for config in every_step_too(result.config)]
    for config in configs:
        if config.model.name != "gpt":
            raise ConfigError(f"model={config.model.name}: moe bench optimizer times the GPT. Leave it out.")
        check_config_memory(config, VOCAB_SIZE)
    device = str(pick_device(configs[0].train.device))
    benchmark = run_optimizer_benchmark(configs, seconds, pick_threads(configs[0]), device)
    if as_json:
        print_json(benchmark.to_dicts())
    else:
        _print(optimizer_heading(benchmark), optimizer_table(benchmark), [])


@bench.command(cls=HelpCommand)
def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SETTING=VALUE",
            help="The settings of the runs.  [default: train=smoke and a model of two layers with 8 experts]",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=SEEDS, help="Seeds 0 to N-1 for every configuration.")] = 16,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, max=JOBS, help="Runs at a time.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Repeat the sweep this often.")] = 3,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Time sweeps of small runs: runs per hour, and overhead.

    Overhead is the time of a worker for each run besides training steps.

    Examples:
        moe bench sweep
        moe bench sweep expert=1,8 train.steps=100 --seeds 8
    """
    from moe_cli.bench.sweep import run_sweep_benchmark

    benchmark = run_sweep_benchmark(overrides or [], seeds=seeds, jobs=jobs, rounds=rounds, config_dir=config_dir)
    if as_json:
        print_json(benchmark.to_dict())
        return
    from moe_cli.bench.tables import sweep_heading, sweep_table

    _print(sweep_heading(benchmark), sweep_table(benchmark), [])


def _print(heading: list[str], table: object, notes: list[str]) -> None:
    from moe_cli.cli.console import CommandConsole

    console = CommandConsole(highlight=False, emoji=False, markup=False)
    for line in heading:
        console.print(line)
    console.print()
    console.print(table)
    for line in notes:
        console.print(line, style="dim")
    console.print()


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole_numbers(name: str, text: str) -> list[int]:
    from moe_cli.errors import ConfigError

    parts, most = _parts(text), BENCH[name]
    numbers = [int(part) if re.fullmatch(r"\d{1,9}", part, re.ASCII) else 0 for part in parts]
    if not numbers or not all(0 < number <= most for number in numbers):
        option = name.replace("_", "-")
        raise ConfigError(
            f"--{option} {shortened(text)}: give whole numbers from 1 to {most}, "
            f"such as --{option} 8 or --{option} 8,64"
        )
    return numbers


def _choices(name: str, text: str, options: Iterable[str]) -> list[str]:
    from moe_cli.errors import ConfigError

    parts, options = _parts(text), list(options)
    if not parts or not set(parts) <= set(options):
        raise ConfigError(f"--{name} {shortened(text)}: give some of: {', '.join(options)}.")
    return parts
