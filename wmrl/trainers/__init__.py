"""What improves a controller. `kind -> "module:callable"`; nothing is imported here."""

TRAINERS: dict[str, str] = {
    "cma-es": "wmrl.trainers.evolve:Evolve",
}
