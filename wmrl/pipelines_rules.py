"""What the Makefile needs to know of `pipelines/*.toml`, as words: datasets, runs, goals.

Runs as a script under any python3 >= 3.11, before anything is installed: the standard library only.

    data|FOLDER|PIPELINE|ENV                     this pipeline makes the dataset (ENV: instead of its own environment)
    run|LOGDIR|PIPELINE|SEED|FOLDER|ENV|V|M      a run and what it reads; V and M are files of other runs it shares
    iterate|LOGDIR|...                           the same of a pipeline with a table [iterate]: `wmrl iterate` makes it
    online|LOGDIR|...                            the same of a pipeline with a table [online], which makes its own data
    goal|PIPELINE|LOGDIR                         `make PIPELINE` makes this run
    ok                                           all was read

A field that is empty is `-`.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PATH = re.compile(r"[A-Za-z0-9._/+~@-]+")
RUN = re.compile(r"runs/(?P<name>[^/]+)/seed-(?P<seed>\d+)/")
DEFAULT_ENV = "CarRacing-v3"
SHARED = {"representation": "vae.h5", "dynamics": "dynamics.h5"}


class RulesError(Exception):
    """A pipeline file, a seed or a goal that Make cannot use; the message says why."""


class Chain(NamedTuple):
    """One run of one pipeline: a seed, and the environment if it is not the pipeline's own."""

    name: str
    seed: int
    env: str


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All pipelines of a folder, in alphabetical order.

    Raises:
        RulesError: for a file that is no TOML, or a name that is no word for Make.
    """
    pipes = {}
    for path in sorted(folder.glob("*.toml")):
        if not NAME.fullmatch(path.stem):
            raise RulesError(f"{path}: a pipeline's name consists of letters, digits, '.', '_' and '-'")
        try:
            pipes[path.stem] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RulesError(f"{path} is not valid TOML: {error}") from error
    return pipes


def slug(env_id: str) -> str:
    """A folder's name for an environment: CarRacing-v3 -> carracing."""
    word = env_id.replace(":", "-").replace("/", "-").lower()
    head, _, version = word.rpartition("-v")
    return head if head and version.isdigit() else word


def seeds(text: str) -> list[int]:
    """The seeds that "3", "1-5", "1,4" or "1 4-6" name.

    Raises:
        RulesError: if it is none of these.
    """
    found: list[int] = []
    for word in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise RulesError(f"SEED={text}: a seed is a whole number; several are 1-5 or 1,3,4")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(found))


def own_env(pipe: dict[str, Any]) -> str:
    """The environment that the pipeline's file names."""
    return str(pipe.get("env", {}).get("id", DEFAULT_ENV))


def own_seed(pipe: dict[str, Any]) -> int:
    """The seed that the pipeline's file names."""
    return int(pipe.get("seed", 1))


def data_of(pipe: dict[str, Any], env: str = "") -> str:
    """The dataset's folder: the file's own, or that of another environment."""
    return _path(f"datasets/{slug(env)}" if env else pipe.get("data") or f"datasets/{slug(own_env(pipe))}")


def logdir_of(chain: Chain) -> str:
    """The run's folder: runs/NAME[/ENV]/seed-N."""
    return _path("/".join(["runs", chain.name, *([slug(chain.env)] if chain.env else []), f"seed-{chain.seed}"]))


def shared(pipe: dict[str, Any], part: str) -> str:
    """The file that `from` names in the table `part`, itself or by its folder; "" if the part is the run's own."""
    table = pipe.get(part, {})
    if "from" not in table:
        return ""
    path = _path(table["from"])
    return path if path.endswith(".h5") else f"{path.rstrip('/')}/{SHARED[part]}"


def chains(pipes: dict[str, dict[str, Any]], goals: Sequence[str], asked: Sequence[int], env: str) -> Iterator[Chain]:
    """The runs that the goals ask for by the pipeline's name."""
    for name in (goal for goal in goals if goal in pipes):
        other = "" if env == own_env(pipes[name]) else env
        for seed in asked or [own_seed(pipes[name])]:
            yield Chain(name, seed, other)


def by_file(pipes: dict[str, dict[str, Any]], files: Sequence[str]) -> Iterator[Chain]:
    """The runs to which these files belong: runs/NAME/seed-N/vae.h5."""
    for file in files:
        match = RUN.match(file)
        if match and match["name"] in pipes:
            yield Chain(match["name"], int(match["seed"]), "")


def words(pipes: dict[str, dict[str, Any]], goals: Sequence[str], asked: Sequence[int], env: str) -> Iterator[str]:
    """All words for these goals, those of the runs whose models they share included."""
    wanted = list(chains(pipes, goals, asked, env))
    known: dict[Chain, None] = {}
    queue = [*wanted, *by_file(pipes, goals), *(Chain(name, own_seed(pipe), "") for name, pipe in pipes.items())]
    while queue:
        chain = queue.pop(0)
        if chain not in known:
            known[chain] = None
            queue += by_file(pipes, [shared(pipes[chain.name], part) for part in SHARED])
    yield from _data_words(pipes, known)
    yield from (_run_word(pipes[chain.name], chain) for chain in known)
    yield from (f"goal|{chain.name}|{logdir_of(chain)}" for chain in wanted)


def _data_words(pipes: dict[str, dict[str, Any]], known: dict[Chain, None]) -> Iterator[str]:
    """Each dataset once: the pipeline that was asked for makes it, else the first that names it."""
    makers: dict[str, Chain] = {}
    for chain in known:
        makers.setdefault(data_of(pipes[chain.name], chain.env), chain)
    yield from (f"data|{folder}|{chain.name}|{chain.env or '-'}" for folder, chain in makers.items())


def _run_word(pipe: dict[str, Any], chain: Chain) -> str:
    seed = "-" if chain.seed == own_seed(pipe) else str(chain.seed)
    others = [shared(pipe, part) or "-" for part in SHARED]
    fields = [logdir_of(chain), chain.name, seed, data_of(pipe, chain.env), chain.env or "-", *others]
    return "|".join([next((kind for kind in ("online", "iterate") if kind in pipe), "run"), *fields])


def _path(text: Any) -> str:
    """A path that Make and the shell take as one word.

    Raises:
        RulesError: if it is not one.
    """
    if not isinstance(text, str) or not PATH.fullmatch(text):
        raise RulesError(f"{text!r}: Make needs paths of letters, digits and ._/+~@-")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the words; on an error one line on stderr and no "ok"."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=Path, default=Path("pipelines"))
    parser.add_argument("--builtin", default="", help="names that are targets already")
    parser.add_argument("--goals", default="", help="what make was asked for")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--env", default="", help="an environment instead of the pipelines' own")
    args = parser.parse_args(argv)
    try:
        pipes = read(args.pipelines)
        if taken := sorted(set(pipes) & set(args.builtin.split())):
            raise RulesError(f"pipelines/{taken[0]}.toml: `make {taken[0]}` is something else; rename the file")
        print(*words(pipes, args.goals.split(), seeds(args.seeds), args.env), "ok", sep="\n")
    except (RulesError, ValueError, AttributeError) as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
