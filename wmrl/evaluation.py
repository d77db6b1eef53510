"""Evaluation protocols: what exactly a score is a score of.

A protocol is a named record; its hash is stored with every score, so that scores of different games, caps or seeds are
never taken for comparable. `carracing-100` is gymnasium's own CarRacing-v3 over 100 fixed tracks.

Test seeds have bit 31 set; every other seed in wmrl comes from `seeding.number`, which stays below 2^31. Training data,
controller training, validation and test can therefore never share a track.

    python -m wmrl.evaluation --measure-random carracing-100

plays the random policy (white noise) under a protocol and stores its returns in the package, as the row to beat.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wmrl.artifact import Artifact
from wmrl.envs.names import MINATAR, difficulty, home, versions
from wmrl.envs.names import frame_skip as tics_of_a_step
from wmrl.errors import ConfigError
from wmrl.seeding import number
from wmrl.stats import Summary, summary

TEST_BIT = 1 << 31
SEED_RULE = "episode i: 2^31 + number('test', environment id, i)"
SHORT = {
    "CarRacing-v3": "carracing",
    "TakeCover-v1": "takecover",
    "MiniGrid-Empty-Random-5x5-v0": "minigrid-empty-random-5x5",
    **{env_id: env_id.lower().removesuffix("-v1").replace("/", "-") for env_id in MINATAR},
}  # names in use; others are made from the environment's id
PLAYED = ("gymnasium", "box2d", "envpool", "minigrid")
"""Packages that play the games other than MinAtar's."""
RULES = ("action_repeat", "sticky", "ramping")
"""What changes a game, as `protocol` and the table of an environment name it."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a score is measured.

    Args:
        id: Its name, `<environment>-<episodes>`, with what deviates behind it.
        env_id: Environment id with version, as gymnasium has it.
        backend: Whose game it is: `gymnasium`, `minatar`, or `envpool`, whose tracks and pixels differ.
        episodes: How many, one per test seed.
        max_steps: Steps after which an episode is cut; None: the environment's own limit.
        seeds: The rule that gives episode i its seed.
        policy: Whether actions are the policy's best (`deterministic`) or drawn (`sampled`).
        frame_skip: Tics of a step; None for games that do not count in tics.
        action_repeat: Steps of the game that an action lasts; None for one.
        sticky: MinAtar's chance that the last action is repeated; None for its own.
        ramping: Whether MinAtar's games grow harder; None for its own choice.
    """

    id: str
    env_id: str
    backend: str = "gymnasium"
    episodes: int = 100
    max_steps: int | None = None
    seeds: str = SEED_RULE
    policy: str = "deterministic"
    frame_skip: int | None = None
    action_repeat: int | None = None
    sticky: float | None = None
    ramping: bool | None = None

    @property
    def hash(self) -> str:
        """SHA-256 of the record, hex: equal for equal conditions."""
        return _hash(self.record())

    @property
    def family(self) -> str:
        """SHA-256 of the record without its name and its number of episodes: the same game, more or fewer seeds."""
        return _hash({k: v for k, v in self.record().items() if k not in ("id", "episodes")})

    def record(self) -> dict[str, Any]:
        """The record; without the frame skip and rules where there are none, as it was before there were any."""
        return {k: v for k, v in asdict(self).items() if k not in ("frame_skip", *RULES) or v is not None}

    def test_seeds(self) -> list[int]:
        """The seed of each episode; a protocol with fewer episodes uses the first ones."""
        return [TEST_BIT + number("test", self.env_id, i) for i in range(self.episodes)]


@dataclass(frozen=True)
class Score:
    """The episodes that one policy played under one protocol.

    Args:
        protocol: The conditions.
        returns: (E,) undiscounted, unclipped.
        lengths: (E,) steps.
        terminated: (E,) whether the episode ended by itself and not by a time limit.
    """

    protocol: Protocol
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray

    def summary(self) -> Summary:
        """Mean, deviation, interquartile mean and intervals of the returns."""
        return summary(self.returns)

    def metrics(self) -> dict[str, float]:
        """The same under the names of metrics."""
        found = self.summary()
        spread = {"eval/return_std": found.std, "eval/ci_low": found.low, "eval/ci_high": found.high}
        return {"eval/return_mean": found.mean, "eval/return_iqm": found.iqm, **spread}

    def tics(self) -> Summary | None:
        """How long the episodes lasted in tics, where the game counts in them; a last step counts whole."""
        skip = self.protocol.frame_skip
        return summary(self.lengths * float(skip)) if skip else None


