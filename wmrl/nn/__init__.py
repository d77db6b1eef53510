"""Building blocks that know nothing of reinforcement learning."""
