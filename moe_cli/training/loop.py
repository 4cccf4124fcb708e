"""step, evaluate, save: one visible loop. The losses are added here, in plain sight."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from moe_cli.config.balances import QuantileBalance
from moe_cli.config.schema import RunConfig
from moe_cli.errors import TrainingError
from moe_cli.moe.balance import auxiliary_losses, bias_method, update_bias
from moe_cli.moe.layer import moe_layers
from moe_cli.moe.routers import ReluRouter
from moe_cli.moe.stats import dropped_fraction, max_violation, tokens_per_expert
from moe_cli.store import RUNNING, Recorder
from moe_cli.tasks.text import TextTask
from moe_cli.training.checkpoint import Checkpoint, save_checkpoint
from moe_cli.training.evaluate import Evaluation, evaluate, expert_lists, probe
from moe_cli.training.optim import Optimizers
from moe_cli.training.precision import autocast

EVALUATIONS_PER_RUN = 10
HEARTBEAT_SECONDS = 10.0
# Ctrl-C, kill, and what clusters send before they take a machine away (Slurm's --signal).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class State:
    """Where training stands: all that a checkpoint must remember beside tensors.

    Attributes:
        seconds: time spent in training steps, without evaluation and saving.
        interval: sums since the last record in metrics.jsonl.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    interval: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepView:
    """What a display may show after a step.

    Attributes:
        aux_losses: each balancing loss by name, before its weight.
        load: assignments per expert, for each sparse layer.
        val: the last evaluation.
    """

    state: State
    total_steps: int | None
    progress: float
    loss: float
    aux_losses: dict[str, float]
    lr_factor: float
    load: list[Tensor]
    val: Evaluation | None = None


Observer = Callable[[StepView], None]


