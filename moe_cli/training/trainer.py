"""How is a model trained? The loop of steps, evaluations and checkpoints, in which the losses are added up."""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from moe_cli.config.balances import QuantileBalance
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import EVALUATIONS_PER_RUN
from moe_cli.distributed import collectives
from moe_cli.errors import TrainingError
from moe_cli.metrics import ESTIMATES, validation_key
from moe_cli.moe.balance import auxiliary_losses, bias_method, next_bias, total_loss
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routing import Routing
from moe_cli.moe.routing_metrics import dropped_fraction
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import RUNNING
from moe_cli.runs.recorder import Recorder
from moe_cli.tasks.base import Task
from moe_cli.training.checkpoint import Checkpoint, newest_valid_checkpoint
from moe_cli.training.checkpoint_writer import AsyncCheckpointWriter
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.evaluate import Evaluation, eval_policy, evaluate, expert_lists, probe_routing
from moe_cli.training.optimizers import Optimizers
from moe_cli.training.precision import autocast
from moe_cli.training.saved_training import TrainingParts, load_training, take_snapshot
from moe_cli.training.signals import stop_signals
from moe_cli.training.state import StepCallback, StepReport, StepResult, TrainState
from moe_cli.training.weight_average import WeightAverage

HEARTBEAT_SECONDS = 10.0
# Limits of train.on_nan: skipped steps in a row, and rewinds of a run. Beyond them the run fails.
MAX_CONSECUTIVE_SKIPS, MAX_REWINDS = 20, 10


class NotFiniteError(Exception):
    """A loss or a gradient is NaN or infinite. The arguments are the cause and the advice."""


