"""World models in reinforcement learning: generate, train-vae, train-dynamics, train-controller, test-controller, render."""

__version__ = "0.1.0"
