"""World model and behaviour as they learn together: one update of both from one batch of windows."""

import time
from typing import Any

import torch

from wmrl import optimizers, precision, seeding
from wmrl.errors import ContractError, UserError
from wmrl.pipeline import Fit
from wmrl.spec import Batch, Metrics
from wmrl.trainers.learner import Learner, starts_of
from wmrl.world import WorldModel


class Pupils:
    """A world model that is trained, and a learner that dreams in it.

    Args:
        world: Its representation stays as it is; its dynamics is trained.
        learner: Holds the controller.
        settings: Optimiser of the dynamics.
        seed: Update k draws from (seed, "online", k).
        device: Where both are.
    """

    def __init__(self, world: WorldModel, learner: Learner, settings: Fit, seed: int, device: torch.device) -> None:
        self.world, self.learner, self.settings, self.seed, self.device = world, learner, settings, seed, device
        self.parameters = [p for p in world.dynamics.parameters() if p.requires_grad]
        self.optimizer = optimizers.make(self.parameters, settings)
        self.precision = ""
        self.updates = 0
        self.seconds = {"world": 0.0, "behaviour": 0.0}
        self._rows: list[Metrics] = []

    def measure(self, batch: Batch, asked: str) -> str:
        """Choose the precision for good; why, in words."""
        self.precision, why = asked, "as --precision asks"
        if asked == "auto":
            rng = seeding.generator(self.seed, "online", "measure", device=self.device)
            batch = batch.to(self.device)
            self.precision, why = precision.for_training(
                self.world.dynamics, lambda: self.world.loss(batch, rng)[0], self.device
            )
        return why

    def update(self, batch: Batch) -> None:
        """One step of the world model on the batch, then one of the behaviour on dreams from its states."""
        began = time.monotonic()
        rng = seeding.generator(self.seed, "online", self.updates, device=self.device)
        torch.manual_seed(seeding.number(self.seed, "online", "torch", self.updates))
        batch = batch.to(self.device)
        self.world.dynamics.train()
        with precision.autocast(self.precision, self.device):
            total, metrics, states = self.world.learn(batch, rng)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = optimizers.clip(self.parameters, self.settings.clip)
        warm = min(1.0, (self.updates + 1) / self.settings.warmup) if self.settings.warmup else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warm
        self.optimizer.step()
        between = time.monotonic()
        self.world.dynamics.eval()
        starts, weight = starts_of(batch, states)
        self._freeze(True)
        with precision.autocast(self.precision, self.device):
            learnt = self.learner.update(self.world, starts, weight, rng=rng)
        self._freeze(False)
        self.updates += 1
        self._rows.append({"world": total.detach(), **metrics, "world_gradient_norm": norm, **learnt})
        self.seconds["world"] += between - began
        self.seconds["behaviour"] += time.monotonic() - between

    def check(self) -> None:
        """Look at the losses since the last report.

        Raises:
            UserError: if one of them is not finite.
        """
        if not self._rows:
            return
        table = self._table()
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            update = self.updates - len(self._rows) + row + 1
            raise UserError(
                f"{list(self._rows[0])[column]} is {table[row, column].item()} at update {update}; the state before is "
                "kept: try a lower fit.dynamics.learning_rate, or one of the trainer, in another --logdir"
            )

    def report(self) -> dict[str, float]:
        """The means of the losses since the last report.

        Raises:
            UserError: if one of them is not finite.
        """
        if not self._rows:
            return {}
        self.check()
        means = dict(zip(self._rows[0], self._table().mean(0).tolist(), strict=True))
        self._rows = []
        return means

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from; never one that was not looked at.

        Raises:
            UserError: if a loss since the last report is not finite.
        """
        self.check()
        return {
            "updates": self.updates,
            "precision": self.precision,
            "module": dict(self.world.dynamics.state_dict()),
            "optimizer": optimizers.state(self.optimizer, self.parameters),
            "learner": self.learner.state(),
            "rows": [{name: float(value) for name, value in row.items()} for row in self._rows],
        }

    def restore(self, tree: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ContractError: if it is the state of other networks.
        """
        self.updates, self.precision = int(tree["updates"]), str(tree["precision"])
        try:
            self.world.dynamics.load_state_dict({k: torch.as_tensor(v) for k, v in tree["module"].items()})
            optimizers.restore(self.optimizer, self.parameters, tree["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ContractError(f"the state kept is of another dynamics model ({error})") from error
        self.learner.restore(tree["learner"])
        self._rows = [{name: torch.tensor(value) for name, value in row.items()} for row in tree["rows"]]

    def _table(self) -> torch.Tensor:
        """The numbers of each update, in the order of the first one's names: stored rows come back in another."""
        names = list(self._rows[0])
        return torch.stack([torch.stack([row[name].float().cpu() for name in names]) for row in self._rows])

    def _freeze(self, frozen: bool) -> None:
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
