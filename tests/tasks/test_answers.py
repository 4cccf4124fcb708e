"""Answers to questions: which tokens are scored, exact accuracy against oracles, and the order of questions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.config.probes import ModularConfig, PhonebookConfig, ProbeConfig, ShortestPathConfig
from moe_cli.errors import ConfigError, DataError
from moe_cli.execution.data import load_run_data, training_split_tokens
from moe_cli.execution.run import run_one
from moe_cli.models.registry import make_model
from moe_cli.runs.folder import create_run
from moe_cli.tasks.answers import AnswersTask
from moe_cli.tasks.causal_lm import IGNORE_INDEX
from moe_cli.training.evaluate import evaluate
from moe_cli.training.generate import SamplingParams, sample
from tests.runner import CliRunner
from tests.tiny import TINY, finish, randomise, tiny_config, tiny_task

PROBES: dict[str, ProbeConfig] = {
    "phonebook": PhonebookConfig(entries=40, name_length=3, number_length=4),
    "shortest_path": ShortestPathConfig(nodes=6, edges=6, hops=2, train_graphs=60, val_graphs=30),
    "modular": ModularConfig(modulus=11, operation="multiply", val_fraction=0.3),
}
probes = pytest.mark.parametrize("data", PROBES.values(), ids=PROBES)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


def make(data: ProbeConfig, outputs: Path, **changes: Any) -> AnswersTask:
    task = tiny_task(tiny_config(outputs, data=data, **changes), outputs)
    assert isinstance(task, AnswersTask)
    return task


class Table(nn.Module):
    """A model that looks up what follows each beginning of a question; except in some questions, where its last token differs.

    Args:
        confidence: logit of the token that it predicts; all others are 0.
    """

    def __init__(self, task: AnswersTask, wrong: int = 0, confidence: float = 1e4) -> None:
        super().__init__()
        self.vocab_size, self.confidence = task.vocab_size, nn.Parameter(torch.tensor(confidence))
        self.following: dict[tuple[int, ...], int] = {}
        rows = [
            row
            for batch in task.val_batches(7)
            for row in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
        ]
        for number, (inputs, targets) in enumerate(rows):
            for end, target in enumerate(targets, 1):
                is_wrong = number < wrong and end == len(targets)
                self.following[tuple(inputs[:end])] = (target + is_wrong) % task.vocab_size

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Any]]:
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        for row, out in zip(tokens.tolist(), logits, strict=True):
            for end in range(1, len(row) + 1):
                target = self.following.get(tuple(row[:end]), IGNORE_INDEX)
                if target != IGNORE_INDEX:
                    out[end - 1, target] = self.confidence.detach()
        return logits, []


@probes
def test_a_model_that_knows_the_answers_reaches_the_optimum(data: ProbeConfig, outputs: Path) -> None:
    """Its loss is 0 and its accuracy is 1, over the whole split."""
    task = make(data, outputs)
    found = evaluate(Table(task), task, 8)
    assert (0.0, 1.0) == (found.loss, found.measures["accuracy"])
    assert data.num_val * data.answer_length == found.num_tokens
    assert None is found.bits_per_byte


@probes
def test_one_wrong_token_makes_an_answer_wrong(data: ProbeConfig, outputs: Path) -> None:
    task = make(data, outputs)
    for batch_size in (3, 8):
        found = evaluate(Table(task, wrong=5), task, batch_size)
        assert pytest.approx((data.num_val - 5) / data.num_val) == found.measures["accuracy"]


@probes
def test_equal_logits_of_all_answer_symbols_give_the_loss_of_chance(data: ProbeConfig, outputs: Path) -> None:
    task = make(data, outputs)
    ids = task.dataset.tokenizer.encode(data.answer_symbols).tolist()

    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            logits = torch.full((task.vocab_size,), -math.inf)
            logits[ids] = 0
            self.logits = nn.Parameter(logits)

        def forward(self, tokens: Tensor) -> tuple[Tensor, list[Any]]:
            return self.logits.expand(*tokens.shape, -1), []

    found = evaluate(Uniform(), task, 8)
    assert pytest.approx(task.meta["references"]["chance_loss"]) == found.loss


@probes
def test_only_answers_are_targets(data: ProbeConfig, outputs: Path) -> None:
    """A window is one question from its first token on, and the targets are all tokens after `=`."""
    task = make(data, outputs)
    decode = task.dataset.tokenizer.decode
    batch = task.train_batch(3, 8)
    assert (8, data.context_length) == batch.inputs.shape
    assert 8 * data.answer_length == batch.num_targets
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        answer = decode(targets[targets != IGNORE_INDEX])
        text = decode(inputs) + answer[-1]
        assert text.startswith("\n")
        assert answer == text.partition("=")[2]


@probes
def test_an_epoch_has_every_question_once(data: ProbeConfig, outputs: Path) -> None:
    """In an order that depends on the seed alone; parts of a batch make up the whole."""
    task, other = make(data, outputs), make(data, outputs, seed=1)
    size = next(size for size in range(4, 0, -1) if not data.num_train % size)
    shown = [
        start for index in range(data.num_train // size) for start in task.train_batch(index, size).starts.tolist()
    ]
    assert sorted(shown) == [row * (data.context_length + 1) for row in range(data.num_train)]
    parts = [task.train_batch(2, 4, part, 2).inputs for part in range(2)]
    assert torch.equal(task.train_batch(2, 4).inputs, torch.cat(parts))
    assert torch.equal(task.train_batch(2, 4).inputs, make(data, outputs).train_batch(2, 4).inputs)
    assert not torch.equal(task.train_batch(2, 4).inputs, other.train_batch(2, 4).inputs)


def test_the_training_tokens_of_an_epoch_are_those_that_are_read(outputs: Path) -> None:
    """So that the epochs of a run are the number of times that each question was shown."""
    config = tiny_config(outputs, data=PROBES["phonebook"])
    assert 40 * (1 + 3 + 1 + 4 - 1) == training_split_tokens(config, load_run_data(config, outputs))


def test_an_evaluation_of_part_of_the_split_is_spread_over_it(outputs: Path) -> None:
    task = make(PROBES["shortest_path"], outputs)
    starts = [start for batch in task.val_batches(4, 5 * task.context_length) for start in batch.starts.tolist()]
    assert [0, 7, 14, 21, 29] == [start // (task.context_length + 1) for start in starts]


@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_accuracy_is_that_of_greedy_decoding(family: str, outputs: Path) -> None:
    """Answers that a model writes token by token are all scored as right, and those with another token as wrong."""
    data = PhonebookConfig(entries=6, name_length=2, number_length=3)
    config = tiny_config(outputs, data=data, **TINY.get(family, {}))
    task = tiny_task(config, outputs)
    model = randomise(make_model(config, task.vocab_size)).eval()
    (batch,) = task.val_batches(6)
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        prompt = task.prompt(task.dataset.tokenizer.decode(inputs[:4]))
        written = torch.tensor([*sample(model, prompt, 3, task.context_length, SamplingParams(0), 0)])
        targets[-3:], inputs[-2:] = written, written[:-1]
    with torch.no_grad():
        assert 6 == task.score(model, batch).sums["correct"]
        batch.targets[:2, -2] = (batch.targets[:2, -2] + 1) % task.vocab_size
        assert 4 == task.score(model, batch).sums["correct"]


def test_a_prompt_begins_a_question(outputs: Path) -> None:
    """With and without its new line; characters of no question are refused."""
    task = make(PROBES["phonebook"], outputs)
    expected = task.dataset.tokenizer.encode("\nabc=").tolist()
    assert expected == task.prompt("abc=") == task.prompt("\nabc=")
    with pytest.raises(DataError, match="is not among the"):
        task.prompt("Abc=")


def test_a_run_records_accuracy_and_resumes_exactly(tmp_path: Path) -> None:
    """The summary has the accuracy and that of chance, and a run that was stopped ends bit for bit like one that was not."""
    config = tiny_config(tmp_path, data=PROBES["modular"], train={"steps": 4, "checkpoint_every": 2, "eval_every": 2})
    whole = finish(config, tmp_path)
    halfway = sorted(whole.checkpoints())[0]
    other = create_run(tmp_path / "again", "runs", config)
    (other.path / "checkpoints").mkdir()
    weights = (sorted(whole.checkpoints())[-1] / "model.safetensors").read_bytes()
    halfway.rename(other.path / "checkpoints" / halfway.name)
    resumed = run_one(other, tmp_path / "again")
    assert weights == (sorted(resumed.checkpoints())[-1] / "model.safetensors").read_bytes()
    summary, again = whole.summary() or {}, resumed.summary() or {}
    assert summary["val_accuracy"] == again["val_accuracy"]
    assert (0.1, None, None) == (summary["chance_accuracy"], summary["val_bpb"], summary["bigram_bpb"])
    assert "val/accuracy" in {key for record in whole.metrics() for key in record}
    explained = CliRunner().invoke(app, ["explain", whole.id, "3*5=", "--outputs", str(tmp_path)]).output
    assert "5 tokens (chars)" in explained
    assert "sep" not in explained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=bert"], "task=masked_lm cannot be done with data=phonebook"),
        (["model=t5"], "task=span_corruption cannot be done with data=phonebook"),
        (["model.context_length=64"], "of each question of data=phonebook a model reads 13 tokens"),
        (["eval.context_length=8"], "eval.context_length=8 has no effect on data=phonebook"),
        (["eval.stride=8"], "eval.stride=8 has no effect on data=phonebook"),
        (["data.packing=pad"], "data.packing"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["data=phonebook", *words])
    assert message in str(error.value)


def test_there_is_no_test_split(outputs: Path) -> None:
    with pytest.raises(DataError, match=r"data=modular has no test split: .* --split validation"):
        make(PROBES["modular"], outputs).dataset.with_test_split()


def test_probes_select_batches_of_many_questions() -> None:
    """Unless the batches are given."""
    found = load_config(["data=modular"])
    assert (256, 5) == (found.config.train.batch_size, found.config.model.context_length)
    assert 16 == load_config(["data=modular", "train=default"]).config.train.batch_size
    assert ("lstm", "causal_lm") == (
        (other := load_config(["data=modular", "model=lstm"]).config).model.name,
        other.task.name,
    )
