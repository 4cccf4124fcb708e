"""Runs with curves and experts, simulated, and the pages made of them."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.runs.folder import Run
from tests.report.folders import complete
from tests.report.test_long_format import layer_record, write_lines
from tests.runner import CliRunner

HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen=1'>\x1b[2J\"&'`${1}"


def curves_and_experts(run: Run, final: float, expert: int, steps: int = 500, layers: int = 2) -> None:
    """A learning curve that ends at `final`, and for each layer load, co-activation, domains and tokens."""
    draw = random.Random(run.id)
    records: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        records.append(
            {
                "step": step,
                "tokens": step * 2048,
                "train/loss": 0.7 * final + math.exp(-step / 90),
                "lr": 0.02,
                "moe/max_violation": 0.3,
                "seconds": step / 10,
            }
        )
        if step % 50 == 0:
            records.append({"step": step, "val/bpb": final + math.exp(-step / 90) + draw.gauss(0, 0.004)})
    write_lines(run, "metrics.jsonl", *records)
    if expert == 1:
        return
    load = [draw.randint(50, 150) for _ in range(expert)]
    more = {
        "whole_split": True,
        "max_violation": 0.4,
        "dropped_fraction": 0.0,
        "routing_entropy": 0.9,
        "co_activation": [[draw.randint(0, 40) for _ in range(expert)] for _ in range(expert)],
        "experts_by_domain": {name: [draw.randint(1, 90) for _ in range(expert)] for name in ("code", "prose")},
        "top_tokens": [[[97, 5, 9], [98, 4, 10]] for _ in range(expert)],
        "token_texts": {"97": "a", "98": "<b>"},
    }
    write_lines(run, "routing.jsonl", *(layer_record(steps, layer, load, **more) for layer in range(layers)))


def sweep(outputs: Path, seeds: int = 3, experts: tuple[int, ...] = (1, 4, 8, 16), **settings: Any) -> list[Run]:
    """Sparser is better, slower and larger; three seeds of each."""
    runs = []
    for expert in experts:
        for seed in range(seeds):
            final = 2.0 - 0.04 * math.log2(expert) + 0.003 * random.Random(f"{expert} {seed}").gauss(0, 1) + 0.01 * seed
            results = {
                "params": 500_000 * expert,
                "flops_per_token": 6e6 + 1e4 * expert,
                "val_perplexity": 3.0,
                "tokens_per_second": 20_000 / expert**0.3,
                "peak_memory_bytes": 400_000_000 + 10**7 * expert,
            }
            k = {} if expert == 1 else {"k": 2}
            run = complete(outputs, final, "sparsity", results, expert=expert, seed=seed, **k, **settings)
            curves_and_experts(run, final, expert)
            runs.append(run)
    return runs


def report(outputs: Path, *words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words), "--outputs", str(outputs)])


def page_of(outputs: Path, file: Path, *words: object) -> str:
    """The page that moe report writes of these runs."""
    result = report(outputs, *words, "-o", file)
    assert result.exit_code == 0, result.output
    return file.read_text(encoding="utf-8")


def content_of(page: str) -> dict[str, Any]:
    """Returns the data that the page's script reads."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, flags=re.S)
    assert found
    content: dict[str, Any] = json.loads(found[1], parse_constant=lambda word: 1 / 0)
    return content
