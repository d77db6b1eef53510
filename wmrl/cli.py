"""The command line. Stages are imported when they run, so that `wmrl --help` loads neither torch nor h5py."""

import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import wmrl
from wmrl import cli_compare, cli_data
from wmrl.cli_stage import Call, stage
from wmrl.errors import Stopped, UserError

CODES = """Exit codes: 0 ok; 1 failure; 2 usage or configuration; 3 missing or unreadable artifact or extra;
4 target not met (--target-return); 5 artifacts or protocols that do not fit together; 130 and 143 after a clean
checkpoint on SIGINT and SIGTERM."""

app = typer.Typer(
    name="wmrl",
    help="World models in reinforcement learning: generate, train-vae, train-dynamics, train-controller, "
    "test-controller, render; each stage reads and writes HDF5 artifacts in a logdir.",
    epilog=CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_data.app, name="data")
app.command("compare", epilog=CODES)(cli_compare.compare)
_stage = functools.partial(stage, app, CODES)


def _option(help_: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_, show_default=False, **more)


Steps = Annotated[int | None, _option("Gradient steps.")]
BatchSize = Annotated[int | None, _option("Windows in a batch.")]
LearningRate = Annotated[float | None, _option("Step size of the optimiser.")]
MaxSteps = Annotated[int | None, _option("Truncate an episode after so many steps.")]
NoReload = Annotated[bool, _option("Begin anew; the old artifact is replaced on completion.", "--noreload")]
MaxWorkers = Annotated[
    int, typer.Option("--max-workers", "--num-envs", help="At most so many environments alive at once.")
]
Minutes = Annotated[float | None, _option("End the stage after so many minutes, as if it had its steps.")]


@_stage("generate", "wmrl.stages.generate:generate")
def generate(
    rollouts: Annotated[int | None, _option("Number of episodes.")] = None,
    policy: Annotated[str | None, _option("brown, white, held or controller.")] = None,
    controller: Annotated[str | None, _option("The logdir whose controller acts (--policy controller).")] = None,
    noise: Annotated[float | None, _option("Noise added to the controller's actions.")] = None,
    append: Annotated[int, _option("Add so many episodes with fresh seeds.")] = 0,
    max_steps: MaxSteps = None,
    size: Annotated[int | None, _option("Side of the frames, pixels.")] = None,
) -> Call:
    """Collect rollouts into the dataset folder; interrupted and called again, it completes them."""
    if controller is not None and policy is None:
        policy = "controller"
    own = {"rollouts": rollouts, "policy": policy, "controller": controller, "noise": noise}
    flags = {**{f"generate.{k}": v for k, v in own.items()}, "env.max_steps": max_steps, "env.size": size}
    return Call(flags, {"append": append})


@_stage("train-vae", "wmrl.stages.train_vae:train_vae", "vae")
def train_vae(
    steps: Steps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    minutes: Minutes = None,
    noreload: NoReload = False,
) -> Call:
    """Train the representation (V) on the rollouts."""
    flags = {"steps": steps, "batch": batch_size, "learning_rate": learning_rate}
    return Call({f"fit.vae.{k}": v for k, v in flags.items()}, {"minutes": minutes, "noreload": noreload})


@_stage("train-dynamics", "wmrl.stages.train_dynamics:train_dynamics", "dynamics")
def train_dynamics(
    dynamics: Annotated[str | None, _option("The kind of dynamics model: mdn-rnn, ...")] = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    untrained: Annotated[bool, _option("Save a randomly initialised model: a baseline.", "--untrained")] = False,
    minutes: Minutes = None,
    noreload: NoReload = False,
) -> Call:
    """Train the dynamics (M) on the rollouts, seen through the representation."""
    flags = {"steps": steps, "batch": batch_size, "learning_rate": learning_rate}
    run = {"untrained": untrained, "minutes": minutes, "noreload": noreload}
    return Call({**{f"fit.dynamics.{k}": v for k, v in flags.items()}, "dynamics.kind": dynamics}, run)


