"""TraDE: as a published world model has it, and as its paper has it."""

from typing import Literal

from wmrl.dynamics.transformer_de import Features, TransformerDE
from wmrl.limits import at_least
from wmrl.nn.autoregressive import AutoregressiveHead
from wmrl.spec import Actions, Space


class TraDE(TransformerDE):
    """A causal transformer over time with recurrent positions: a GRU over the tokens in place of the sine table.

    With `density = "mixture"` it is the model that starc52/tbwm calls TraDE: Transformer-DE but for its positions. With
    "autoregressive" the latent's numbers are drawn one after the other, each given those before it, as in the paper
    (Fakoor, Chaudhari, Mueller & Smola, TraDE, 2020, without its penalty on samples): exact likelihoods, and a dream
    step that takes as many passes of a small second transformer as the latent has numbers.

    Args:
        width: Size of a token. Source: tbwm, 32.
        blocks: Blocks of attention and feed-forward layer. Source: tbwm, 3.
        heads: Attention heads. Source: tbwm, 8.
        feedforward: Units of the feed-forward layers. Source: tbwm, 2048.
        dropout: In training, also on attention weights. Source: tbwm, 0.1.
        hidden: Size of the linear layer between the transformer and the heads. Source: tbwm, 256.
        context: Steps in the window, at rollout as in training: the same as `fit.dynamics.length`. Source: tbwm, 32 in
            training (and 500 at rollout).
        density: Of the next latent: "mixture" of Gaussians (tbwm), or "autoregressive" over its numbers (paper).
        mixtures: Gaussians in the mixture, or in each factor. Source: tbwm, 5.
        mixture: "joint" chooses one Gaussian for the whole latent vector (tbwm), "per_dimension" one for each of its
            numbers; an autoregressive density has one for each anyway.
        density_width: Size of a token of the autoregressive density.
        density_blocks: Blocks of the autoregressive density.
        density_heads: Attention heads of the autoregressive density.
        density_feedforward: Units of the feed-forward layers of the autoregressive density.
        features: What controllers see of a state: "zh" latent and normalised output of the transformer; "published"
            latent and the `hidden` numbers; "z" the latent alone.
        termination_weight: How much a step that terminates weighs against one that does not, in the loss of
            termination. Source: tbwm, 1.

    Raises:
        ContractError: if the latent is not a vector of floats, or a window is longer than the context.
        ValueError: if a size is below 1, the context below 2, or sizes do not fit together.
    """

    def __init__(
        self,
        latent: Space,
        actions: Actions,
        *,
        width: int = 32,
        blocks: int = 3,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        hidden: int = 256,
        context: int = 32,
        density: Literal["mixture", "autoregressive"] = "mixture",
        mixtures: int = 5,
        mixture: Literal["joint", "per_dimension"] = "joint",
        density_width: int = 64,
        density_blocks: int = 2,
        density_heads: int = 4,
        density_feedforward: int = 256,
        features: Features = "zh",
        termination_weight: float = 1.0,
    ):
        super().__init__(
            latent,
            actions,
            width=width,
            blocks=blocks,
            heads=heads,
            feedforward=feedforward,
            dropout=dropout,
            hidden=hidden,
            context=context,
            positions="recurrent",
            mixtures=mixtures,
            mixture=mixture,
            features=features,
            termination_weight=termination_weight,
        )
        sizes = {"width": density_width, "blocks": density_blocks, "heads": density_heads}
        at_least(1, density_feedforward=density_feedforward, **{f"density_{key}": n for key, n in sizes.items()})
        if density_width % density_heads:
            raise ValueError(f"density_heads must divide density_width, got {density_heads} for {density_width}")
        if density == "autoregressive":
            self.next = AutoregressiveHead(hidden, self.size, mixtures, **sizes, feedforward=density_feedforward)
