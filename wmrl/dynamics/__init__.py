"""Dynamics models, by the name that pipelines use. To add one: write a file, add a line."""

DYNAMICS: dict[str, str] = {
    "latent": "wmrl.dynamics.latent:LatentModel",
    "mdn-rnn": "wmrl.dynamics.mdn_rnn:MDNRNN",
    "rssm": "wmrl.dynamics.rssm:RSSM",
    "trade": "wmrl.dynamics.trade:TraDE",
    "transformer-de": "wmrl.dynamics.transformer_de:TransformerDE",
    "tssm": "wmrl.dynamics.tssm:TSSM",
}