@_stage("train-controller", "wmrl.stages.train_controller:train_controller", "controller")
def train_controller(
    pop_size: Annotated[int | None, _option("Candidates in a generation.")] = None,
    n_samples: Annotated[int | None, _option("Rollouts of each candidate.")] = None,
    generations: Annotated[int | None, _option("Generations.")] = None,
    steps: Annotated[int | None, _option("Steps, dreamt ones if asleep, after which the search ends.")] = None,
    target_return: Annotated[float | None, _option("Stop early at this mean validation return.")] = None,
    max_workers: MaxWorkers = 256,
    where: Annotated[str | None, _option("env, or dream: inside the world model.")] = None,
    temperature: Annotated[float | None, _option("Of the draws in dreams.")] = None,
    dream_steps: Annotated[int | None, _option("Truncate a dream after so many steps.")] = None,
    real_every: Annotated[
        int | None, _option("Asleep: score in the environment too, after so many generations; 0: never.")
    ] = None,
    display: Annotated[bool, _option("Show the progress bar even where stderr is no terminal.", "--display")] = False,
    minutes: Minutes = None,
    noreload: NoReload = False,
) -> Call:
    """Train the controller (C) in the environment, or in the dream."""
    own = {"population": pop_size, "samples": n_samples, "generations": generations, "steps": steps, "where": where}
    asleep = {"temperature": temperature, "dream_steps": dream_steps, "real_every": real_every}
    flags = {f"trainer.{k}": v for k, v in {**own, **asleep, "target_return": target_return}.items()}
    run = {"max_workers": max_workers, "display": display, "minutes": minutes, "noreload": noreload}
    return Call(flags, run)


@_stage("test-controller", "wmrl.stages.test_controller:test_controller")
def test_controller(
    episodes: Annotated[int | None, _option("How many of the fixed test seeds to play.")] = None,
    max_steps: MaxSteps = None,
    target_return: Annotated[float | None, _option("Exit with code 4 if the mean return is below this.")] = None,
    baseline: Annotated[list[Path] | None, _option("Another logdir to show beside; repeatable.")] = None,
    backend: Annotated[str | None, _option("envpool: score on envpool's game too, beside gymnasium's.")] = None,
    sample: Annotated[bool, _option("Draw actions from the policy, instead of its best ones.", "--sample")] = False,
    capture_video: Annotated[bool, _option("Film the recorded episodes.", "--capture-video")] = False,
    snapshots: Annotated[str | None, _option("Score the snapshots of an online run: all, or steps.")] = None,
    noreload: Annotated[bool, _option("Play the episodes of this protocol again.", "--noreload")] = False,
) -> Call:
    """Score the trained controller on fixed test episodes; every return is kept."""

    def options() -> Any:
        from wmrl.stages.test_controller import TestOptions

        return TestOptions(
            episodes=episodes,
            max_steps=max_steps,
            target_return=target_return,
            baselines=tuple(baseline or ()),
            backend=backend,
            sample=sample,
            capture_video=capture_video,
            snapshots=snapshots,
        )

    return Call(run={"noreload": noreload}, options=options)


@_stage("iterate", "wmrl.stages.iterate:iterate", "iterate")
def iterate(
    iterations: Annotated[int | None, _option("How often in all; more go on.")] = None,
    rollouts_per_iteration: Annotated[int | None, _option("Episodes that the controller adds each time.")] = None,
    steps_per_iteration: Annotated[int | None, _option("Gradient steps of V, and of M, each time.")] = None,
    generations_per_iteration: Annotated[int | None, _option("Generations of C each time.")] = None,
    noise: Annotated[float | None, _option("Noise added to the controller's actions while it collects.")] = None,
    steps: Annotated[int | None, _option("Online: environment steps in all; more go on.")] = None,
    updates_per_step: Annotated[float | None, _option("Online: the train ratio.")] = None,
    num_envs: Annotated[int | None, _option("Online: environments in lockstep.")] = None,
    max_workers: Annotated[int, typer.Option(help="At most so many environments alive at once.")] = 256,
    minutes: Minutes = None,
) -> Call:
    """Collect with the controller, train on it, and again, in iterations or online; called again, it goes on."""
    each = {"vae_steps": steps_per_iteration, "dynamics_steps": steps_per_iteration}
    amounts = {"rollouts": rollouts_per_iteration, "generations": generations_per_iteration, "noise": noise}
    online = {"steps": steps, "updates_per_step": updates_per_step, "environments": num_envs}
    own = {f"iterate.{key}": value for key, value in {"iterations": iterations, **amounts, **each}.items()}
    own |= {f"online.{key}": value for key, value in online.items()}
    return Call(own, {"max_workers": max_workers, "minutes": minutes})


