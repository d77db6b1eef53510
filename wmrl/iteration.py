"""The `[iterate]` table of a pipeline: how often data, V, M and C are made better by each other."""

from dataclasses import dataclass

from wmrl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """What `wmrl iterate` does again and again.

    The first iteration is the pipeline's own: its policy collects the rollouts, V, M and C are trained from random
    weights with its numbers. The numbers here are those of each iteration after it.

    Args:
        iterations: How often, the first one included; a larger number goes on. Source: Ha & Schmidhuber 2018,
            "Iterative Training Procedure".
        rollouts: Episodes that the controller adds to the dataset in each iteration after the first.
        noise: Standard deviation of the Gaussian noise that is added to its actions meanwhile, in units of [-1, 1]; of
            discrete ones the chance that a uniform one is taken instead.
        train_vae: Whether V is trained on; if not, it stays as the first iteration made it.
        vae_steps: Gradient steps of V on the grown dataset.
        dynamics_steps: Gradient steps of M.
        generations: Generations of C, a new search that begins with the controller of the iteration before.
        episodes: Test episodes after each iteration, always the same; the pipeline's `test.episodes` if left out.
    """

    iterations: int = 3
    rollouts: int = 100
    noise: float = 0.1
    train_vae: bool = True
    vae_steps: int = 1000
    dynamics_steps: int = 2000
    generations: int = 20
    episodes: int | None = None


def check_iterate(table: Iterate) -> None:
    """Check what types alone do not rule out.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("iterations", "rollouts", "vae_steps", "dynamics_steps", "generations", "episodes"):
        value = getattr(table, key)
        if value is not None and value < 1:
            raise ConfigError(f"iterate.{key}: must be greater than 0, got {value}")
    if table.noise < 0:
        raise ConfigError(f"iterate.noise: must not be negative, got {table.noise}")
