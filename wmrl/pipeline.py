"""A pipeline file: one experiment, one TOML file, one frozen dataclass.

`load("carracing-mdnrnn", ["dynamics.hidden=512"])` reads `pipelines/carracing-mdnrnn.toml`, applies the overrides and
checks every key; the tables of components (`representation`, `dynamics`, ...) are checked against the signature of the
callable that their `kind` names.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wmrl import config
from wmrl.environment import Env as Env
from wmrl.environment import check_env
from wmrl.errors import ArtifactError, ConfigError
from wmrl.iteration import Iterate, check_iterate
from wmrl.online import Online, check_online
from wmrl.sources import DEFAULT, STORED, is_logdir, read, with_overrides


@dataclass(frozen=True, kw_only=True)
class Generate:
    """How rollouts are collected.

    Args:
        policy: "brown" (a clipped random walk), "white" (independent uniform actions), "held" (a uniform action held
            for some steps), "controller" (a trained one). Source: ctallec for brown and white, Ha & Schmidhuber 2018
            for held.
        rollouts: Number of episodes.
        hold: Longest time that "held" keeps an action, steps. Source: Ha & Schmidhuber 2018 (Doom), 10.
        controller: The logdir whose controller acts, for policy "controller".
        noise: Standard deviation of Gaussian noise added to the controller's actions, in units of [-1, 1]; of discrete
            ones the chance that a uniform one is taken instead.
    """

    policy: Literal["brown", "white", "held", "controller"] = "brown"
    rollouts: int = 1000
    hold: int = 10
    controller: str | None = None
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a model is trained on rollouts.

    Args:
        steps: Gradient steps at most.
        batch: Windows in a batch.
        length: Steps in a window; for the representation, frames of one episode that are near each other.
        learning_rate: Step size of the optimiser.
        optimizer: "adam" or "rmsprop" (alpha 0.9). Source: ctallec, adam for V and rmsprop for M.
        beta2: Decay of Adam's average of squared gradients. Source: torch, 0.999; the Transformer, 0.98.
        epsilon: What Adam adds to the root of that average. Source: torch, 1e-8; the Transformer, 1e-9;
            DreamerV2, 1e-5.
        weight_decay: Share of the weights that a step with learning rate 1 would take off them, beside the gradient
            (Loshchilov and Hutter 2019). Source: torch's Adam, 0; DreamerV2, 1e-6.
        warmup: Steps over which the learning rate rises linearly from zero.
        clip: Largest norm of the gradient; 0 leaves it alone.
        validate_every: Steps between two looks at the fixed validation set.
        validation_batches: Size of the validation set, batches.
        plateau: Steps without improvement of the validation loss after which the learning rate is halved; 0 never.
            Source: ctallec.
        patience: Steps without improvement after which training ends; 0 never. Source: ctallec.
        log_every: Steps between two rows of metrics.
    """

    steps: int = 10_000
    batch: int = 64
    length: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "rmsprop"] = "adam"
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float = 0.0
    validate_every: int = 250
    validation_batches: int = 8
    plateau: int = 0
    patience: int = 0
    log_every: int = 25


@dataclass(frozen=True, kw_only=True)
class Fits:
    """The training of each model.

    Args:
        vae: Training of the representation.
        dynamics: Training of the dynamics.
    """

    vae: Fit = Fit(steps=3_000, batch=32, length=2, validation_batches=16)
    dynamics: Fit = Fit(steps=6_000, batch=64, length=32, clip=1.0)


