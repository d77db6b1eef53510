"""A single linear layer, small enough for evolution."""

from typing import Literal

import torch
from torch import Tensor, nn

from wmrl.nn.policies import largest
from wmrl.spec import Actions, State


class Linear(nn.Module):
    """Actions as a linear map of the features: 867 parameters for CarRacing's 288 features and 3 actions.

    Parameters begin at zero, as the search of Ha & Schmidhuber 2018 does. Discrete actions are the largest output.

    Args:
        shape: Shape (F,) of the features.
        actions: The environment's actions.
        squash: How outputs become actions in [-1, 1]. "tanh" for all; "hm" for CarRacing's (steer, gas, brake): tanh,
            and the brake, in the environment's units, is tanh cut at zero, so that half of all controllers do not
            brake; "none" leaves them raw, and the environment clips them. Source: "hm" Ha & Schmidhuber 2018,
            "none" ctallec.
        latents: Which latent of a frame it acts on when awake: "mean", the most likely one, or "sample", a draw.
            Source: ctallec, "mean".
        bias: Whether outputs have a bias. Source: Ha & Schmidhuber 2018, yes for CarRacing, no for Doom.

    Raises:
        ValueError: if the features are not a vector, or "hm" meets actions other than three continuous ones.
    """

    looks_at: Literal["features", "frame"] = "features"

    def __init__(
        self,
        shape: tuple[int, ...],
        actions: Actions,
        *,
        squash: Literal["tanh", "hm", "none"] = "tanh",
        latents: Literal["mean", "sample"] = "mean",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"a linear controller reads a vector of features, not shape {tuple(shape)}")
        if squash == "hm" and (actions.discrete or actions.size != 3):
            raise ValueError("squash 'hm' is for CarRacing's three continuous actions; take 'tanh'")
        self.actions, self.squash, self.latents = actions, squash, latents
        self.out = nn.utils.skip_init(nn.Linear, shape[0], actions.size, bias=bias)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def initial(self, batch: int) -> State:
        """No memory."""
        return ()

    def act(
        self, view: Tensor, memory: State, *, sample: bool = False, rng: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Features (B, F) -> actions (B, A); deterministic, `sample` changes nothing."""
        y = self.out(view)
        if self.actions.discrete:
            return largest(y), memory
        if self.squash == "none":
            return y, memory
        y = y.tanh()
        return (_brake(y) if self.squash == "hm" else y), memory


def _brake(y: Tensor) -> Tensor:
    """The third action is cut at zero in the environment's units [0, 1], of which ours are 2 x - 1."""
    brake = 2 * y[..., 2:].clamp(min=0) - 1
    return torch.cat([y[..., :2], brake], -1)