def protocol(
    env_id: str,
    *,
    episodes: int = 100,
    action_repeat: int = 1,
    sticky: float | None = None,
    ramping: bool | None = None,
    max_steps: int | None = None,
    backend: str | None = None,
    frame_skip: int | None = None,
    sample: bool = False,
) -> Protocol:
    """The protocol for an environment: `carracing-100` for CarRacing-v3 with the defaults.

    Args:
        env_id: Environment id.
        episodes: How many of the test seeds to play, from the first on.
        action_repeat: Steps of the game that an action lasts.
        sticky: MinAtar's chance that the last action is repeated, or None for its own.
        ramping: Whether MinAtar's games grow harder, or None for its own choice.
        max_steps: A cap below the environment's own, or None.
        backend: `gymnasium` or `envpool`; None: whose game it is, gymnasium's if it has it.
        frame_skip: Tics of a step, or None for the game's default.
        sample: Whether actions are drawn from the policy, and not its best ones.

    Raises:
        ConfigError: if there is nothing to play, or the game has no frame skip, or other choice, to make.
    """
    if episodes < 1 or (max_steps is not None and max_steps < 1):
        raise ConfigError(f"a test needs at least one episode of one step, not {episodes} of {max_steps}")
    name = SHORT.get(env_id) or re.sub(r"[^a-z0-9.]+", "-", env_id.lower()).strip("-")
    parts = [name, str(episodes)]
    parts += [f"max{max_steps}"] if max_steps is not None else []
    skip, own = tics_of_a_step(env_id, frame_skip), tics_of_a_step(env_id, None)
    parts += [f"skip{skip}"] if skip != own else []
    rules = difficulty(env_id, sticky, ramping) | ({"action_repeat": action_repeat} if action_repeat > 1 else {})
    parts += [f"repeat{action_repeat}"] if action_repeat > 1 else []
    parts += [f"sticky{rules['sticky']:g}"] if "sticky" in rules else []
    parts += ["flat"] if "ramping" in rules else []
    backend = backend or home(env_id)
    parts += [backend] if backend != home(env_id) else []
    parts += ["sampled"] if sample else []
    how = {"backend": backend, "episodes": episodes, "max_steps": max_steps, "frame_skip": skip, **rules}
    how |= {"policy": "sampled"} if sample else {}
    return Protocol(id="-".join(parts), env_id=env_id, **how)


def named(name: str) -> Protocol:
    """The protocol of a name such as `carracing-100`, for the environments that have a short one.

    Raises:
        ConfigError: if there is none of that name.
    """
    known = {short: env_id for env_id, short in SHORT.items()}
    found = re.fullmatch(r"(.+?)-(\d+)(?:-max(\d+))?(?:-skip(\d+))?(?:-repeat(\d+))?(?:-(envpool))?(-sampled)?", name)
    if found is None or found[1] not in known:
        raise ConfigError(f"there is no protocol {name!r}; a name is like {sorted(known)[0]}-100")
    cap, skip = (int(digits) if digits else None for digits in (found[3], found[4]))
    how: dict[str, Any] = {"max_steps": cap, "frame_skip": skip, "backend": found[6], "sample": found[7] is not None}
    return protocol(known[found[1]], episodes=int(found[2]), action_repeat=int(found[5] or 1), **how)


def random_score(of: Protocol) -> Score | None:
    """What the random policy scores under a protocol, if it was measured for at least as many episodes; else None.

    It draws its actions whatever the protocol says of the policy.
    """
    folder, family = _baselines(), dataclasses.replace(of, policy="deterministic").family
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.endswith(".json"):
            stored = json.loads(entry.read_text())
            if stored["family"] == family and len(stored["returns"]) >= of.episodes:
                return _score(of, stored)
    return None


def baseline_text(score: Score, command: str) -> str:
    """The JSON text that `random_score` reads, with the command that measured it."""
    record = {
        "protocol": score.protocol.record(),
        "family": score.protocol.family,
        "policy": "white",
        "command": command,
        "packages": versions(*(["minatar"] if score.protocol.backend == "minatar" else PLAYED), "numpy"),
        "returns": [round(float(r), 6) for r in score.returns],
        "lengths": score.lengths.tolist(),
        "terminated": score.terminated.tolist(),
    }
    return json.dumps(record, indent=1) + "\n"


def scores_in(made: Artifact) -> dict[str, Score]:
    """The scores that a test artifact holds: protocol id -> score, the main one first."""
    scores = {}
    for name in made.facts["order"]:
        columns = [made.tensors[f"{name}/{column}"] for column in ("returns", "lengths", "terminated")]
        scores[name] = Score(Protocol(**made.facts["scores"][name]["protocol"]), *columns)
    return scores


def _score(of: Protocol, stored: Mapping[str, Any]) -> Score:
    columns = [np.asarray(stored[name][: of.episodes]) for name in ("returns", "lengths", "terminated")]
    return Score(of, columns[0].astype(np.float64), columns[1].astype(np.int64), columns[2].astype(bool))


def _baselines() -> Any:
    return importlib.resources.files("wmrl") / "baselines"


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    from wmrl.scoring import main

    main()
