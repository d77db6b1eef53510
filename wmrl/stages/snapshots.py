"""Score the snapshots that an online run has kept, each under one protocol: how the published curves were made."""

import dataclasses
from pathlib import Path

from rich import box
from rich.table import Table

from wmrl.errors import ArtifactError, ConfigError
from wmrl.evaluation import Score
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.stages.test_controller import TestOptions, played
from wmrl.stdout import table_text
from wmrl.store import Store

FOLDER = "snapshots"
"""The folder of a logdir that holds its snapshots, each a logdir of its own, named by its step."""


def folders(logdir: Path) -> dict[int, Path]:
    """The snapshots of a logdir: step -> folder, in order."""
    found = {int(path.name): path for path in (logdir / FOLDER).glob("*") if path.name.isdigit()}
    return {step: found[step] for step in sorted(found)}


def chosen(logdir: Path, words: str) -> dict[int, Path]:
    """The snapshots that "all" or "100000,200000" names.

    Raises:
        ArtifactError: if there are none.
        ConfigError: if one that is named is not there.
    """
    there = folders(logdir)
    if not there:
        raise ArtifactError(f"{logdir / FOLDER} holds no snapshots: wmrl iterate keeps some with online.keep_every")
    if words == "all":
        return there
    try:
        steps = [int(word.replace("_", "")) for word in words.split(",")]
    except ValueError:
        raise ConfigError(f"--snapshots is all, or steps such as {next(iter(there))}, not {words!r}") from None
    if missing := [step for step in steps if step not in there]:
        raise ConfigError(f"--snapshots: there is none of step {missing[0]}; there are {', '.join(map(str, there))}")
    return {step: there[step] for step in steps}


def test_snapshots(pipe: Pipeline, store: Store, log: Log, run: Run, options: TestOptions) -> None:
    """Play the test episodes with each snapshot; what was played before is not played again.

    Raises:
        ArtifactError, ConfigError: as `chosen`, and as `test_controller`.
        Stopped: after a signal; what is finished is kept.
    """
    scores: dict[int, Score] = {}
    with log.part(FOLDER) as part:
        part.rewind(-1)
        for step, folder in chosen(store.logdir, options.snapshots or "all").items():
            log.say(f"snapshot of step {step:,}")
            own = Store(folder, dataclasses.replace(pipe, data=pipe.data))
            scores[step] = played(pipe, own, log, run, options)[0]
            part.metrics(step, scores[step].metrics())
    log.out(_table(scores))
    rows = [{"global_step": step, **score.summary().record()} for step, score in scores.items()]
    of = next(iter(scores.values())).protocol
    returns = {str(step): score.returns for step, score in scores.items()}
    log.result({"protocol": of.id, "protocol_hash": of.hash, "snapshots": rows, "returns": returns})


test_snapshots.__test__ = False  # type: ignore[attr-defined]


def _table(scores: dict[int, Score]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("step", "protocol", "episodes", "mean", "std", "95 % of mean", "IQM"):
        table.add_column(head, justify="left" if head == "protocol" else "right", no_wrap=True)
    for step, score in scores.items():
        s = score.summary()
        numbers = [f"{s.mean:.1f}", f"{s.std:.1f}", f"{s.low:.1f} to {s.high:.1f}", f"{s.iqm:.1f}"]
        table.add_row(f"{step:,}", score.protocol.id, str(s.episodes), *numbers)
    return table_text(table)
