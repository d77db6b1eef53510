"""Score the snapshots that an online run has kept, each under one protocol: how the published curves were made."""

import contextlib
from pathlib import Path

from rich import box
from rich.table import Table

from wmrl import artifact
from wmrl.errors import ArtifactError, ConfigError, ContractError
from wmrl.evaluation import Score, scores_in
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.run import Run
from wmrl.stages.subject import moved
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

    `metrics/snapshots.jsonl` then has a row for every snapshot that is scored under the protocol of this call.

    Raises:
        ArtifactError, ConfigError: as `chosen`, and as `test_controller`.
        Stopped: after a signal; what is finished is kept.
    """
    scores: dict[int, Score] = {}
    with log.part(FOLDER) as part:
        try:
            for step, folder in chosen(store.logdir, options.snapshots or "all").items():
                log.say(f"snapshot of step {step:,}")
                scores[step] = played(pipe, Store(folder, pipe), log, run, options)[0]
        finally:
            _keep(store.logdir, scores, part)
    log.out(_table(scores))
    rows = [{"global_step": step, **score.summary().record()} for step, score in scores.items()]
    of = next(iter(scores.values())).protocol
    returns = {str(step): score.returns for step, score in scores.items()}
    log.result({"protocol": of.id, "protocol_hash": of.hash, "snapshots": rows, "returns": returns})


test_snapshots.__test__ = False  # type: ignore[attr-defined]


def _keep(logdir: Path, scores: dict[int, Score], part: Log) -> None:
    """Write a row for each snapshot of these, and for each other one that has a score under their protocol."""
    if not scores:
        return
    of, kept, apart = next(iter(scores.values())).protocol, dict(scores), 0
    for step, folder in folders(logdir).items():
        if step not in scores and (folder / "test.h5").exists():
            with contextlib.suppress(ArtifactError, ContractError):  # what it says cannot be told then
                made = artifact.read(folder / "test.h5", "test")
                if moved(made, folder):
                    continue  # a score of models that were there before
                found = {score.protocol.hash: score for score in scores_in(made).values()}
                kept |= {step: found[of.hash]} if of.hash in found else {}
                apart += of.hash not in found
    part.rewind(-1)
    for step in sorted(kept):
        part.metrics(step, kept[step].metrics())
    if apart:
        part.say(f"snapshots that are scored, but not under {of.id}, are left out of the metrics: {apart}")


def _table(scores: dict[int, Score]) -> str:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("step", "protocol", "episodes", "mean", "std", "95 % of mean", "IQM"):
        table.add_column(head, justify="left" if head == "protocol" else "right", no_wrap=True)
    for step, score in scores.items():
        s = score.summary()
        table.add_row(f"{step:,}", score.protocol.id, str(s.episodes), *s.words()[:4])
    return table_text(table)