class Trainer:
    """Trains a model until the budget of steps or time is spent.

    Args:
        config: a resolved configuration.
        distributed_model: the model, distributed over the processes.
        total_steps: optimizer steps of the budget; None means that the budget is a time.
        observer: called with a report after every step.

    Attributes:
        state: step, tokens, seconds, running means; a checkpoint contains it.
        progress_before: progress at the beginning of the last step; after a rewind, that of the checkpoint.
        layers: the sparse layers of the model.
        average: the running average of the weights; None without optim.ema_decay.
    """

    def __init__(
        self,
        config: RunConfig,
        distributed_model: DistributedModel,
        task: Task,
        optimizers: Optimizers,
        recorder: Recorder,
        total_steps: int | None,
        observer: StepCallback,
    ) -> None:
        self.config = config
        self.distributed_model = distributed_model
        self.model = model = distributed_model.model
        self.task = task
        self.optimizers = optimizers
        self.recorder = recorder
        self.total_steps = total_steps
        self.observer = observer
        self.state = TrainState()
        self.progress_before = 0.0
        # Collected once, because a model's modules are slow to walk through in every step.
        self.layers = moe_layers(model)
        self.params = list(model.parameters())
        self.device = self.params[0].device
        self.bias_method = bias_method(config.balance)
        self.average = None if config.optim.ema_decay is None else WeightAverage(model, config.optim.ema_decay)
        self.parts = TrainingParts(distributed_model, optimizers, self.average)
        self.checkpoint_writer = AsyncCheckpointWriter(recorder.run, config.train.keep_checkpoints)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restores a checkpoint, and removes the records of later steps."""
        load_training(checkpoint, self.parts)
        saved = checkpoint.state
        # The number of threads decides how sums are split, so the last digits depend on it.
        torch.set_num_threads(saved.get("threads") or torch.get_num_threads())
        self.state = TrainState(
            **{entry.name: saved[entry.name] for entry in fields(TrainState) if entry.name in saved}
        )
        self.recorder.check(saved.get("records"), self.state.step)
        self.recorder.rewind(self.state.step)

    @property
    def progress(self) -> float:
        """Returns the fraction of the budget that is spent, 0 to 1."""
        return self._budget_fraction(self.state.step, self.state.seconds)

    def _budget_fraction(self, step: int, seconds: float) -> float:
        """Computes the fraction of the budget that `step` steps take or, if the budget is a time, `seconds`."""
        if self.total_steps is not None:
            return min(1.0, step / self.total_steps)
        return min(1.0, seconds / (60 * (self.config.train.minutes or math.inf)))

    def run(self) -> bool:
        """Trains to the end of the budget, or until a stop is requested, and saves a checkpoint.

        Returns:
            True if the budget is spent.

        Raises:
            TrainingError: the loss is not finite, or a checkpoint cannot be written.
        """
        try:
            return self._run()
        finally:
            self.checkpoint_writer.close()

    def _run(self) -> bool:
        heartbeat = time.monotonic()
        val: Evaluation | None = None
        with stop_signals() as stopped:
            while self.progress < 1:
                report = self.step()
                best = False
                if self._is_due(self.config.train.eval_every):
                    with self.averaged():
                        val = self._evaluate()
                    best = self._is_best(val)
                self.observer(replace(report, val=val))
                # Read once, so that no signal can arrive between the condition for saving and that for stopping.
                stop = bool(collectives.all_reduce_max(stopped()))
                if best or stop or self._is_due(self.config.train.checkpoint_every or self.config.train.eval_every):
                    self.save()
                if stop and self.progress < 1:
                    self.checkpoint_writer.wait()
                    collectives.barrier()
                    return False
                if time.monotonic() - heartbeat > HEARTBEAT_SECONDS:
                    heartbeat = time.monotonic()
                    self.recorder.status(RUNNING, step=self.state.step, steps=self.total_steps)
        self.save()
        self.checkpoint_writer.wait()
        collectives.barrier()
        return True

    def step(self) -> StepReport:
        """Executes one optimizer step: forward, losses, backward, clip, update, bias update, record.

        Raises:
            TrainingError: the loss or the gradient is not finite, and train.on_nan does not allow the run to go on.
        """
        started = time.perf_counter()
        self.progress_before = self.progress
        if not self.model.training:
            self.model.train()
        result: StepResult | None = None
        lr_factor = 0.0
        try:
            result = self._forward_backward()
            lr_factor = self._update(result, started)
        except NotFiniteError as error:
            self._handle_non_finite(error)
            if self.config.train.on_nan == "rewind":
                return self.step()
        state = self.state
        state.step += 1
        state.tokens += self.config.tokens_per_step
        state.seconds += collectives.all_reduce_max(time.perf_counter() - started)
        if result is None:
            self._record_skipped()
            idle = [torch.zeros(layer.num_experts, dtype=torch.int64) for layer in self.layers]
            return StepReport(state, self.total_steps, self.progress, math.nan, {}, lr_factor, idle)
        state.skipped_in_a_row = 0
        if self.average is not None:
            self.average.update(state.step)
        load = self._without_null_experts(result.load)
        self._record(result, load, lr_factor)
        return StepReport(state, self.total_steps, self.progress, result.loss, result.aux_losses, lr_factor, load)

    def _forward_backward(self) -> StepResult:
        """Computes the clipped gradients of one step's batches. Raises NotFiniteError."""
        train, state = self.config.train, self.state
        device = self.device
        loss_sum, aux_sums, dropped_sum = 0.0, dict[str, float](), 0.0
        # All sparse layers have the same number of experts.
        num_scored = self.layers[0].num_scored if self.layers else 0
        step_counts = torch.zeros(len(self.layers), num_scored, dtype=torch.int64, device=device)
        probs: list[list[Tensor]] = [[] for _ in self.layers]
        num_tokens = [0 for _ in self.layers]
        rank, world_size = collectives.rank(), collectives.world_size()
        first = (state.step + state.data_shift) * train.grad_accumulation
        for index in range(first, first + train.grad_accumulation):
            batch = self.task.train_batch(index, train.batch_size, rank, world_size).to(device)
            with self.distributed_model.grad_sync(index + 1 == first + train.grad_accumulation):
                with autocast(train.precision, device):
                    loss, routings = self.task.loss(self.distributed_model.forward, batch)
                # Counted here and not in the layers, which also evaluate and may compute a batch twice.
                batch_counts = _counts_of_all(routings, device)
                step_counts += batch_counts
                if isinstance(self.bias_method, QuantileBalance):
                    for layer_probs, routing in zip(probs, routings, strict=True):
                        layer_probs.append(collectives.all_gather_rows(routing.probs.detach()))
                aux_losses = auxiliary_losses(
                    self.config.balance,
                    routings,
                    batch_counts=batch_counts.unbind(),
                    step_counts=step_counts.unbind(),
                    num_sequences=batch.num_examples,
                )
                total = total_loss(loss, aux_losses, routings)
                has_capacity = self.config.capacity is not None
                dropped = [dropped_fraction(routing) for routing in routings] if has_capacity else []
                # Read together, because each read makes the CPU wait for a GPU.
                scalars = (total, loss, *aux_losses.values(), *dropped)
                losses = torch.stack([value.detach() for value in scalars]).double()
                total_value, loss_value, *values = collectives.all_reduce_mean(losses).tolist()
                if not math.isfinite(total_value):
                    raise NotFiniteError(
                        f"the loss is {total_value}", "Try a lower optim.lr or a smaller optim.grad_clip."
                    )
                (total / train.grad_accumulation).backward()
            num_tokens = [n + world_size * routing.num_tokens for n, routing in zip(num_tokens, routings, strict=True)]
            loss_sum += loss_value / train.grad_accumulation
            for method, value in zip(aux_losses, values[: len(aux_losses)], strict=True):
                aux_sums[method.name] = aux_sums.get(method.name, 0.0) + value / train.grad_accumulation
            if dropped:
                dropped_sum += sum(values[len(aux_losses) :]) / len(dropped)
        self.distributed_model.reduce_expert_gradients()
        grad_norm, load = self._clip(step_counts)
        mean_dropped = None if self.config.capacity is None else dropped_sum / train.grad_accumulation
        return StepResult(loss_sum, aux_sums, grad_norm, mean_dropped, load, probs, num_tokens)

    def _clip(self, step_counts: Int[Tensor, "layers E"]) -> tuple[float, list[Tensor]]:
        """Clips the gradient to optim.grad_clip. Returns its norm before, and the counts on the CPU.

        Raises:
            NotFiniteError: the norm is not finite.
        """
        params = [param for param in self.params if param.grad is not None]
        total = self.distributed_model.gradient_norm()
        # Read together, because each read makes the CPU wait for a GPU.
        norm, *counts = torch.cat([values.double().flatten() for values in (total, step_counts)]).tolist()
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient is {norm}", "Try a lower optim.lr.")
        limit = self.config.optim.grad_clip
        if limit is not None and collectives.world_size() == 1:
            nn.utils.clip_grads_with_norm_(params, limit, total)
        elif limit is not None:
            for param in params:
                assert param.grad is not None
                param.grad.mul_(min(1.0, limit / (norm + 1e-6)))
        return norm, list(torch.tensor(counts, dtype=torch.int64).view(step_counts.shape))

    def _update(self, result: StepResult, started: float) -> float:
        """Updates the weights and the balancing biases; returns the schedule's factor of the learning rate.

        Args:
            started: performance counter at the beginning of the step; used if the budget is a time.
        """
        elapsed = 0.0 if self.total_steps is not None else collectives.all_reduce_max(time.perf_counter() - started)
        after = self._budget_fraction(self.state.step + 1, self.state.seconds + elapsed)
        load = self.distributed_model.local_counts(self._without_null_experts(result.load))
        lr_factor = self.optimizers.step(self.state.step, self.progress, load, after)
        self.optimizers.zero_grad()
        self._update_bias(result.load, result.probs)
        for layer, counts, num_tokens in zip(self.layers, result.load, result.num_tokens, strict=True):
            layer.after_step(counts, num_tokens)
        return lr_factor

    def _handle_non_finite(self, error: NotFiniteError) -> None:
        """Handles a non-finite loss or gradient by train.on_nan: skips the step, or rewinds to the last checkpoint.

        Raises:
            TrainingError: train.on_nan is `stop`, or too many steps have failed.
        """
        state, (cause, advice) = self.state, error.args
        cause = f"{cause} at step {state.step + 1}"
        self.optimizers.zero_grad()
        if self.config.train.on_nan == "stop":
            raise TrainingError(f"{cause}; {self._saved_state()}. {advice}")
        if self.config.train.on_nan == "rewind":
            self._rewind(cause, advice)
            return
        if state.skipped_in_a_row == MAX_CONSECUTIVE_SKIPS:
            raise TrainingError(f"{cause}, and {MAX_CONSECUTIVE_SKIPS} steps before it were skipped. {advice}")
        state.skipped += 1
        state.skipped_in_a_row += 1

    def _saved_state(self) -> str:
        """Returns a description of the checkpoints on disk, after pending writes finish."""
        with suppress(TrainingError):
            self.checkpoint_writer.wait()
        return self.recorder.run.kept()

    def _rewind(self, cause: str, advice: str) -> None:
        """Restores the last checkpoint, and skips the data of the failed steps (PaLM, arXiv:2204.02311, 5.1)."""
        failed = self.state
        self.checkpoint_writer.wait()
        collectives.barrier()
        if not self.recorder.run.checkpoints():
            raise TrainingError(f"{cause}, before the first checkpoint. {advice}")
        if failed.rewinds == MAX_REWINDS:
            raise TrainingError(f"{cause}, after {MAX_REWINDS} rewinds. {advice}")
        self.resume(newest_valid_checkpoint(self.recorder.run))
        self.state.rewinds = failed.rewinds + 1
        self.state.data_shift = failed.data_shift + failed.step + 1 - self.state.step

    def _update_bias(self, load: list[Tensor], probs: list[list[Tensor]]) -> None:
        """Updates the balancing biases from the counts or probabilities of the whole optimizer step."""
        if self.bias_method is not None:
            for layer, counts, layer_probs in zip(self.layers, load, probs, strict=True):
                bias = layer.router.get_buffer("expert_bias")
                bias.copy_(next_bias(self.bias_method, bias, counts.to(bias.device), layer_probs, layer.top_k))

    def _record(self, result: StepResult, load: Sequence[Tensor], lr_factor: float) -> None:
        """Adds the values of a step to the sums of the next record, and writes the record if it is due."""
        values = {"train/loss": result.loss, "train/grad_norm": result.grad_norm}
        has_several = len(result.aux_losses) > 1
        for name, aux_loss in result.aux_losses.items():
            values[f"train/aux_loss/{name}" if has_several else "train/aux_loss"] = aux_loss
        if result.dropped_fraction is not None:
            values["moe/dropped_fraction"] = result.dropped_fraction
        if load:
            values["moe/max_violation"] = sum(max_violation(counts.tolist()) for counts in load) / len(load)
        for key, value in values.items():
            self._accumulate(key, value)
        self._accumulate("steps", 1)
        before = self.state.detect_spike(result.loss)
        if before is not None:
            self.recorder.metrics(
                {"step": self.state.step, "train/loss_spike": result.loss, "train/loss_before": before}
            )
        self._write_record(lr_factor)

    def _without_null_experts(self, load: list[Tensor]) -> list[Tensor]:
        """Returns, per layer, the counts without those of null experts, which come last."""
        return [counts[: layer.num_experts] for layer, counts in zip(self.layers, load, strict=True)]

    def _record_skipped(self) -> None:
        self.recorder.metrics({"step": self.state.step, "train/skipped": self.state.skipped})
        self._write_record(0.0)

    def _write_record(self, lr_factor: float) -> None:
        """Writes the means since the last record, every train.log_every steps and at the end."""
        state = self.state
        if state.step % self.config.train.log_every == 0 or self.progress >= 1:
            steps = state.metric_sums.pop("steps", 0)
            means = {key: value / steps for key, value in state.metric_sums.items()} if steps else {}
            self.recorder.metrics(
                {
                    "step": state.step,
                    "tokens": state.tokens,
                    **means,
                    "lr": self.config.optim.lr * lr_factor,
                    "seconds": round(state.seconds, 3),
                    "tokens_per_second": round(state.tokens / state.seconds, 1),
                }
            )
            state.metric_sums.clear()

    def _accumulate(self, key: str, value: float) -> None:
        """Adds a value to the sum whose mean is in the next record."""
        self.state.metric_sums[key] = self.state.metric_sums.get(key, 0.0) + value

    def _is_due(self, every: int | None) -> bool:
        """Returns True if an action is due after the last step.

        Args:
            every: steps between two actions; None means EVALUATIONS_PER_RUN times a run.
        """
        if every is not None:
            return self.state.step % every == 0 and self.progress < 1
        before, now = (int(fraction * EVALUATIONS_PER_RUN) for fraction in (self.progress_before, self.progress))
        return before < now and self.progress < 1

    def averaged(self) -> AbstractContextManager[None]:
        """Returns a context in which the model has the average of its weights, if optim.ema_decay is set."""
        return nullcontext() if self.average is None else self.average.swapped_in()

    def _is_best(self, val: Evaluation) -> bool:
        """Returns True if train.keep_best is set and this evaluation has the lowest loss so far, which is stored."""
        state = self.state
        if not self.config.train.keep_best or val.loss >= (math.inf if state.best_loss is None else state.best_loss):
            return False
        state.best_step, state.best_loss = state.step, val.loss
        return True

    def _evaluate(self) -> Evaluation:
        """Estimates the validation loss from train.eval_tokens tokens and records it.

        The loss in summary.json is computed after training, from the whole split.
        """
        result = evaluate(
            self.model,
            self.task,
            self.config.train.batch_size,
            max_tokens=self.config.train.eval_tokens,
            policy=eval_policy(self.config.eval),
            precision=self.config.train.precision,
        )
        routing = {validation_key(key): value for key, value in (result.routing_metrics() or {}).items()}
        estimates = {ESTIMATES["val_loss"]: result.loss, ESTIMATES["val_bpb"]: result.bits_per_byte}
        measures = {validation_key(key): value for key, value in result.measures.items()}
        place = {"step": self.state.step, "seconds": round(self.state.seconds, 3)}
        self.recorder.metrics({**place, **estimates, **measures, **routing, **result.layer_metrics()})
        if not math.isfinite(result.loss):
            raise TrainingError(
                f"the validation loss is {result.loss} at step {self.state.step}; {self._saved_state()}. "
                "Try a lower optim.lr."
            )
        masks = probe_routing(self.model, self.task, self.config.eval.k, self.config.train.precision)
        for record, layer in zip(result.layer_records(), masks, strict=True):
            self.recorder.routing({"step": self.state.step, **record, "choices": expert_lists(layer)})
        return result

    def save(self) -> None:
        """Writes a checkpoint in the background, and updates the status of the run."""
        state = {**asdict(self.state), **self._identity(), "records": self.recorder.mark()}
        self.checkpoint_writer.save(take_snapshot(self.parts, state))
        self.recorder.status(RUNNING, step=self.state.step, steps=self.total_steps)

    def _identity(self) -> dict[str, Any]:
        """Returns the values by which a resumed run checks that it continues the same training."""
        return {
            "digest": self.config.digest,
            "threads": torch.get_num_threads(),
            "corpus_sha256": self.task.meta["sha256"],
        }


def _counts_of_all(routings: Sequence[Routing], device: torch.device) -> Int[Tensor, "layers E"]:
    """Counts the assignments to each expert in the batch of all processes, for each layer."""
    if not routings:
        return torch.zeros(0, 0, dtype=torch.int64, device=device)
    return collectives.all_reduce_sum(torch.stack([routing.tokens_per_expert for routing in routings]))
