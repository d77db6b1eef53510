"""`wmrl compare`: dynamics models side by side."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    logdirs: Annotated[list[Path], typer.Argument(help="Logdirs with a trained dynamics.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The HTML page.")] = Path("compare.html"),
    name: Annotated[
        list[str] | None, typer.Option(help="A name for each logdir, in their order; repeatable.", show_default=False)
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare models of different datasets too.")] = False,
    starts: Annotated[int, typer.Option(help="Windows of held-out episodes.")] = 128,
    samples: Annotated[int, typer.Option(help="Dreams from each window.")] = 8,
    seed: Annotated[int, typer.Option(help="From which windows, noise and dreams follow.")] = 0,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Measure no speed.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show warnings only.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Put dynamics models of one dataset side by side: a table, and a page with curves and dreamt frames."""
    from wmrl import run
    from wmrl.comparison import command
    from wmrl.comparison.comparison import Options

    options = Options(
        names=tuple(name or ()),
        anyway=anyway,
        starts=starts,
        samples=samples,
        seed=seed,
        speed=not no_speed,
        device=run.device(device),
    )
    command.run(logdirs, options, out, as_json=json, quiet=quiet, progress=False if no_progress else None)
