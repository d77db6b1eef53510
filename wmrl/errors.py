"""What can go wrong for a user, and the exit code that goes with it.

Each message is one sentence: what is wrong, where, and what would be right. `wmrl.cli` prints it without a traceback.
"""

import signal


class UserError(Exception):
    """Something failed that the user can understand from one sentence. Exit code 1."""

    code = 1


class ConfigError(UserError):
    """A flag, a pipeline file or a key is wrong. Exit code 2."""

    code = 2


class ArtifactError(UserError):
    """A file (or an optional package) is missing, damaged, foreign, or from a later version. Exit code 3."""

    code = 3


class TargetMissed(UserError):
    """The score is below `--target-return`. Exit code 4."""

    code = 4


class ContractError(UserError):
    """Artifacts or protocols that do not fit together. Exit code 5."""

    code = 5


class Stopped(Exception):
    """Raised after a clean checkpoint because a signal asked for it. Exit code 128 + the signal's number."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.code = 128 + signum


def missing_extra(extra: str, package: str | None = None) -> ArtifactError:
    """The error for an optional package that is not installed."""
    return ArtifactError(f"{package or extra} is not installed; to get it: pip install 'wmrl[{extra}]'")
