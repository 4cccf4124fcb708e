"""The state of a training, which checkpoints contain, and the results of one step."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from moe_cli.training.evaluate import Evaluation

# A loss is a spike if it exceeds its running mean by this number of mean absolute deviations. Rate of both running
# statistics (about 50 steps), and the number of first steps in which nothing is a spike.
SPIKE_DEVIATIONS, SPIKE_RATE, SPIKE_WARMUP = 8.0, 0.02, 50


@dataclass
class TrainState:
    """The state of a training without its tensors.

    Attributes:
        step: optimizer steps, skipped ones included.
        tokens: training tokens.
        seconds: time of the training steps, without evaluation and saving.
        metric_sums: sums since the last record in metrics.jsonl.
        skipped, skipped_in_a_row, rewinds: steps without an update, and returns to a checkpoint; see train.on_nan.
        data_shift: number of optimizer steps whose data were skipped by rewinds.
        spikes: steps with a loss far above the running mean.
        loss_mean, loss_deviation: running mean of the loss, and of its absolute deviation from that mean.
        best_step, best_loss: step and loss of the best evaluation, with train.keep_best.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metric_sums: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    skipped_in_a_row: int = 0
    rewinds: int = 0
    data_shift: int = 0
    spikes: int = 0
    loss_mean: float | None = None
    loss_deviation: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None

    def detect_spike(self, loss: float) -> float | None:
        """Updates the running statistics with the loss of a step; returns the previous mean for a spike, else None."""
        mean = loss if self.loss_mean is None else self.loss_mean
        is_spike = self.step > SPIKE_WARMUP and loss > mean + SPIKE_DEVIATIONS * self.loss_deviation
        self.spikes += is_spike
        self.loss_deviation += SPIKE_RATE * (abs(loss - mean) - self.loss_deviation)
        self.loss_mean = mean + SPIKE_RATE * (loss - mean)
        return mean if is_spike else None


@dataclass(frozen=True)
class StepReport:
    """The state and the metrics after a step, for a display.

    Attributes:
        total_steps: steps of the budget; None for a time budget.
        progress: fraction of the budget that is spent.
        loss: training loss in nats per token; NaN for a skipped step.
        aux_losses: each balancing loss by name, unweighted.
        lr_factor: learning rate as a fraction of its peak.
        load: assignments per expert, for each sparse layer.
        val: the last evaluation.
    """

    state: TrainState
    total_steps: int | None
    progress: float
    loss: float
    aux_losses: dict[str, float]
    lr_factor: float
    load: list[Tensor]
    val: Evaluation | None = None


StepCallback = Callable[[StepReport], None]


@dataclass(frozen=True)
class StepResult:
    """The results of the batches of one optimizer step, without the gradients.

    Attributes:
        loss: training loss in nats per token.
        aux_losses: each balancing loss by name, unweighted.
        grad_norm: norm of the gradient before clipping.
        dropped_fraction: mean over layers; None without a capacity.
        load: per sparse layer, the assignments per expert, null experts included, on the CPU.
        probs: per sparse layer, the routing probabilities of each batch; empty unless balance=quantile reads them.
        num_tokens: per sparse layer, the number of routed tokens.
    """

    loss: float
    aux_losses: dict[str, float]
    grad_norm: float
    dropped_fraction: float | None
    load: list[Tensor]
    probs: list[list[Tensor]]
    num_tokens: list[int]
