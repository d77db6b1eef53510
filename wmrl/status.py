"""`wmrl status`: what a logdir holds, what each artifact was made from, what is stale and why, and what to run next."""

import dataclasses
import fcntl
import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wmrl import files, pipeline, stdout
from wmrl.errors import ArtifactError
from wmrl.pipeline import Pipeline
from wmrl.stages import rounds, states
from wmrl.status_text import text
from wmrl.store import MAKERS, referred

SCHEMA_VERSION = 1
State = Literal["complete", "in progress", "missing", "stale", "damaged"]
PARENTS = {"representation": "vae"}
"""Names of parents that differ from those of their artifacts."""


@dataclass(frozen=True)
class Entry:
    """One line: the dataset, or an artifact of the logdir.

    Args:
        name: "data", "vae", "dynamics", "controller", "test" or "videos".
        state: Whether it can be used.
        path: Where it is, or would be.
        detail: Its size, or how far it is.
        why: What is stale, damaged, or begun again.
        hash: Content hash; "" if there is none.
        parents: Content hashes of what it was made from, by the parents' names.
        command: What makes it, continues it or replaces it.
    """

    name: str
    state: State
    path: str
    detail: str = ""
    why: str = ""
    hash: str = ""
    parents: dict[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Report:
    """All that `wmrl status` says.

    Args:
        logdir: The run's folder.
        pipeline: The name of its pipeline.
        env: Its environment.
        seed: Its seed.
        busy: Whether a process works in the logdir at this moment.
        entries: The dataset and the artifacts, in the order they are made.
        scores: One record per protocol: name, protocol's hash, and the statistics of its returns.
        iterations: How far `wmrl iterate` is, in words; "" if it was never called here.
        next: The command to run next; "" if all is done.
    """

    logdir: str
    pipeline: str
    env: str
    seed: int
    busy: bool
    entries: list[Entry]
    scores: list[dict[str, Any]]
    iterations: str
    next: str


def report(logdir: Path | str) -> Report:
    """Look at a logdir; nothing in it is changed.

    Raises:
        ArtifactError: if it is no logdir of wmrl.
    """
    folder = Path(logdir)
    if not folder.is_dir():
        raise ArtifactError(f"there is no folder {folder}; a logdir is made by the first stage, wmrl generate")
    try:
        past, broken = rounds.read(folder), ""
    except ArtifactError as error:
        past, broken = [], str(error)
    pipe = rounds.planned(pipeline.load(folder), past)
    online, lacking = ("", False) if broken else states.online(folder, pipe)
    entries = [_data(pipe, folder, online=bool(online))]
    for name in MAKERS:
        entries.append(_artifact(name, folder, pipe, {entry.name: entry for entry in entries}, iterated=bool(past)))
    entries.append(_videos(folder, entries[-1]))
    left = bool(broken) or lacking or (bool(past) and rounds.left(past, pipe))
    todo = [_command("iterate", folder)] if left else [entry.command for entry in entries if entry.state != "complete"]
    scores = list(_scores(folder / "test.h5")) if entries[-2].hash else []
    return Report(
        str(folder),
        pipe.name,
        pipe.env.id,
        pipe.seed,
        _busy(folder),
        entries,
        scores,
        broken or online or rounds.words(past, pipe),
        next(iter(todo), ""),
    )


def run(logdir: Path | str, as_json: bool = False) -> None:
    """Print the report to stdout.

    Raises:
        ArtifactError: as `report`.
        UserError: if it cannot be printed.
    """
    found = report(logdir)
    if as_json:
        stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(found)}, indent=2) + "\n")
    else:
        stdout.write(text(found))


def _data(pipe: Pipeline, logdir: Path, *, online: bool) -> Entry:
    """The dataset: complete if `complete.h5` and every shard that it lists are there.

    That of a run that learns online grows with it, and is no matter of `wmrl generate`.
    """
    from wmrl.data import parts, shards

    folder = Path(pipe.data)
    command = _command("iterate", logdir) if online else _command("generate", logdir, "--data", str(folder))
    entry = Entry("data", "complete", str(folder), command=command)
    names = shards.scan(folder)
    if not (folder / shards.COMPLETE).exists():
        have = sum(name.count for name in names) + parts.count(folder)
        state: State = "in progress" if have else "missing"
        asked = "" if online else f" of {pipe.generate.rollouts}"
        return dataclasses.replace(entry, state=state, detail=f"{have}{asked} episodes")
    try:
        index = shards.read_complete(folder)
        for name, digest in zip(index.names, index.hashes, strict=True):
            if files.digest(folder / name.file, role=shards.ROLE) != digest:
                raise ArtifactError(f"{folder / name.file} is not the shard that {shards.COMPLETE} lists")
            with files.open(folder / name.file, verify=False):  # HDF5 refuses a file that was cut, and reads none of it
                pass
    except ArtifactError as error:
        return dataclasses.replace(entry, state="damaged", why=str(error))
    detail = f"{len(index.lengths):,} episodes, {int(index.lengths.sum()):,} steps"
    return dataclasses.replace(entry, detail=detail, hash=index.hash)


def _command(stage: str, logdir: Path, *more: str) -> str:
    """A command as a shell takes it, whatever stands in the paths."""
    return shlex.join(["wmrl", stage, "--logdir", str(logdir), *more])


