"""What improves a controller. `kind -> "module:callable"`; nothing is imported here."""

TRAINERS: dict[str, str] = {
    "actor-critic": "wmrl.trainers.actor_critic:ActorCritic",
    "cma-es": "wmrl.trainers.evolve:Evolve",
    "nes": "wmrl.trainers.nes:NES",
    "reward": "wmrl.trainers.reward:Reward",
    "value": "wmrl.trainers.value:value",
}
