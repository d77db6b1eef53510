"""What improves a controller. `kind -> "module:callable"`; nothing is imported here."""

TRAINERS: dict[str, str] = {
    "actor-critic": "wmrl.trainers.actor_critic:ActorCritic",
    "cma-es": "wmrl.trainers.evolve:Evolve",
    "nes": "wmrl.trainers.nes:NES",
    "ppo": "wmrl.trainers.ppo:PPO",
    "reward": "wmrl.trainers.reward:Reward",
    "td3": "wmrl.trainers.td3:TD3",
    "value": "wmrl.trainers.value:Value",
}
