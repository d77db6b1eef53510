"""How a stage becomes a command: its own options, then those that every stage has."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from wmrl.errors import ConfigError
from wmrl.session import Asked, Session


@dataclass
class Call:
    """What a command's own options amount to.

    Args:
        flags: Keys of the pipeline and the values given for them (None: not given).
        run: Fields of `wmrl.run.Run` that the command sets.
        options: Makes the further argument that the stage takes, if it takes one.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    options: Callable[[], Any] | None = None


def _common(
    pipeline: Annotated[
        str | None, typer.Argument(help="A name in pipelines/, a TOML file, or a logdir.", show_default=False)
    ] = None,
    pipeline_option: Annotated[
        str | None, typer.Option("--pipeline", help="The same as the argument.", show_default=False)
    ] = None,
    logdir: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/NAME/seed-N.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The folder of the rollouts; by default the pipeline's.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: a.b=c; repeatable.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="From which all randomness follows.", show_default=False)] = None,
    env_id: Annotated[
        str | None, typer.Option("--env-id", "--env", help="A gymnasium id, or module:Id.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto (measured), fp32 or bf16.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Environment threads or processes; by default one per core.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show warnings only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show details.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
    track: Annotated[
        str | None, typer.Option(help="Also log to wandb or trackio (extras; offline).", show_default=False)
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the pipeline and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options that every stage has."""


def joined(command: Callable[..., Any], common: Callable[..., Any], first: Sequence[str] = ()) -> inspect.Signature:
    """The options of a command and those of many, as one signature for typer.

    Args:
        command: Its own parameters stand first, and hold where a common one has the same name.
        common: Has the parameters that many commands take.
        first: Names of common parameters that stand before the command's own.
    """
    own, more = inspect.signature(command).parameters, inspect.signature(common).parameters
    before = [more[name] for name in first]
    after = [p for name, p in more.items() if name not in first and name not in own]
    order = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*before, *own.values(), *after)]
    return inspect.Signature(order)


def stage(
    app: typer.Typer, epilog: str, name: str, target: str, writes: str | None = None
) -> Callable[[Callable[..., Call]], Callable[..., None]]:
    """Register a command that runs a stage: its own options, then the common ones.

    Args:
        app: Where it is registered.
        epilog: What stands below its help.
        name: The command, and the stage's name in logs.
        target: "module:function" of the stage.
        writes: The artifact that the stage makes.
    """

    def register(command: Callable[..., Call]) -> Callable[..., None]:
        own = inspect.signature(command).parameters

        def run(**given: Any) -> None:
            call = command(**{key: given.pop(key) for key in own})
            _run(name, target, writes, call, given)

        run.__signature__ = joined(command, _common, first=("pipeline",))  # type: ignore[attr-defined]
        app.command(name, help=inspect.getdoc(command), epilog=epilog)(run)
        return run

    return register


def _run(name: str, target: str, writes: str | None, call: Call, common: dict[str, Any]) -> None:
    from wmrl import session

    flags = {"seed": common["seed"], "env.id": common["env_id"], **call.flags}
    source = _one_of(common["pipeline"], common["pipeline_option"])
    asked = Asked(source, common["logdir"], common["data"], tuple(common["set_"] or ()), flags)
    found = session.resolve(asked, writes=writes, anew=bool(call.run.get("noreload")))
    if common["print_config"]:
        _print_config(found)
        return
    from wmrl import interrupts
    from wmrl.launch import launch

    interrupts.install()
    launch(name, target, found, common, call.run, call.options, writes=writes)


def _one_of(argument: str | None, option: str | None) -> str | None:
    """The pipeline, wherever it was named."""
    if argument is not None and option is not None and argument != option:
        raise ConfigError(f"the pipeline is {argument!r} by the argument and {option!r} by --pipeline; name one")
    return option if argument is None else argument


def _print_config(found: Session) -> None:
    from wmrl.agreement import check_components

    check_components(found.pipe)
    typer.echo(json.dumps({"logdir": str(found.logdir), "pipeline": found.pipe.table()}, indent=2))
