"""The state of training, and the result of one step."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from moe_cli.training.evaluate import Evaluation

# A loss this many mean absolute deviations above its running mean (over about 50 steps) is a spike.
SPIKE_DEVIATIONS, SPIKE_RATE, SPIKE_WARMUP = 8.0, 0.02, 50


@dataclass
class TrainState:
    """The state of training that a checkpoint holds, without tensors.

    Attributes:
        seconds: time spent in training steps, without evaluation and saving.
        metric_sums: sums since the last record in metrics.jsonl.
        skipped, skipped_in_a_row, rewinds: steps without an update, and returns to a checkpoint; see train.on_nan.
        data_shift: batches of optimizer steps that rewinds have skipped.
        spikes: steps with a loss far above the running mean; `loss_mean` and `loss_deviation` are the running
            statistics.
        best_step, best_loss: the evaluation with the lowest loss, with train.keep_best.
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
        """Updates the running mean with the loss of a step.

        Returns the previous mean if the loss is a spike, else None.
        """
        usual = loss if self.loss_mean is None else self.loss_mean
        spike = self.step > SPIKE_WARMUP and loss > usual + SPIKE_DEVIATIONS * self.loss_deviation
        self.spikes += spike
        self.loss_deviation += SPIKE_RATE * (abs(loss - usual) - self.loss_deviation)
        self.loss_mean = usual + SPIKE_RATE * (loss - usual)
        return usual if spike else None


@dataclass(frozen=True)
class StepReport:
    """The state and the metrics after a step, for a display.

    Attributes:
        aux_losses: each balancing loss by name, unweighted.
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
        probs: per sparse layer, the probabilities of each batch, where a bias is computed from them.
        num_tokens: per sparse layer, the number of routed tokens.
    """

    loss: float
    aux_losses: dict[str, float]
    grad_norm: float
    dropped_fraction: float | None
    load: list[Tensor]
    probs: list[list[Tensor]]
    num_tokens: list[int]
