"""The C of a world-model agent: what chooses actions. `kind -> "module:callable"`; nothing is imported here."""

CONTROLLERS: dict[str, str] = {
    "linear": "wmrl.controllers.linear:Linear",
    "mlp": "wmrl.controllers.mlp:MLP",
}
