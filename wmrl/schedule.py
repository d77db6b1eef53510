"""How a training proceeds: its step, its learning rate, its best validation loss, and when it ends."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from wmrl.pipeline import Fit

THRESHOLD = 1e-4
"""An improvement counts for plateau and patience if it is larger than this share of the loss. Source: ctallec."""
SMALLEST = 2.0**-10
"""The learning rate is not halved below this share of its setting."""


@dataclass
class Progress:
    """Where a training stands; it is stored with the weights, so that a resumed training decides alike.

    Args:
        step: Gradient steps made.
        validated: The step of the last validation; -1 before the first.
        best: The lowest validation loss so far.
        best_step: Its step.
        mark: The last validation loss that was lower by more than `THRESHOLD`.
        mark_step: Its step.
        halved: The step at which the learning rate was last halved.
        scale: Share of the learning rate that is left after the halvings.
        ended: Why the training is over, in words; "" while it is not.
        seconds: Time spent.
    """

    step: int = 0
    validated: int = -1
    best: float | None = None
    best_step: int = 0
    mark: float | None = None
    mark_step: int = 0
    halved: int = 0
    scale: float = 1.0
    ended: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, table: dict[str, Any]) -> Self:
        """Progress as it was stored."""
        return cls(**table)

    def table(self) -> dict[str, Any]:
        """What to store."""
        return dataclasses.asdict(self)

    def learning_rate(self, settings: Fit) -> float:
        """The step size of the next step."""
        warm = min(1.0, (self.step + 1) / settings.warmup) if settings.warmup else 1.0
        return settings.learning_rate * warm * self.scale

    def due(self, settings: Fit) -> bool:
        """Whether to look at the validation set now."""
        return self.step > 0 and self.validated != self.step and self.step % settings.validate_every == 0

    def see(self, loss: float, settings: Fit) -> bool:
        """Take note of a validation loss; whether it is the best one so far."""
        self.validated = self.step
        if self.mark is None or loss < self.mark - THRESHOLD * abs(self.mark):
            self.mark, self.mark_step = loss, self.step
        best = self.best is None or loss < self.best
        if best:
            self.best, self.best_step = loss, self.step
        self._judge(settings)
        return best

    def _judge(self, settings: Fit) -> None:
        """Halve the learning rate, or end, where the loss has not improved for long."""
        since = max(self.mark_step, self.halved)
        if settings.plateau and self.step - since >= settings.plateau and self.scale > SMALLEST:
            self.scale, self.halved = self.scale / 2, self.step
        if settings.patience and self.step - self.mark_step >= settings.patience:
            self.ended = f"no better validation loss for {self.step - self.mark_step} steps"
