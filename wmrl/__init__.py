"""World models in reinforcement learning, as one staged workflow."""

__version__ = "0.1.0"
