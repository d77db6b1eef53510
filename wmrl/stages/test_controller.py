"""Score the trained controller: fixed test seeds, a named protocol, every return kept."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from wmrl import artifact
from wmrl.artifact import Artifact
from wmrl.curves import label
from wmrl.envs.names import canonical, home
from wmrl.errors import ArtifactError, ConfigError, ContractError, TargetMissed
from wmrl.evaluation import RULES, Score, protocol, random_score, scores_in
from wmrl.log import Log
from wmrl.pipeline import Pipeline
from wmrl.recording import episodes_in
from wmrl.rollout import Agent, Policy
from wmrl.run import Run
from wmrl.scoring import Tally, complete, environments, game_seeds
from wmrl.stages.render import RenderOptions, draw
from wmrl.stages.subject import moved
from wmrl.stats import told
from wmrl.stdout import table_text
from wmrl.store import Store

RECORDED = 2  # episodes kept whole, for `render`


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """The flags of `wmrl test-controller`.

    Args:
        episodes: How many of the fixed test seeds to play (`--episodes`); None: the pipeline's `test.episodes`.
        max_steps: Cap on the steps of an episode (`--max-steps`); None: the pipeline's, else the environment's own.
        target_return: Mean return below which the exit code is 4 (`--target-return`); None: no target.
        baselines: Other logdirs whose stored scores are shown beside (`--baseline`, repeatable).
        backend: "envpool" also scores on envpool's game, beside gymnasium's (`--backend`); None: whose game it is only.
        sample: Draw actions from the policy (`--sample`), as the pipeline's `test.sample` does; else its best ones.
        capture_video: Also film the episodes that were recorded, into LOGDIR/videos (`--capture-video`).
        snapshots: Score what an online run has kept instead: "all", or steps (`--snapshots`).
    """

    __test__ = False  # no test class, whatever its name

    episodes: int | None = None
    max_steps: int | None = None
    target_return: float | None = None
    baselines: tuple[Path, ...] = ()
    backend: str | None = None
    sample: bool = False
    capture_video: bool = False
    snapshots: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    score: Score
    comparable: bool

    def record(self) -> dict[str, Any]:
        """The line as JSON has it."""
        conditions = {"protocol": self.score.protocol.id, "protocol_hash": self.score.protocol.hash}
        numbers, tics = self.score.summary().record(), self.score.tics()
        more = {"tics": tics.record()} if tics else {}
        return {"name": self.name, **conditions, "comparable": self.comparable, **numbers, **more}


def test_controller(pipe: Pipeline, store: Store, log: Log, run: Run, options: TestOptions | None = None) -> None:
    """Play the test episodes with the trained controller: world model and controller -> test.

    Raises:
        ArtifactError: if a part, or a baseline's score, is missing.
        ConfigError: if a flag's number makes no sense.
        ContractError: if the parts were not made for each other, or a baseline's score is of other parts.
        TargetMissed: if the mean return is below the target; everything is saved and shown before.
        Stopped: after a signal; the episodes finished are kept.
    """
    options = options or TestOptions()
    for flag, value in {"--episodes": options.episodes, "--max-steps": options.max_steps}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{flag} must be at least 1, got {value}")
    if options.target_return is not None and not math.isfinite(options.target_return):
        raise ConfigError(f"--target-return must be a finite number, got {options.target_return}")
    if options.snapshots is not None:
        from wmrl.stages.snapshots import test_snapshots

        if options.target_return is not None or options.baselines or options.capture_video:
            raise ConfigError("--snapshots goes with neither --target-return, --baseline nor --capture-video")
        test_snapshots(pipe, store, log, run, options)
        return
    others = [row for logdir in options.baselines for row in _baseline(logdir, options.baselines)]
    scores = played(pipe, store, log, run, options)
    step = store.load("controller").facts.get("global_step", 0)
    log.rewind(step - 1)
    log.metrics(step, scores[0].metrics())
    rows = _rows(str(store.logdir), scores, others)
    log.out(_table(rows))
    films = _film(pipe, store, log, run, len(scores[0].returns)) if options.capture_video else []
    log.result(_record(rows, options.target_return, films))
    mean = float(scores[0].returns.mean())
    if options.target_return is not None and mean < options.target_return:
        raise TargetMissed(f"the mean return {told(mean)} is below the target {options.target_return:g}")


test_controller.__test__ = False  # type: ignore[attr-defined]


def played(pipe: Pipeline, store: Store, log: Log, run: Run, options: TestOptions) -> list[Score]:
    """The scores of the protocols asked for, the main one first; what is stored already is not played again."""
    world, controller, parents = store.agent(run.device)
    tallies, asked = _stored(store, parents, log), []
    env_id = canonical(pipe.env.id)[0]
    for backend in dict.fromkeys([home(env_id), options.backend or home(env_id)]):
        wanted = protocol(
            env_id,
            episodes=options.episodes or pipe.test.episodes,
            **{key: getattr(pipe.env, key) for key in RULES},
            max_steps=options.max_steps or pipe.test.max_steps,
            backend=backend,
            frame_skip=pipe.env.frame_skip,
            sample=options.sample or pipe.test.sample,
        )
        asked.append(wanted.id)
        if run.noreload or wanted.id not in tallies:
            tallies[wanted.id] = Tally(wanted, environments(wanted, run.threads, run.max_workers))
    ordered = {name: tallies[name] for name in [*asked, *tallies]}

    def save() -> None:
        store.save_part("test", {"parents": parents, "tallies": [t.tree() for t in ordered.values()]})

    missing = [ordered[name] for name in asked if not ordered[name].complete]
    for tally in missing:
        policy = Policy(controller, sample=tally.protocol.policy == "sampled")
        _play_one(tally, pipe, Agent(world, policy), log, run, save)
    over = [tally for tally in ordered.values() if tally.complete]
    if not _save(store, parents, over):
        log.say(f"{store.path('test')} is up to date")
    if len(over) < len(ordered):
        save()
    else:
        store.drop_part("test")
    return [ordered[name].score for name in asked]


def _play_one(tally: Tally, pipe: Pipeline, agent: Agent, log: Log, run: Run, save: Any) -> None:
    of = tally.protocol
    log.say(
        f"playing {of.id}: {of.episodes} episodes of {of.backend}'s {of.env_id}, "
        f"{tally.environments} at a time, on {run.device}" + _from(len(tally.returns))
    )
    complete(tally, pipe.env, lambda games: agent, threads=run.threads, record=RECORDED, log=log, save=save)


def _from(done: int) -> str:
    return f"; {done} were played before" if done else ""


def _stored(store: Store, parents: dict[str, str], log: Log) -> dict[str, Tally]:
    """What was played before with exactly these parts: complete scores, and one in progress."""
    found: list[Tally] = []
    if store.exists("test"):
        made = artifact.read(store.path("test"), "test")
        if made.parents == parents:
            found += [_tally(made, name, score) for name, score in scores_in(made).items()]
        else:
            log.say(f"{store.path('test')} was made with other parts; testing anew")
    part = store.load_part("test")
    if part is not None and part["parents"] == parents:
        found += [Tally.of_tree(tree) for tree in part["tallies"]]
    return {tally.protocol.id: tally for tally in found}


def _tally(made: Artifact, name: str, score: Score) -> Tally:
    about, episodes = made.facts["scores"][name], episodes_in(made.tensors, f"{name}/episodes")
    columns = (score.returns, score.lengths, score.terminated)
    return Tally(score.protocol, about["environments"], *columns, episodes, about["fps"])


def _save(store: Store, parents: dict[str, str], tallies: Sequence[Tally]) -> bool:
    """Write the scores, the one asked for first; whether anything about them is new."""
    tensors: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    for tally in tallies:
        name, score = tally.protocol.id, tally.score
        tensors |= {f"{name}/returns": score.returns, f"{name}/lengths": score.lengths}
        tensors |= {f"{name}/terminated": score.terminated, f"{name}/seeds": _seeds(tally)}
        for i, episode in enumerate(tally.episodes):
            tensors |= episode.tensors(f"{name}/episodes/{i}")
        about[name] = {
            "protocol": tally.protocol.record(),
            "hash": tally.protocol.hash,
            "environments": tally.environments,
            "fps": tally.fps,
            "summary": score.summary().record(),
        }
    facts = {"scores": about, "order": list(about)}
    return store.save("test", Artifact("test", tensors=tensors, parents=parents, facts=facts))


def _seeds(tally: Tally) -> np.ndarray:
    return np.array(game_seeds(tally.protocol), np.int64)


def _baseline(logdir: Path, logdirs: Sequence[Path]) -> list[tuple[str, Score]]:
    """The stored scores of another logdir.

    Raises:
        ArtifactError: if there are none.
        ContractError: if they are of other parts than those that lie beside them.
    """
    path, again = logdir / "test.h5", f"run wmrl test-controller --logdir {shlex.quote(str(logdir))}"
    if not path.exists():
        raise ArtifactError(f"{path} is missing: {again} before it can be a baseline")
    made = artifact.read(path, "test")
    if others := moved(made, logdir):
        raise ContractError(f"{path} was made with another {' and another '.join(others)} than is there now: {again}")
    return [(label(logdir, logdirs), score) for score in scores_in(made).values()]


def _rows(own: str, scores: Sequence[Score], others: Sequence[tuple[str, Score]]) -> list[Row]:
    """This logdir's scores, the other logdirs' (under the same protocol if there are such), the random policy's."""
    main = scores[0].protocol.hash
    named = [(own, score) for score in scores]
    for name, score in others:
        same = [s for n, s in others if n == name and s.protocol.hash == main]
        named += [(name, score)] if score.protocol.hash == main or not same else []
    named += [("random policy", score) for score in map(random_score, [s.protocol for s in scores]) if score]
    return [Row(name, score, score.protocol.hash == main) for name, score in named]


