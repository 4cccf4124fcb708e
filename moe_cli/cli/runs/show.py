"""Output of moe runs show: one run, from its folder alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from moe_cli.cli.console import CommandConsole, print_lines, text_width
from moe_cli.config.ranges import format_setting
from moe_cli.errors import MoeError
from moe_cli.files.reading import number_in
from moe_cli.formatting import (
    age,
    bars,
    count,
    duration,
    format_bytes,
    format_flops,
    percent,
    plural,
    sanitise,
    sparkline,
)
from moe_cli.metrics import BY_KEY, format_references, format_task_metrics, target_name
from moe_cli.moe.max_violation import max_violation
from moe_cli.report.data_facts import NgramFacts, ngram_facts
from moe_cli.report.expert_usage import expert_load
from moe_cli.report.render.line_wrap import pack
from moe_cli.runs.cleanup import size_of
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import COMPLETED, Run, step_of_checkpoint
from moe_cli.runs.status import RunStatus, read_status

LABEL_WIDTH = 15
CURVE_WIDTH = 40
BARS_WIDTH = 32


def settings_of_run(run: Run) -> dict[str, Any]:
    """Returns the settings that lead to the configuration of a run, by their dotted names."""
    from moe_cli.config.compose import non_default_settings
    from moe_cli.report.baseline import overrides_of
    from moe_cli.report.load import flat_settings

    try:
        found = overrides_of(flat_settings(run.config_dict()))
        return {**found, **({"seed": seed} if (seed := run.config_dict().get("seed")) else {})}
    except MoeError:  # it was made by another version
        return non_default_settings(run.config_dict())


def run_record(run: Run) -> dict[str, Any]:
    """Returns the content of `moe runs show` as a JSON object."""
    status, curve = read_status(run), validation_curve(run)
    return {
        **status.record(),
        "settings": settings_of_run(run),
        "results": status.results or None,
        "curve": [{"step": int(step), curve.result: value} for step, value in curve.points],
        "tokens_per_expert": {str(layer): load for layer, load in expert_load(run).items()},
        "meta": run.meta() or None,
        "checkpoints": [str(path) for path in run.checkpoints()],
        "bytes": size_of(run.path),
    }


def print_run(run: Run) -> None:
    """Prints a title, then labelled lines; long lines are continued under their label."""
    console = CommandConsole()
    status = read_status(run)
    ended = {COMPLETED: "green", "failed": "red", "interrupted": "yellow"}
    title = Text.assemble(
        (sanitise(run.id), "bold"), f"   {sanitise(run.sweep)}   ", (status.status, ended.get(status.status, ""))
    )
    title.append(f"   {age(time.time() - status.created)} old" if status.created else "")
    title.append(f"   tags {sanitise(', '.join(status.tags))}" if status.tags else "")
    rows = [("reason", [status.reason.strip().split("\n")[0]])] if status.reason else []
    rows += [("settings", _settings(run)), *_results(status)]
    rows += [*_curve(run), *_load(run), *_origin(run.meta()), *_files(run)]
    width = text_width(console)
    print_lines(console, [title])
    for label, pieces in rows:
        print_lines(console, wrap_labelled(label, pieces, width))


def wrap_labelled(label: str, pieces: Sequence[str], width: int) -> list[Text]:
    """Returns the pieces after a label, packed into lines of at most `width`."""
    lines = pack([*map(sanitise, pieces)], max(8, width - LABEL_WIDTH))
    labels = [label, *[""] * (len(lines) - 1)]
    return [
        Text.assemble((f"  {label:<{LABEL_WIDTH - 2}}", "dim"), line) for label, line in zip(labels, lines, strict=True)
    ]


def _settings(run: Run) -> list[str]:
    if not run.config_dict():
        return ["config.json cannot be read"]
    return [f"{key}={format_setting(value)}" for key, value in settings_of_run(run).items()]


def _results(status: RunStatus) -> list[tuple[str, list[str]]]:
    """Returns the results by label; values that are absent or of another type are left out."""
    found = {key: number_in(value) for key, value in status.results.items()}

    def pieces(**forms: str) -> list[str]:
        return [form.format(found[key]) for key, form in forms.items() if found.get(key) is not None]

    def counted(write: Callable[[float], str] = count, **units: str) -> list[str]:
        return [write(value) + unit for key, unit in units.items() if (value := found.get(key)) is not None]

    def labelled(*keys: str) -> list[str]:
        metrics = [BY_KEY[key] for key in keys]
        return [
            f"{metric.label} {metric.write(value)}"
            for metric in metrics
            if (value := found.get(metric.key)) is not None
        ]

    if not found:
        progress = f"step {status.step:,}" + (f" of {status.steps:,}" if status.steps else "")
        estimate = [] if status.val_bpb is None else [f"validation about {status.val_bpb:z.3f} bits/byte"]
        return [("progress", [progress, *estimate])]
    unit = target_name(status.run.config_dict())
    seconds = found.get("seconds")
    time_taken = [] if seconds is None else [duration(seconds)]
    measured = format_task_metrics(found, "val_")
    # For outputs other than text, the task's own metrics are more informative.
    perplexity = {"val_perplexity": "perplexity {:z.2f}"} if found.get("val_bpb") is not None or not measured else {}
    rows = [
        (
            "validation",
            pieces(
                val_loss=f"{{:z.3f}} nats/{unit}",
                val_bpb="{:z.3f} bits/byte",
                **perplexity,
                capacity_val_loss=f"with capacity {{:z.3f}} nats/{unit}",
            )
            + measured,
        ),
        (
            "reference",
            pieces(bigram_bpb="bigram {:z.3f}", gzip_bpb="gzip -9 {:z.3f} bits/byte") + format_references(found),
        ),
        (
            "training",
            pieces(steps="{:,.0f} steps", train_loss=f"loss {{:z.3f}} nats/{unit}")
            + counted(tokens=" tokens")
            + time_taken
            + counted(tokens_per_second=" tok/s")
            + counted(format_bytes, peak_memory_bytes=" at most"),
        ),
        (
            "model",
            counted(params=" parameters", active_params=" active") + counted(format_flops, flops_per_token="/token"),
        ),
        ("experts", labelled("max_violation", "dead_experts", "dropped_fraction", "routing_entropy")),
    ]
    return [(label, texts) for label, texts in rows if texts]


def _curve(run: Run) -> list[tuple[str, list[str]]]:
    curve = validation_curve(run)
    values = curve.values
    if len(values) < 2:
        return []
    line = f"{values[0]:z.3f} {sparkline(values, CURVE_WIDTH)} {values[-1]:z.3f}"
    return [("curve", [line, f"{curve.unit} at {len(values)} evaluations"])]


def _load(run: Run) -> list[tuple[str, list[str]]]:
    layers = [
        f"L{layer + 1} {bars(load, BARS_WIDTH)} {percent(max_violation(load), signed=True)}"
        for layer, load in expert_load(run).items()
    ]
    return [("load", layers)] if layers else []


def _origin(meta: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns where it ran, with its code and data. Values of another type are left out."""
    from moe_cli.config.build import flatten_dict

    rows = []
    packages = meta.get("packages") if isinstance(meta.get("packages"), dict) else {}
    place = [str(meta[key]) for key in ("platform", "gpu") if meta.get(key)]
    place += [
        plural(meta[key], unit)
        for key, unit in (("cpu_count", "core"), ("threads", "thread"))
        if isinstance(meta.get(key), int)
    ]
    place += [f"python {meta['python']}"] if meta.get("python") else []
    place += [f"{name} {packages[name]}" for name in ("torch", "moe-cli") if packages and name in packages]
    if place:
        rows.append(("ran on", place))
    plugins = flatten_dict(found) if isinstance(found := meta.get("plugins"), dict) else {}
    if plugins:
        rows.append(("plug-ins", [f"{key.replace('.', '=', 1)} of {origin}" for key, origin in plugins.items()]))
    git, corpus = meta.get("git"), meta.get("corpus")
    if isinstance(git, dict) and git.get("commit"):
        rows.append(
            ("code", [f"commit {str(git['commit'])[:12]}", "with uncommitted changes" if git.get("diff") else "clean"])
        )
    if isinstance(corpus, dict):
        size = number_in(corpus.get("num_bytes"))
        text = [f"{corpus.get('name')} corpus", str(corpus.get("source")), f"sha256 {str(corpus.get('sha256'))[:12]}"]
        rows.append(("data", text + ([] if size is None else [format_bytes(size)])))
        rows += [(f"{fact.length}-grams", _ngrams(fact)) for fact in ngram_facts(meta)]
    return rows


def _ngrams(fact: NgramFacts) -> list[str]:
    entropy = [] if fact.next_nats is None else [f"then {fact.next_nats:.2f} nats in the next token"]
    seen = f"{percent(fact.seen)} of validation occur in training"
    return [seen, f"{percent(fact.repeated)} of training repeat", *entropy]


def _files(run: Run) -> list[tuple[str, list[str]]]:
    checkpoints = [f"step {step_of_checkpoint(path):,} ({format_bytes(size_of(path))})" for path in run.checkpoints()]
    try:
        names = sorted(path.name for path in run.path.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        names = []
    files = [f"{name} {format_bytes(size_of(run.path / name))}" for name in names]
    return [
        ("checkpoints", checkpoints or ["none"]),
        ("files", files),
        ("folder", [f"{run.path}", format_bytes(size_of(run.path))]),
    ]
