"""Writes README.md of an exported model: what it is, what it learned from, how good it is, and how to load it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moe_cli import __version__
from moe_cli.config.identity import identity_text
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.files.reading import number_in
from moe_cli.formatting import count, percent, sanitise
from moe_cli.report.intervals import mean_and_interval
from moe_cli.runs.folder import IMPORTED, Run
from moe_cli.runs.lookup import list_runs

# The results that are printed with their interval, and the routing health.
LOSSES = {"val_bpb": "bits per byte", "val_loss": "nats per token", "val_perplexity": "perplexity"}
SAMPLE_TOKENS, SAMPLE_PROMPT = 40, "The "
HEALTH = {
    "max_violation": "MaxVio: load of the busiest expert above the mean",
    "dead_experts": "experts that no token chose",
    "dropped_fraction": "dropped assignments",
}


def model_card(run: Run, config: RunConfig, step: int, title: str, has_tokenizer: bool) -> str:
    """Returns the text of README.md.

    Args:
        step: that of the exported checkpoint.
        title: the name of the family.
    """
    results, corpus = run.summary() or {}, run.meta().get("corpus") or {}
    seeds = [] if _is_imported(run) else list(_results_of_seeds(run, config))
    parts = [
        _front(config),
        f"# {_cell(run.id)}",
        f"A causal language model in the format of {title}, {'imported' if _is_imported(run) else 'trained'} and "
        f"exported by moe-cli {__version__}.",
        "## Model",
        _table("setting", "value", _model_rows(config, results)),
        "## Data of the evaluation" if _is_imported(run) else "## Data",
        _table("property", "value", _data_rows(run, config, corpus, step)),
        *_results(results, seeds, step),
        "## Use",
        _use(has_tokenizer, config.model.context_length),
        "## Licence",
        "Not stated: add the licence of the weights, which may depend on that of the data.",
    ]
    return "\n\n".join(parts) + "\n"


def _is_imported(run: Run) -> bool:
    return run.status().get("status") == IMPORTED


def _front(config: RunConfig) -> str:
    tags = ["mixture-of-experts"] if not config.dense else []
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"tags: [{', '.join([*tags, 'moe-cli'])}]"]
    return "\n".join(["---", *lines, "---"])


def _model_rows(config: RunConfig, results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    model = config.model
    for key, label in (("params", "parameters"), ("active_params", "active parameters of a token")):
        if (number := number_in(results.get(key))) is not None:
            yield label, count(number)
    yield "layers", f"{model.num_layers}, {len(config.sparse_layers)} with experts"
    yield "width", model.d_model
    if not config.dense:
        yield (
            "experts",
            f"{config.expert} of width {format_setting(model.d_expert)}, {format_setting(config.k)} for each token",
        )
        own = "" if model.d_shared is None else f" of width {model.d_shared}"
        yield "shared experts", f"{model.shared_experts}{own}"
        yield "router", config.router.name if config.router else None
        yield "balancing", config.balance.name if config.balance else None
    yield "context", f"{model.context_length} tokens"
    yield "digest of the configuration", config.digest


def _data_rows(run: Run, config: RunConfig, corpus: Mapping[str, Any], step: int) -> Iterator[tuple[str, Any]]:
    yield "data", corpus.get("name") or config.data.name
    yield "source", _without_folders(corpus.get("source"))
    yield "SHA-256", corpus.get("sha256")
    yield "tokenizer", _without_folders(config.data.tokenizer)
    if not _is_imported(run):
        yield "steps", f"{step:,}"
        yield "tokens", f"{step * config.tokens_per_step:,}"
        yield "optimizer", config.optim.name
        yield "seed", config.seed


def _without_folders(value: Any) -> Any:
    """Returns a value with the name of a file or folder instead of its path, which says where its author works."""
    if not isinstance(value, str) or "://" in value:
        return value
    setting, equals, path = value.rpartition("=")
    return f"{setting}{equals}{os.path.basename(path.rstrip(os.sep))}" if os.path.isabs(path) else value


def _results_of_seeds(run: Run, config: RunConfig) -> Iterator[Mapping[str, Any]]:
    """Yields the results of the finished runs of the folder whose configuration differs in the seed alone."""
    wanted = identity_text({**config.to_dict(), "seed": 0})
    for other in list_runs(run.path.parent):
        values = other.config_dict()
        if values and identity_text({**values, "seed": 0}) == wanted and (results := other.summary()):
            yield results


def _results(results: Mapping[str, Any], seeds: list[Mapping[str, Any]], step: int) -> list[str]:
    """Returns the sections of the results; none if the run has not finished."""
    if not results:
        return ["## Results", "The run has not finished, so that there is no evaluation of the whole split."]
    rows = []
    for key, label in LOSSES.items():
        values = [value for other in seeds if (value := number_in(other.get(key))) is not None]
        own = number_in(results.get(key))
        if own is not None:
            rows.append((label, f"{own:.4f}", _interval(values)))
    health = [
        (label, percent(value)) for key, label in HEALTH.items() if (value := number_in(results.get(key))) is not None
    ]
    read = number_in(results.get("val_tokens"))
    note = f"On the validation split, {read or 0:,.0f} tokens."
    if results.get("steps") != step:
        note += f" The results are those of step {results.get('steps')}; the weights here are those of step {step}."
    lines = [note, "", "| validation loss | this run | mean over seeds |", "| --- | --- | --- |"]
    text = "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
    return ["## Results", text, *(["## Routing health", _table("measure", "value", health)] if health else [])]


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return "one seed"
    estimate = mean_and_interval(values)
    return f"{estimate.mean:.4f} ± {estimate.half_width or 0:.4f} (95 %, {len(values)} seeds)"


def _table(key: str, value: str, rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {key} | {value} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {_cell(entry)} |" for name, entry in rows if entry is not None)])


def _cell(value: Any) -> str:
    return sanitise(str(value)).replace("|", "\\|").replace("\n", " ")


def _use(has_tokenizer: bool, context_length: int) -> str:
    """Returns code that loads the model, and writes as many tokens as its context has room for, at most 40."""
    room = max(1, min(SAMPLE_TOKENS, context_length - len(SAMPLE_PROMPT)))
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", 'folder = "."']
    lines.append("model = AutoModelForCausalLM.from_pretrained(folder)")
    if not has_tokenizer:
        note = "The run read ready-made tokens, so that there is no tokenizer here."
        return "\n".join(["```python", lines[0].replace(", AutoTokenizer", ""), *lines[1:], "```", "", note])
    lines += [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'prompt = tokenizer("{SAMPLE_PROMPT}", return_tensors="pt")',
        f"text = tokenizer.decode(model.generate(prompt.input_ids, max_new_tokens={room})[0])",
    ]
    return "\n".join(["```python", *lines, "```"])
