"""Dynamics models on the same held-out episodes, side by side; begin reading at `comparison.compare`."""