class Training:
    """One model, its task, its optimizers and its recorder, on the way to the end of the budget."""

    def __init__(
        self, config: RunConfig, model: nn.Module, task: TextTask, optimizers: Optimizers, recorder: Recorder,
        total_steps: int | None, observer: Observer,
    ) -> None:  # fmt: skip
        self.config = config
        self.model = model
        self.task = task
        self.optimizers = optimizers
        self.recorder = recorder
        self.total_steps = total_steps
        self.observer = observer
        self.state = State()
        self.layers = moe_layers(model)
        self.bias_method = bias_method(config.balance)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint, the records included."""
        checkpoint.load_training(self.model, self.optimizers)
        saved = checkpoint.state
        # The number of threads decides how sums are split, so the last digits depend on it.
        torch.set_num_threads(saved.get("threads") or torch.get_num_threads())
        self.state = State(saved["step"], saved["tokens"], saved["seconds"], dict(saved["interval"]))
        self.recorder.rewind(self.state.step)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        if self.total_steps is not None:
            return min(1.0, self.state.step / self.total_steps)
        return min(1.0, self.state.seconds / (60 * (self.config.train.minutes or math.inf)))

    def run(self) -> bool:
        """Trains to the end of the budget; False if it was asked to stop before. A checkpoint is saved either way.

        Raises:
            TrainingError: the loss is not finite.
        """
        heartbeat = time.monotonic()
        val: Evaluation | None = None
        with stop_signals() as stopped:
            while self.progress < 1:
                before = self.progress
                view = self.step()
                if self._due(self.config.train.eval_every, before):
                    val = self._evaluate()
                self.observer(replace(view, val=val))
                stop = stopped()  # asked once: a signal between two looks would end the run without a checkpoint
                if self._due(self.config.train.checkpoint_every or self.config.train.eval_every, before) or stop:
                    self.save()
                if stop and self.progress < 1:
                    return False
                if time.monotonic() - heartbeat > HEARTBEAT_SECONDS:
                    heartbeat = time.monotonic()
                    self.recorder.status(RUNNING, step=self.state.step, steps=self.total_steps)
        self.save()
        return True

    def step(self) -> StepView:
        """One optimizer step: forward, losses, backward, clip, update, bias update, record."""
        started = time.perf_counter()
        train, state = self.config.train, self.state
        device = next(self.model.parameters()).device
        self.model.train()
        loss_sum, aux_sums = 0.0, dict[str, float]()
        load = [torch.zeros(layer.router.num_experts, dtype=torch.int64, device=device) for layer in self.layers]
        probs: list[list[Tensor]] = [[] for _ in self.layers]
        for part in range(train.grad_accumulation):
            batch = self.task.train_batch(state.step * train.grad_accumulation + part, train.batch_size).to(device)
            with autocast(train.precision, device):
                loss, routings = self.task.loss(self.model, batch)
            # Counted here, once per batch: not in the layers, which evaluate too and may compute a batch twice.
            for counts, seen, routing in zip(load, probs, routings, strict=True):
                counts += tokens_per_expert(routing)
                if isinstance(self.bias_method, QuantileBalance):
                    seen.append(routing.probs.detach())
            aux_losses = auxiliary_losses(self.config.balance, routings, load, num_sequences=len(batch.inputs))
            total = loss + sum(method.weight * aux_loss for method, aux_loss in aux_losses.items())
            penalties = [routing.penalty for routing in routings if routing.penalty is not None]
            if penalties:
                total = total + torch.stack(penalties).mean()
            self._check_finite(total)
            (total / train.grad_accumulation).backward()
            loss_sum += loss.item() / train.grad_accumulation
            for method, aux_loss in aux_losses.items():
                mean = aux_loss.item() / train.grad_accumulation
                aux_sums[method.name] = aux_sums.get(method.name, 0.0) + mean
            if self.config.capacity is not None:
                dropped = sum(dropped_fraction(routing) for routing in routings) / len(routings)
                self._add("moe/dropped_fraction", dropped / train.grad_accumulation)
        grad_norm = self._clip()
        # Null experts have nothing to update.
        asked = [counts[: layer.experts.num_experts] for layer, counts in zip(self.layers, load, strict=True)]
        lr_factor = self.optimizers.step(self.progress, asked)
        self.optimizers.zero_grad()
        self._update_bias(load, probs)
        for layer, counts in zip(self.layers, load, strict=True):
            if isinstance(layer.router, ReluRouter):
                layer.router.after_step(counts, self.config.tokens_per_step)
        state.step += 1
        state.tokens += self.config.tokens_per_step
        state.seconds += time.perf_counter() - started
        self._record(loss_sum, aux_sums, grad_norm, load, lr_factor)
        return StepView(state, self.total_steps, self.progress, loss_sum, aux_sums, lr_factor, load)

    def _check_finite(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.step + 1}; the last checkpoint is kept. "
                "Try a lower optim.lr or a smaller optim.grad_clip."
            )

    def _clip(self) -> float | None:
        limit = self.config.optim.grad_clip
        if limit is None:
            return None
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is {norm} at step {self.state.step + 1}; the last checkpoint is kept. "
                "Try a lower optim.lr."
            )
        return norm

    def _update_bias(self, load: list[Tensor], probs: list[list[Tensor]]) -> None:
        """Balancing by bias: once per optimizer step, from the counts or probabilities of the whole step."""
        if self.bias_method is not None:
            for layer, counts, seen in zip(self.layers, load, probs, strict=True):
                bias: Tensor = layer.router.expert_bias
                bias.copy_(update_bias(self.bias_method, bias, counts, seen, layer.top_k))

    def _record(
        self, loss: float, aux_losses: dict[str, float], grad_norm: float | None, load: list[Tensor], lr_factor: float
    ) -> None:
        state = self.state
        values: dict[str, float | None] = {"train/loss": loss, "train/grad_norm": grad_norm}
        for name, aux_loss in aux_losses.items():
            values["train/aux_loss" if len(aux_losses) == 1 else f"train/aux_loss/{name}"] = aux_loss
        if load:
            values["moe/max_violation"] = sum(max_violation(counts) for counts in load) / len(load)
        for key, value in values.items():
            if value is not None:
                self._add(key, value)
        self._add("steps", 1)
        if state.step % self.config.train.log_every == 0 or self.progress >= 1:
            steps = state.interval.pop("steps")
            means = {key: value / steps for key, value in state.interval.items()}
            self.recorder.metrics({
                "step": state.step, "tokens": state.tokens, **means, "lr": self.config.optim.lr * lr_factor,
                "seconds": round(state.seconds, 3), "tokens_per_second": round(state.tokens / state.seconds, 1),
            })  # fmt: skip
            state.interval.clear()

    def _add(self, key: str, value: float) -> None:
        """To the sums that the next record gives the means of."""
        self.state.interval[key] = self.state.interval.get(key, 0.0) + value

    def _due(self, every: int | None, before: float) -> bool:
        """Whether something that happens every so many steps (None: ten times a run) happens now."""
        if every is not None:
            return self.state.step % every == 0 and self.progress < 1
        return int(before * EVALUATIONS_PER_RUN) != int(self.progress * EVALUATIONS_PER_RUN) and self.progress < 1

    def _evaluate(self) -> Evaluation:
        """A look at part of the validation text, for the curve; the summary's figures take all of it."""
        result = evaluate(
            self.model, self.task, self.config.train.batch_size, max_tokens=self.config.train.eval_tokens,
            top_k=self.config.eval.k, capacity_factor=self.config.eval.capacity,
            precision=self.config.train.precision,
        )  # fmt: skip
        routing = {f"val/{key}": value for key, value in (result.routing_metrics() or {}).items()}
        estimates = {"val/loss_estimate": result.loss, "val/bpb_estimate": result.bits_per_byte}
        self.recorder.metrics({"step": self.state.step, **estimates, **routing, **result.layer_metrics()})
        if not math.isfinite(result.loss):
            raise TrainingError(
                f"the validation loss is {result.loss} at step {self.state.step}; the last checkpoint is kept. "
                "Try a lower optim.lr."
            )
        chosen = probe(self.model, self.task, self.config.eval.k, self.config.train.precision)
        for record, layer in zip(result.layer_records(), chosen, strict=True):
            self.recorder.routing({"step": self.state.step, **record, "choices": expert_lists(layer)})
        return result

    def save(self) -> None:
        save_checkpoint(self.recorder.run, self.model, self.optimizers, {**asdict(self.state), **self._identity()})
        self.recorder.status(RUNNING, step=self.state.step, steps=self.total_steps)

    def _identity(self) -> dict[str, Any]:
        return {
            "digest": self.config.digest,
            "threads": torch.get_num_threads(),
            "corpus_sha256": self.task.corpus.meta["sha256"],
        }


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within it, each of STOP_SIGNALS asks for a stop after the current step; a second SIGINT stops at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