def _film(pipe: Pipeline, store: Store, log: Log, run: Run, played: int) -> list[Path]:
    """Films of the recorded episodes of the protocol that stands first in the file: the one asked for."""
    films = []
    for i in range(min(RECORDED, played)):
        films += draw(pipe, store, log, run, RenderOptions(episode=i))
        log.out(str(films[-1]))
    return films


def _record(rows: Sequence[Row], target: float | None, films: Sequence[Path]) -> dict[str, Any]:
    """The result as JSON has it."""
    main = rows[0].score
    result = {"protocol": main.protocol.id, "protocol_hash": main.protocol.hash, "scores": [r.record() for r in rows]}
    result["files"] = [str(film) for film in films]
    met = None if target is None else bool(main.returns.mean() >= target)
    return {**result, "returns": main.returns, "target_return": target, "target_met": met}


def _table(rows: Sequence[Row]) -> str:
    """The rows as text; what was measured under another protocol than the first row is starred and said to be so."""
    main = rows[0].score.protocol
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("", "protocol"):
        table.add_column(head, no_wrap=True)
    for head in ("episodes", "mean", "std", "95 % of mean", "IQM", "least", "most"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        s, name = row.score.summary(), row.score.protocol.id
        star = "" if row.comparable else " *"
        table.add_row(row.name, name + star, str(s.episodes), *s.words())
    lines = [table_text(table)]
    lines += _survival(rows)
    if not all(row.comparable for row in rows):
        lines.append(f"* another protocol than {main.id} ({main.hash[:8]}): not comparable with it")
    return "\n".join(lines)


def _survival(rows: Sequence[Row]) -> list[str]:
    """How long the episodes of each row lasted in tics, for games that count in them."""
    lines = []
    for row in rows:
        if tics := row.score.tics():
            of = f"a step is {row.score.protocol.frame_skip} tics"
            lines.append(f"{row.name} survives {tics.mean:,.0f} tics ({tics.low:,.0f} to {tics.high:,.0f}; {of})")
    return lines