def _artifact(name: str, logdir: Path, pipe: Pipeline, above: dict[str, Entry], *, iterated: bool) -> Entry:
    path, part = logdir / f"{name}.h5", logdir / f"{name}.part.h5"
    entry = Entry(name, "missing", str(path), command=_command(MAKERS[name], logdir))
    try:
        if not path.exists():
            tree = states.read(part, name)
            return entry if tree is None else _under_way(entry, tree, "")
        about = _about(path, name)
    except ArtifactError as error:
        return _damaged(entry, path if path.exists() else part, error)
    facts, parents = about["facts"], about["parents"]
    if "from" in facts:  # on which data another run made it is that run's affair
        parents = {name: hash_ for name, hash_ in parents.items() if name != "data"}
    entry = dataclasses.replace(entry, state="complete", detail=_detail(about), hash=_hash(about), parents=parents)
    try:
        tree = states.read(part, name)
    except ArtifactError as error:
        return _damaged(entry, part, error)
    late = ""
    if tree is not None and states.goes_on(tree, name, facts, pipe):
        late = _outdated(tree.get("parents", {}), above)
        if not late:
            return _under_way(
                entry, tree, "it was begun again, and is not finished; the artifact before is still there"
            )
    why = late or _moved(facts, name) or _outdated(parents, above)
    if why:
        anew = () if name == "test" else ("--noreload",)
        return dataclasses.replace(entry, state="stale", why=why, command=_command(MAKERS[name], logdir, *anew))
    grown = name == "vae" and "data" in parents and above["data"].hash not in ("", parents["data"])
    what = "the next iteration trains" if iterated else f"{entry.command} continues"
    why = f"episodes were appended since; {what} on them" if grown else ""
    return dataclasses.replace(entry, why=why)


def _under_way(entry: Entry, tree: states.Tree, why: str) -> Entry:
    return dataclasses.replace(entry, state="in progress", detail=states.progress(tree), why=why)


def _damaged(entry: Entry, path: Path, error: ArtifactError) -> Entry:
    name = shlex.quote(str(path))
    away = f"mv {name} {name}.away" if path.is_dir() else f"rm {name}"  # a folder is not ours: nothing of it is lost
    remedy = f"{away} && {entry.command}"
    return dataclasses.replace(entry, state="damaged", why=str(error), command=remedy)


def _about(path: Path, role: str) -> dict[str, Any]:
    """What an artifact says of itself, the whole file checked."""
    with files.open(path, role=role) as file:
        about = files.get_tree(file["about"])
    if "from" in about["facts"]:
        about["facts"]["from"] = str(referred(path, about["facts"]))
    return about


def _hash(about: dict[str, Any]) -> str:
    return str(about["facts"].get("hash") if "from" in about["facts"] else about["hash"])


def _detail(about: dict[str, Any]) -> str:
    facts, kind = about["facts"], about["component"].get("kind", "")
    if "from" in facts:
        return f"refers to {facts['from']}"
    words = [kind, f"{int(facts['steps']):,} steps" if facts.get("steps") else "", _quality(facts)]
    return ", ".join(word for word in words if word)


def _quality(facts: dict[str, Any]) -> str:
    """How good a trained part was on its validation set."""
    best, validation = facts.get("best"), facts.get("validation") or {}
    if facts.get("untrained"):
        return "untrained"
    if isinstance(best, dict) and math.isfinite(best.get("return", math.nan)):
        return states.best(best)
    loss = validation.get("model", validation).get("loss")
    return f"validation loss {loss:.4g}" if isinstance(loss, int | float) else ""


def _moved(facts: dict[str, Any], name: str) -> str:
    """Why an artifact that refers to another file does not hold any more; "" if it does."""
    if "from" not in facts:
        return ""
    try:
        other = _hash(_about(Path(facts["from"]), name))
    except ArtifactError as error:
        return str(error)
    return "" if other == facts["hash"] else f"{facts['from']} has changed since"


def _outdated(parents: dict[str, str], above: dict[str, Entry]) -> str:
    """Why an artifact with these parents is stale; "" if it is not."""
    for word, hash_ in parents.items():
        parent = above.get(PARENTS.get(word, word))
        if parent is None:
            continue
        if parent.state == "stale":
            return f"{parent.name} is stale"
        if parent.hash and parent.hash != hash_ and not (parent.name == "data" and _grew(Path(parent.path), hash_)):
            return f"it was made from {word} {hash_[:8]}; {parent.hash[:8]} is there now"
    return ""


def _grew(data: Path, hash_: str) -> bool:
    """Whether the dataset is the one with this hash and appended episodes."""
    from wmrl.data.episodes import Episodes

    return hash_ in Episodes(data).lineage()


def _videos(logdir: Path, test: Entry) -> Entry:
    films = sorted((logdir / "videos").glob("*.mp4"))
    entry = Entry("videos", "missing", str(logdir / "videos"), command=_command("render", logdir))
    if not films:
        return entry
    names = ", ".join(path.name for path in films)
    newest = max(path.stat().st_mtime for path in films)
    old = Path(test.path).exists() and newest < Path(test.path).stat().st_mtime
    if old or test.state == "stale":
        return dataclasses.replace(entry, state="stale", detail=names, why="test is newer" if old else "test is stale")
    return dataclasses.replace(entry, state="complete", detail=names)


def _scores(path: Path) -> Iterator[dict[str, Any]]:
    """The scores that a test artifact holds, the main protocol first."""
    facts = _about(path, "test")["facts"]
    for name in facts.get("order", facts.get("scores", {})):
        score = facts["scores"][name]
        yield {"protocol": name, "protocol_hash": score["hash"], **score["summary"]}


def _busy(logdir: Path) -> bool:
    """Whether another process holds the logdir's lock."""
    try:
        with (logdir / ".lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
