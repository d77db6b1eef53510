"""`wmrl data`: look at datasets, check them, convert them."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from wmrl.cli_stage import joined

app = typer.Typer(
    help="Datasets of rollouts: info, check, import, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(help="The dataset's folder.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="As for stages: results and errors only, as always here.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="As for stages: these commands draw no bar.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
SCHEMA_VERSION = 1


def _common(quiet: Quiet = False, no_progress: NoProgress = False, debug: Debug = False) -> None:
    """Options that every command of wmrl takes; here only `--debug` changes anything (see `wmrl.cli.main`)."""


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: its own options, then the common ones."""

    def register(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters

        def run(**given: Any) -> None:
            command(**{key: given[key] for key in own})

        run.__signature__ = joined(command, _common)  # type: ignore[attr-defined]
        app.command(name, help=inspect.getdoc(command))(run)
        return command

    return register


@_command("info")
def info(
    path: Folder,
    as_json: AsJson = False,
) -> None:
    """Episodes, steps, returns, shapes, size, policy and versions of a dataset, finished or not."""
    from wmrl.data.info import info as describe
    from wmrl.data.info import lines

    about = describe(path)
    typer.echo(_json(about) if as_json else "\n".join(lines(about)))


@_command("check")
def check(
    path: Folder,
    as_json: AsJson = False,
) -> None:
    """Read a whole dataset and list what is wrong with it. Exit code 1 if anything is."""
    import dataclasses

    from wmrl.data.check import check as findings

    found = []
    for finding in findings(path):
        found.append(dataclasses.asdict(finding))
        if not as_json:
            typer.echo(f"{finding.kind}: {finding.text}")
    if as_json:
        typer.echo(_json({"data": str(path), "findings": found}))
    elif not found:
        typer.echo(f"{path}: nothing is wrong")
    if found:
        raise typer.Exit(1)


@_command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(help="npz rollouts of ctallec or tbwm, or a Minari dataset (folder or id).", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The new dataset's folder.", show_default=False)],
    env_id: Annotated[
        str | None,
        typer.Option(
            "--env-id", "--env", help="The environment; npz: CarRacing-v3, Minari: its own.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert rollouts made by other programs; interrupted and called again, it goes on."""
    from wmrl import interrupts
    from wmrl.stages.convert import import_rollouts

    interrupts.install()
    index = import_rollouts(source, out, env_id)
    episodes, steps = len(index.seeds), int(index.lengths.sum())
    about = {"data": str(out), "episodes": episodes, "steps": steps, "hash": index.hash}
    typer.echo(_json(about) if as_json else f"{out}: {episodes} episodes, {steps:,} steps")


@_command("export")
def export(
    path: Folder,
    dataset_id: Annotated[
        str, typer.Option("--id", help="The Minari dataset's id: name/of-it-v0.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Write a dataset as a Minari dataset, without loss, into Minari's local folder."""
    from wmrl import interrupts
    from wmrl.stages.convert import export_rollouts

    interrupts.install()
    made = export_rollouts(path, dataset_id)
    typer.echo(_json({"data": str(path), "id": dataset_id, "folder": str(made)}) if as_json else str(made))


def _json(values: dict[str, Any]) -> str:
    return json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2)