@_stage("render", "wmrl.stages.render:render")
def render(
    out: Annotated[Path | None, _option("An .mp4 or .gif, or a .png for --strip and --curves.")] = None,
    episode: Annotated[int | None, _option("Which recorded episode, from 0.")] = None,
    from_data: Annotated[bool, _option("Take the episode from the dataset.", "--from-data")] = False,
    fresh: Annotated[bool, _option("Play a new episode.", "--fresh")] = False,
    episode_seed: Annotated[int | None, _option("Seed of a fresh episode, or of a dream.")] = None,
    dream: Annotated[bool, _option("A pure dream from a real first frame.", "--dream")] = False,
    reset_every: Annotated[int, typer.Option(help="Steps after which the dream begins again; 0: never.")] = 50,
    temperature: Annotated[float, typer.Option(help="Of the draws in dreams.")] = 1.0,
    steps: Annotated[int | None, _option("Show at most so many steps.")] = None,
    strip: Annotated[bool, _option("A PNG of moments side by side.", "--strip")] = False,
    moments: Annotated[int, typer.Option(help="How many moments a strip shows.")] = 8,
    curves: Annotated[bool, _option("Draw the curves of all metrics as PNG.", "--curves")] = False,
    compare: Annotated[list[Path] | None, _option("Another logdir whose curves to overlay; repeatable.")] = None,
    frames: Annotated[Path | None, _option("A folder for numbered PNG frames.")] = None,
    native: Annotated[bool, _option("The environment's own resolution; plays a fresh episode.", "--native")] = False,
    height: Annotated[int, typer.Option(help="Height of a panel, pixels.")] = 256,
    fps: Annotated[float | None, _option("Frames per second; by default the environment's.")] = None,
) -> Call:
    """Film an episode: real, reconstruction and dream side by side; or a strip, frames, a dream, curves."""

    def options() -> Any:
        from wmrl.stages.render import RenderOptions

        return RenderOptions(
            out=out,
            episode=episode,
            data=from_data,
            fresh=fresh,
            seed=episode_seed,
            dream=dream,
            reset_every=reset_every,
            temperature=temperature,
            steps=steps,
            strip=strip,
            moments=moments,
            curves=curves,
            compare=tuple(compare or ()),
            frames=frames,
            native=native,
            height=height,
            fps=fps,
        )

    return Call(options=options)


@app.command("describe")
def describe(
    prefix: Annotated[str | None, typer.Argument(help="A table or a component: fit.vae, dynamics.mdn-rnn.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print every key of a pipeline: type, default, meaning, unit and source."""
    from wmrl.describe import run

    run(prefix, json)


@app.command("status")
def status(
    logdir: Annotated[Path | None, typer.Argument(help="A logdir; the one used last if left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what exists in a logdir, what is stale and why, scores, and the next command to run."""
    from wmrl import session
    from wmrl.errors import ConfigError
    from wmrl.status import run

    folder = logdir or session.last()
    if folder is None:
        raise ConfigError("no logdir was used here yet; name one: wmrl status LOGDIR")
    run(folder, json)


@app.command("doctor")
def doctor(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, devices, threads, disk, codecs, display and extras: what works and what to install."""
    from wmrl.doctor import run

    run(json)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"wmrl {wmrl.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """World models in reinforcement learning."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's error becomes one line and its exit code.

    Args:
        argv: The words after `wmrl`; those of the process if None.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        app(words)
    except (UserError, Stopped) as error:
        if "--debug" in words:
            raise
        word = "stopped" if isinstance(error, Stopped) else "error"
        _complain(f"{word}: {error}" if word == "error" else str(error))
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if "--debug" in words:
            raise
        _complain(f"error: {type(error).__name__}: {error} (a bug, or a full machine; --debug shows the traceback)")
        sys.exit(1)


def _complain(line: str) -> None:
    typer.echo(" ".join(line.split()), err=True)
