"""What a training state (`<name>.part.h5`) says: how far a stage is, and whether it goes on beside its artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmrl import files
from wmrl.errors import ArtifactError
from wmrl.pipeline import Pipeline
from wmrl.stats import told

Tree = dict[str, Any]


def read(part: Path, name: str) -> Tree | None:
    """The training state of `name`; empty if it was begun anew (`--noreload`), None if there is none.

    Raises:
        ArtifactError: if it is damaged.
    """
    if not part.exists():
        return None
    with files.open(part, role=f"{name}.part") as file:
        return files.get_tree(file)


def online(logdir: Path, pipe: Pipeline) -> tuple[str, bool]:
    """How far a run that learns online is, in words ("" if there is none), and whether anything is left to do."""
    try:
        tree = read(logdir / "online.part.h5", "online")
    except ArtifactError as error:
        return str(error), True
    if not tree:
        return "", False
    step, made = int(tree["step"]), int(tree["pupils"]["updates"])
    left = step < pipe.online.steps or made < pipe.online.updates(step)
    return f"step {step:,} of {pipe.online.steps:,}, learning online", left


def progress(tree: Tree) -> str:
    """How far a stage is, in words."""
    if "tallies" in tree:
        return f"{sum(len(tally.get('returns', ())) for tally in tree['tallies'])} episodes played"
    done, search = tree.get("progress", tree).get("step"), tree.get("tree") or {}
    made = f", {len(search['history'])} generations" if "history" in search else ""
    return "begun" if done is None else f"step {done:,}{made}{_validated(search)}"


def best(found: Mapping[str, Any]) -> str:
    """What the best weights returned on the validation episodes, of a search in dreams in both worlds."""
    when = f"at step {found['step']:,}" if "step" in found else f"in generation {found['generation']}"
    text = f"validation return {told(found['return'])} {when}"
    return text if "awake" not in found else f"{text} (asleep {told(found['dreamt'])}, awake {told(found['awake'])})"


def goes_on(tree: Tree, name: str, facts: Mapping[str, Any], pipe: Pipeline) -> bool:
    """Whether a longer or another training than that of the complete artifact is under way.

    A stage that ended with its `--minutes` does not go on: it counts as complete.

    Args:
        tree: The training state that lies beside the artifact.
        name: "vae", "dynamics", "controller" or "test".
        facts: What the artifact says of its training.
        pipe: The logdir's pipeline, as the last call left it.
    """
    if not tree:
        return True
    if name == "controller":
        return _search_goes_on(tree, facts, pipe)
    if name not in ("vae", "dynamics"):  # a test adds protocols to an artifact that is complete by itself
        return False
    at, fit = tree["progress"], facts.get("fit") or {}
    if (at["step"], at["seconds"]) != (fit.get("steps"), fit.get("seconds")):
        return True
    wanted: int = getattr(pipe.fit, name).steps
    return bool(fit["complete"]) and not at["ended"] and at["step"] < wanted


def _search_goes_on(tree: Tree, facts: Mapping[str, Any], pipe: Pipeline) -> bool:
    """Whether a search is asked for other things than the artifact has, or has made other generations or updates."""
    had = facts.get("trainer", {})
    if any(had.get(key) != value for key, value in pipe.trainer.items()):
        return True
    made = len(facts["history"]["generation"]) if "history" in facts else facts.get("steps", 0)
    return not tree["complete"] and _made(tree) != made


def _validated(search: Tree) -> str:
    """The last validation of a search in progress, of a search in dreams in both worlds."""
    checks, awake = search.get("checks", ()), search.get("awakes", ())
    if not len(checks):
        return ""
    own = checks[-1].mean()
    return f", asleep {told(own)}, awake {told(awake[-1].mean())}" if len(awake) else f", validation return {told(own)}"


def _made(tree: Tree) -> int | None:
    """How many generations a search has made, or updates a learner; None of what is neither."""
    search = tree.get("tree") or {}
    return len(search["history"]) if "history" in search else search.get("step")
