"""Limits of the numbers that a pipeline gives: what makes no sense is refused by its name."""


def at_least(least: float, **numbers: float) -> None:
    """Check numbers, given by their names.

    Raises:
        ValueError: if one is less than `least`, or no number (`nan` in TOML).
    """
    for name, number in numbers.items():
        if not number >= least:
            raise ValueError(f"{name} must be at least {least}, got {number}")


def shares(**numbers: float) -> None:
    """Check numbers that are shares of 1, given by their names.

    Raises:
        ValueError: if one is not in 0..1.
    """
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in 0..1, got {number}")