@dataclass(frozen=True, kw_only=True)
class Test:
    """How the finished controller is scored.

    Args:
        episodes: Number of test episodes; their seeds are fixed.
        max_steps: Steps after which a test episode is truncated; the protocol's own limit if left out.
        sample: Whether actions are drawn from the policy, and not its best ones. That is another protocol, and the
            validations of trainers that learn in dreams follow it.
    """

    episodes: int = 100
    max_steps: int | None = None
    sample: bool = False


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One experiment.

    Args:
        name: What the experiment is called; the file's name.
        seed: The number from which all randomness follows.
        data: The folder of the rollouts.
        validation: Fraction of the episodes kept for validation, by episode; fixed by the episodes' own seeds.
        env: The environment.
        generate: How rollouts are collected.
        representation: The V: a registered kind and its arguments, or `{ from = "LOGDIR/vae.h5" }`.
        dynamics: The M, likewise.
        controller: The C.
        trainer: What improves the controller.
        fit: The training of V and M.
        test: The final score.
        iterate: What `wmrl iterate` does again and again.
        online: What it does instead where there are steps of it: act and learn, in turns.
    """

    name: str = DEFAULT
    seed: int = 1
    data: str = ""
    validation: float = 0.1
    env: Env = field(default_factory=Env)
    generate: Generate = Generate()
    representation: dict[str, Any] = field(default_factory=lambda: {"kind": "pixels"})
    dynamics: dict[str, Any] = field(default_factory=lambda: {"kind": "mdn-rnn"})
    controller: dict[str, Any] = field(default_factory=lambda: {"kind": "linear"})
    trainer: dict[str, Any] = field(default_factory=lambda: {"kind": "cma-es"})
    fit: Fits = Fits()
    test: Test = Test()
    iterate: Iterate = field(default_factory=Iterate)
    online: Online = field(default_factory=Online)

    def table(self) -> dict[str, Any]:
        """The pipeline as a JSON-able table."""
        return config.plain(self)


def load(source: str | Path | None, overrides: Iterable[str] = ()) -> Pipeline:
    """Read a pipeline and apply overrides.

    Args:
        source: A name in `pipelines/`, the path of a TOML file, a logdir, or None for the default.
        overrides: "a.b=c", the value in TOML (a bare word counts as a string).

    Raises:
        ConfigError: for an unknown name or key, or a value of a wrong type; it names the file and the key.
        ArtifactError: if a logdir holds no pipeline.
    """
    return parse(with_overrides(read_checked(str(source or DEFAULT))[1], overrides))


def read_checked(source: str) -> tuple[Pipeline, dict[str, Any]]:
    """A pipeline as it is stored, and its table, the name included.

    Raises:
        ConfigError: as `load`.
        ArtifactError: if a logdir holds no pipeline, or one with a wrong key or value.
    """
    name, table = read(source)
    table = {"name": name, **table}
    try:
        return parse(table), table
    except ConfigError as error:
        if is_logdir(source):
            raise ArtifactError(f"{Path(source) / STORED}: {error}") from error
        raise


def parse(table: Mapping[str, Any]) -> Pipeline:
    """Check a table and make a pipeline of it.

    Raises:
        ConfigError: as `load`.
    """
    pipe = Pipeline(**config.bind(Pipeline, table, ""))
    data = pipe.data or f"datasets/{slug(pipe.env.id)}"
    pipe = dataclasses.replace(pipe, data=data)
    _check(pipe)
    return pipe


def slug(env_id: str) -> str:
    """A folder's name for an environment: CarRacing-v3 -> carracing."""
    word = env_id.replace(":", "-").replace("/", "-").lower()
    head, _, version = word.rpartition("-v")
    return head if head and version.isdigit() else word


def logdir_of(pipe: Pipeline, own_env: str | None = None) -> Path:
    """Where a run of this pipeline lives: runs/NAME[/ENV]/seed-N.

    Args:
        pipe: The pipeline, overrides applied.
        own_env: The environment of the pipeline's file, if it was overridden.
    """
    middle = [slug(pipe.env.id)] if own_env not in (None, pipe.env.id) else []
    return Path("runs", pipe.name, *middle, f"seed-{pipe.seed}")


def _check(pipe: Pipeline) -> None:
    """Values that types alone do not rule out."""
    if Path(pipe.name).name != pipe.name or pipe.name == "..":
        raise ConfigError(f"name: {pipe.name!r} is to name a folder in runs/; it is no path")
    positive = {
        "env.size": pipe.env.size,
        "env.action_repeat": pipe.env.action_repeat,
        "generate.rollouts": pipe.generate.rollouts,
        "generate.hold": pipe.generate.hold,
        "test.episodes": pipe.test.episodes,
        **{f"fit.{f}.{k}": getattr(getattr(pipe.fit, f), k) for f in ("vae", "dynamics") for k in POSITIVE},
    }
    optional = {"env.max_steps": pipe.env.max_steps, "test.max_steps": pipe.test.max_steps}
    optional["env.frame_skip"] = pipe.env.frame_skip
    not_negative = {
        "seed": pipe.seed,
        "generate.noise": pipe.generate.noise,
        **{f"fit.{f}.{k}": getattr(getattr(pipe.fit, f), k) for f in ("vae", "dynamics") for k in NOT_NEGATIVE},
    }
    positive |= {k: v for k, v in optional.items() if v is not None}
    for key, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{key}: must be greater than 0, got {value}")
    for key, value in {k: v for k, v in positive.items() if k in MOST}.items():
        if value > MOST[key]:
            raise ConfigError(f"{key}: must be at most {MOST[key]:,}, got {value:,}")
    for name, fit in {"vae": pipe.fit.vae, "dynamics": pipe.fit.dynamics}.items():
        _check_fit(name, fit)
    for key, value in not_negative.items():
        if not value >= 0:
            raise ConfigError(f"{key}: must not be negative, got {value}")
    if not 0 < pipe.validation < 1:
        raise ConfigError(f"validation: must lie between 0 and 1, got {pipe.validation}")
    if pipe.generate.policy == "controller" and not pipe.generate.controller:
        raise ConfigError("generate.controller: policy 'controller' needs the logdir of a trained controller")
    check_env(pipe.env)
    check_iterate(pipe.iterate)
    check_online(pipe.online)


def _check_fit(name: str, fit: Fit) -> None:
    if not fit.beta2 < 1:
        raise ConfigError(f"fit.{name}.beta2: must be less than 1, got {fit.beta2}")
    if fit.weight_decay and fit.optimizer != "adam":
        raise ConfigError(f"fit.{name}.weight_decay: is for the optimizer 'adam', and this is {fit.optimizer!r}")


POSITIVE = ("steps", "batch", "length", "learning_rate", "epsilon", "validate_every", "validation_batches", "log_every")
MOST = {"env.size": 4096, "env.frame_skip": 35, "env.action_repeat": 100}
MOST |= dict.fromkeys(("env.max_steps", "test.max_steps"), 10**9)
NOT_NEGATIVE = ("beta2", "weight_decay", "warmup", "clip", "plateau", "patience")
