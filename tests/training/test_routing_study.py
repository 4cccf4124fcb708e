"""The study of routing against the evaluation whose counts it shares, and its bounds on memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.schema import RunConfig
from moe_cli.models.registry import make_model
from moe_cli.moe.routing import RoutingPolicy, routing_from_top_k
from moe_cli.moe.routing_metrics import router_saturation
from moe_cli.tasks.causal_lm import TextTask
from moe_cli.training import routing_study
from moe_cli.training.evaluate import evaluate
from moe_cli.training.routing_study import Earlier, UnitCounts, saturation_choices, study_routing
from tests.tiny import TINY, randomise, tiny_config, tiny_task, words

NAMES = {"run": "r", "step": 3, "data": "data=text", "split": "validation"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two domains: words, and digits."""
    folder = tmp_path_factory.mktemp("domains")
    for name in ("words", "digits"):
        (folder / name).mkdir()
        for number in range(8):
            text = words(150, number)
            text = text if name == "words" else "".join(str(ord(letter) % 10) for letter in text)
            (folder / name / f"{number}.txt").write_text(text)
    return folder


def study(config: RunConfig, task: TextTask, **options: Any) -> Any:
    model = randomise(make_model(config, task.vocab_size))
    return study_routing(
        model, task, 8, 16, names=NAMES, policy=RoutingPolicy(), precision="float32", **options
    ), evaluate(model, task, 8, precision="float32")


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("changes", [{}, {"data": {"packing": "pad"}}, TINY["t5"], TINY["lstm"]])
def test_the_study_has_the_figures_of_the_evaluation(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Loss, load, load by domain and specialisation are those of `evaluate`; controls and shares are in their range."""
    changes = {**changes, "data": {"val_fraction": 0.4, **changes.get("data", {})}}
    config = tiny_config(folder, **changes)
    found, evaluated = study(config, tiny_task(config, tmp_path))
    assert (evaluated.loss, evaluated.domain_losses) == (found.loss, found.domain_losses)
    assert {"words", "digits"} == set(found.domain_tokens)
    for layer, stats in zip(found.layers, evaluated.layers, strict=True):
        metrics = stats.metrics()
        assert metrics["max_violation"] == layer.max_violation
        assert metrics["domain_specialisation"] == layer.specialisation.measured
        for name, counts in zip(evaluated.domains, stats.by_domain, strict=True):
            assert (counts / counts.double().mean()).tolist() == pytest.approx(layer.load_by_domain[name])
        special = layer.specialisation
        for control in (special.shuffled, special.random):
            assert 0 <= control.low <= control.mean <= control.high <= 1
            assert special.measured - control.mean == pytest.approx(control.excess)
        assert 1 / 200 <= special.p_value <= 1
        assert sorted(layer.locality.hit_rates) == list(layer.locality.hit_rates)
        pairs = layer.co_activation.pairs
        assert all(stats.pairs[pair.experts] == pair.tokens > pair.expected for pair in pairs)


def test_every_token_is_counted_once(folder: Path, tmp_path: Path) -> None:
    """The tokens of the domains are those of the evaluation, and a part of the split is read if it is limited."""
    config = tiny_config(folder, data={"val_fraction": 0.4})
    task = tiny_task(config, tmp_path)
    found, evaluated = study(config, task)
    assert evaluated.num_tokens == found.num_tokens == sum(found.domain_tokens.values())
    assert 2 == found.top_k
    assert 64 == study(config, task, max_tokens=64)[0].num_tokens


def test_one_domain_has_no_specialisation(text_file: Path, tmp_path: Path) -> None:
    """A text of one domain has loads, repeats and pairs, and a note on what it lacks."""
    config = tiny_config(text_file)
    found = study(config, tiny_task(config, tmp_path))[0]
    assert found.layers[0].specialisation is None
    assert found.layers[0].locality.repeats[0].share > 0
    assert "one domain" in found.notes[0]


def test_saturation_is_the_agreement_with_an_earlier_model(folder: Path, tmp_path: Path) -> None:
    """The model itself agrees in all choices; another in those that `router_saturation` counts."""
    config = tiny_config(folder, data={"val_fraction": 0.4})
    task = tiny_task(config, tmp_path)
    models = [randomise(make_model(config, task.vocab_size), seed) for seed in (0, 1)]
    choices = [saturation_choices(model, task, RoutingPolicy(), "float32") for model in models]
    found = study(config, task, earlier=[Earlier("same", choices[0]), Earlier("other", choices[1])])[0]
    for number, layer in enumerate(found.layers):
        same, other = layer.saturation
        assert 1 == same.share
        assert router_saturation(choices[1][number], choices[0][number]) == other.share
        assert 0 < other.by_chance < 1


def test_many_documents_are_grouped_within_their_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than MAX_UNITS units are kept, and the assignments of each domain stay the same."""
    monkeypatch.setattr(routing_study, "MAX_UNITS", 6)
    units, by_domain = UnitCounts(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for first in range(0, 100, 10):
        scores = torch.rand(40, 3, generator=generator)
        routing = routing_from_top_k(scores, scores, scores.topk(2).indices, scores.topk(2).values)
        documents = first + torch.arange(40) // 4
        domains = (documents * 7919 % 13) % 2
        units.add(routing, documents, domains)
        by_domain.index_add_(0, domains[routing.token_ids], torch.eye(3, dtype=torch.int64)[routing.expert_ids])
    assert 2 < len(units.keys) <= 6
    assert units.documents_per_unit > 1
    assert torch.equal(by_domain, torch.zeros_like(by_domain).index_add_(0, units.domains, units.counts))
