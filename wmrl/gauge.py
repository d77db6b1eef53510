"""What a training shows of itself: losses without waiting for the device at each step, speed, and a look for NaN."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from wmrl.errors import UserError
from wmrl.log import Log
from wmrl.schedule import Progress
from wmrl.spec import Batch


class Gauge:
    """Collects the metrics of steps on the device and looks at them once per interval.

    Args:
        name: What is trained, for messages.
        log: Where metrics and progress go.
    """

    def __init__(self, name: str, log: Log):
        self.name, self.log = name, log
        self.saved_step = 0
        self.note = ""
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []
        self._checked = 0
        self.restart()

    def restart(self) -> None:
        """Begin a new interval now."""
        self._rows, self._checked, self._frames, self._waited = [], 0, 0, 0.0
        self._began = self._shown = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Take out of the speed what was no training."""
        self._began += seconds

    def data(self, batch: Batch, waited: float) -> None:
        """Count a batch, and the seconds that it was waited for."""
        rows = batch.obs if batch.obs is not None else batch.code
        self._frames += batch.mask.numel() if rows is None else rows.shape[0] * rows.shape[1]
        self._waited += waited

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], norm: Tensor) -> None:
        """Keep the numbers of one step, where they are."""
        self._names = ("loss", *metrics, "gradient_norm")
        self._rows.append(torch.stack([value.detach().float() for value in (loss, *metrics.values(), norm)]))

    def check(self, step: int) -> None:
        """Look at the numbers up to `step`.

        Raises:
            UserError: if one of them is not finite.
        """
        if len(self._rows) == self._checked:
            return
        table = torch.stack(self._rows[self._checked :]).cpu()
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = table[row, column].item()
            self.fail(f"{self._names[column]} is {value} at step {step - len(table) + row + 1}")
        self._checked = len(self._rows)

    def fail(self, what: str) -> None:
        """Stop a training that has gone astray.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.name}: {what}; the training state of step {self.saved_step} is kept, but try --noreload with "
            f"a lower fit.{self.name}.learning_rate or with a fit.{self.name}.clip"
        )

    def report(self, progress: Progress, total: int, learning_rate: float) -> None:
        """Log the means of the interval and begin a new one.

        Raises:
            UserError: if one number is not finite.
        """
        if not self._rows:
            return
        self.check(progress.step)
        means = dict(zip(self._names, torch.stack(self._rows).mean(0).tolist(), strict=True))
        elapsed = max(time.monotonic() - self._began, 1e-9)
        rates = {
            "charts/learning_rate": learning_rate,
            "time/steps_per_second": len(self._rows) / elapsed,
            "time/frames_per_second": self._frames / elapsed,
            "time/waiting_for_data": self._waited / elapsed,
        }
        self.log.metrics(progress.step, {**{f"losses/{key}": value for key, value in means.items()}, **rates})
        best = "" if progress.best is None else f", validation {progress.best:.4g}"
        self.note = f"loss {means['loss']:.4g}{best}"
        self.restart()
        self.log.progress(progress.step, total, "steps", self.note)

    def show(self, step: int, total: int) -> None:
        """Move the bar, twice a second."""
        if time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self.log.progress(step, total, "steps", self.note)
