"""Run folders as training leaves them, without training."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from moe_cli.config.compose import Composer
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import BUDGETS
from moe_cli.files.checksums import read_sealed, write_sealed
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import COMPLETED, Run, create_run

COMPOSER = Composer()


def configure(**settings: Any) -> RunConfig:
    """Returns the configuration of settings; `train__steps` means train.steps; the default budget is 500 steps."""
    values = {key.replace("__", "."): value for key, value in settings.items()}
    if not any(f"train.{budget}" in values for budget in BUDGETS):
        values["train.steps"] = 500
    items = tuple(sorted(values.items()))
    try:
        return _configure(items)
    except TypeError:  # a value that is a list has no hash
        return _configure.__wrapped__(items)


@cache
def _configure(items: tuple[tuple[str, Any], ...]) -> RunConfig:
    return resolve(COMPOSER.point(dict(items)).config).config


def summary(run: Run, config: RunConfig, val_bpb: float, **changes: Any) -> dict[str, Any]:
    """Returns the summary.json of a complete run."""
    sparse = not config.dense
    return {
        "run": run.id,
        "status": COMPLETED,
        "expert": config.expert,
        "k": config.k,
        "capacity": config.capacity,
        "router": config.router.name if config.router else None,
        "balance": config.balance.name if config.balance else None,
        "seed": config.seed,
        "params": 1_000_000 * config.expert,
        "active_params": 1_000_000,
        "flops_per_token": 6_000_000.0,
        "val_loss": val_bpb * 0.7,
        "val_bpb": val_bpb,
        "tokens_per_second": 24_000.0,
        "max_violation": 0.21 if sparse else None,
        "dropped_fraction": 0.0 if sparse else None,
        "dead_experts": 0.0 if sparse else None,
        "forward_flops_per_token": 2_000_000.0,
        "val_perplexity": 3.4,
        "model_flops_per_token": 5_000_000,
        "optimizer_flops_per_step": 1_000_000 * config.tokens_per_step,
        "val_tokens": 250_000,
        "val_bytes": 250_000,
        "capacity_val_loss": None,
        "train_loss": 1.2,
        "load_cv": 0.3 if sparse else None,
        "token_specialisation": 0.4 if sparse else None,
        "domain_specialisation": 0.1 if sparse else None,
        "router_saturation": 0.8 if sparse else None,
        "routing_entropy": 0.9 if sparse else None,
        "mean_routing_entropy": 0.97 if sparse else None,
        "steps": config.train.steps,
        "tokens": (config.train.steps or 0) * config.tokens_per_step,
        "seconds": 102.5,
        "bigram_bpb": 3.32,
        "gzip_bpb": 2.08,
        "corpus": "python",
        "corpus_sha256": "ab" * 32,
        **changes,
    }


def complete(
    outputs: Path, val_bpb: float, group: str = "runs", results: dict[str, Any] | None = None, **settings: Any
) -> Run:
    """A complete run with that many bits per byte; `results` are other values for its summary."""
    config = configure(**settings)
    run = create_run(outputs, group, config)
    set_status(run, COMPLETED)
    write_sealed(run.path / "summary.json", summary(run, config, val_bpb, **(results or {})))
    return run


def edit_summary(folder: Path, **changes: Any) -> None:
    """Changes results of a complete run as a run itself would have written them, checksum and all."""
    path = folder / "summary.json"
    write_sealed(path, {**(read_sealed(path) or {}), **changes})


def stopped(outputs: Path, status: str, reason: str | None = None, group: str = "runs", **settings: Any) -> Run:
    """A run without results."""
    run = create_run(outputs, group, configure(**settings))
    set_status(run, status, reason=reason)
    return run


def set_status(run: Run, status: str, **fields: Any) -> None:
    write_json(run.path / "status.json", {**(read_json(run.path / "status.json") or {}), "status": status, **fields})


def sweep_of_three_seeds(outputs: Path) -> None:
    """A dense model and three sparse ones, three seeds each, in the group `sparsity`."""
    shutil.copytree(_three_seeds(), outputs, dirs_exist_ok=True)


@cache
def _three_seeds() -> Path:
    """Made once, and copied from then on."""
    outputs = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, outputs, ignore_errors=True)
    for seed in range(3):
        complete(outputs, 1.83 + 0.01 * seed, "sparsity", expert=1, seed=seed)
        for expert, k, val_bpb in ((8, 1, 1.77), (8, 2, 1.76), (16, 2, 1.71)):
            complete(outputs, val_bpb + 0.008 * seed, "sparsity", expert=expert, k=k, seed=seed)
    return outputs
