"""Representations turn observations into latents and back. A new one is a file here and a line in this table."""

REPRESENTATIONS = {
    "pixels": "wmrl.representations.pixels:Pixels",
    "vae": "wmrl.representations.vae:VAE",
}
