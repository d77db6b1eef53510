"""`wmrl describe`: every key of a pipeline, from the signatures and docstrings that define it.

Nothing is written down twice: types and defaults come from signatures, meaning, unit and source from the `Args:`
sections of docstrings. `undescribed` lists what is missing there; a test holds it empty.
"""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wmrl import config, stdout
from wmrl.errors import ConfigError, UserError
from wmrl.pipeline import Pipeline

SCHEMA_VERSION = 1
REGISTRIES = {
    "representation": "wmrl.representations:REPRESENTATIONS",
    "dynamics": "wmrl.dynamics:DYNAMICS",
    "controller": "wmrl.controllers:CONTROLLERS",
    "trainer": "wmrl.trainers:TRAINERS",
}
"""The tables of a pipeline that name a registered kind -> where the kinds are registered."""

UNITS = (
    "pixels", "steps", "gradient steps", "environment steps", "frames", "windows", "batches", "episodes", "rollouts",
    "generations", "candidates", "units", "layers", "heads", "tokens", "channels", "nats", "seconds", "minutes",
    "units of [-1, 1]", "evaluations",
)  # fmt: skip
"""Words that are a number's unit where they begin its description, or end its first clause behind a comma."""
_UNIT = "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the description.

    Args:
        key: Where it stands in a pipeline, the kind in between: `dynamics.mdn-rnn.hidden`.
        type: What it may be; "table" for a group of keys, "kind" for a registered component.
        default: As TOML writes it; None where there is none.
        meaning: In words.
        unit: Of the number, if it has one.
        source: Where the default or the idea comes from, if it was taken from somewhere.
    """

    key: str
    type: str
    default: str | None
    meaning: str
    unit: str = ""
    source: str = ""


def describe(prefix: str | None = None) -> list[Row]:
    """The keys that begin with `prefix`; all of them without one.

    Args:
        prefix: A table, a kind or a key: `fit`, `dynamics.mdn-rnn`, `env.size`, `dynamics.hidden` (any kind's).

    Raises:
        ConfigError: if nothing is called so; it names the nearest.
    """
    rows = list(_rows(prefix))
    if prefix is None:
        return rows
    found = [row for row in rows if _begins(row.key, prefix)] or [row for row in rows if _without_kind(row) == prefix]
    if not found:
        raise ConfigError(f"there is no key {prefix!r}{config.hint(prefix, _names(rows))}")
    return found


def undescribed() -> list[str]:
    """The keys whose docstring says nothing about them."""
    return [row.key for row in describe() if not row.meaning]


def run(prefix: str | None = None, as_json: bool = False) -> None:
    """Print the description to stdout.

    Raises:
        ConfigError: as `describe`.
        UserError: if it cannot be printed.
    """
    rows = describe(prefix)
    if as_json:
        table = {"schema_version": SCHEMA_VERSION, "keys": [dataclasses.asdict(row) for row in rows]}
        stdout.write(json.dumps(table, indent=2) + "\n")
    else:
        stdout.write(_text(rows))


def _rows(prefix: str | None) -> Iterator[Row]:
    """All rows; components of tables that the prefix rules out are left alone, for importing them takes seconds."""
    head = (prefix or "").split(".")[0]
    wanted = [head] if head in REGISTRIES else [*REGISTRIES] if head not in _tables() else []
    for row in _keys("", Pipeline):
        yield row
        if row.key in wanted:
            yield from _components(row.key)


def _tables() -> set[str]:
    return {name for name in config.keywords(Pipeline) if name not in REGISTRIES}


def _components(where: str) -> Iterator[Row]:
    module, _, name = REGISTRIES[where].partition(":")
    registry = {**config.plugins(where), **getattr(__import__(module, fromlist=[name]), name)}
    for kind in sorted(registry):
        try:
            target, _ = config.lookup(registry, {"kind": kind}, where)
        except UserError as error:
            yield Row(f"{where}.{kind}", "kind", None, str(error))
            continue
        about, _, source = _plain(inspect.getdoc(target) or "").partition("\n\n")[0].partition(" Source: ")
        yield Row(f"{where}.{kind}", "kind", None, " ".join(about.split()), source=source)
        yield from _keys(f"{where}.{kind}.", target)


def _keys(prefix: str, target: Callable, defaults: Any = None) -> Iterator[Row]:
    """One row for each keyword of a callable, and those of the dataclasses among them."""
    texts, types = _texts(target), config.hints(target)
    for name, parameter in config.keywords(target).items():
        key, type_, default = prefix + name, types[name], _default(target, parameter, defaults)
        meaning, unit, source = _split(texts.get(name, ""))
        if dataclasses.is_dataclass(type_) and isinstance(type_, type):
            yield Row(key, "table", None, meaning, unit, source)
            yield from _keys(f"{key}.", type_, default)
        else:
            yield Row(key, _type(type_), _toml(default), meaning, unit, source)


def _texts(target: Callable) -> dict[str, str]:
    """The texts of a callable's arguments; a dataclass inherits those of the fields that it inherits."""
    family = reversed(target.__mro__) if dataclasses.is_dataclass(target) and isinstance(target, type) else [target]
    return {name: text for each in family for name, text in arguments(inspect.getdoc(each) or "").items()}


def _default(target: Callable, parameter: inspect.Parameter, defaults: Any) -> Any:
    """The default of a keyword: of the instance at hand, of the dataclass's factory, or of the signature."""
    if defaults is not None and defaults is not inspect.Parameter.empty:
        return getattr(defaults, parameter.name)
    if dataclasses.is_dataclass(target):
        field = next(f for f in dataclasses.fields(target) if f.name == parameter.name)
        if field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def _type(type_: Any) -> str:
    name = "table" if str(type_).startswith("dict[") else config.type_name(type_)
    return name.replace("NoneType", "nothing")


def _toml(value: Any) -> str | None:
    """A default as TOML writes it; None stands for "left out"."""
    if value is inspect.Parameter.empty or value is None:
        return None
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(str(_toml(v)) for v in value) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return str(value)


def arguments(doc: str) -> dict[str, str]:
    """The `Args:` section of a Google-style docstring (as `inspect.getdoc` cleans it): name -> text on one line."""
    section = re.search(r"^(?:Args|Attributes):\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else []:
        match = re.match(r" {2,4}(\w+)(?: \([^)]*\))?: ?(.*)", line)
        if match:
            name, found[match[1]] = match[1], match[2].strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return {name: _plain(text) for name, text in found.items()}


def _plain(text: str) -> str:
    return text.replace("``", "").replace("`", "")


def _split(text: str) -> tuple[str, str, str]:
    """Meaning, unit and source of a text such as `Size of the state, units. More. Source: paper.`"""
    meaning, _, source = text.partition("Source: ")
    meaning, source = meaning.strip(), source.strip().rstrip(".")
    if behind := re.match(rf"([^.;]*), (?:in )?({_UNIT})(?=[.;]|$)", meaning):
        return behind[1] + meaning[behind.end() :], behind[2], source
    counted = re.match(rf"(?:Number of )?({_UNIT})\b", meaning, re.IGNORECASE)
    return meaning, counted[1].lower() if counted else "", source


def _begins(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _without_kind(row: Row) -> str:
    parts = row.key.split(".")
    return f"{parts[0]}.{'.'.join(parts[2:])}" if parts[0] in REGISTRIES and len(parts) > 2 else row.key


def _names(rows: list[Row]) -> set[str]:
    return {row.key for row in rows} | {_without_kind(row) for row in rows}


def _text(rows: list[Row]) -> str:
    """One block a key: what it is and its default in a line, its meaning below."""
    from rich.console import Console
    from rich.text import Text

    page = stdout.Page()
    console = Console(file=page, highlight=False)
    for row in rows:
        heading = row.type in ("table", "kind") and row.default is None
        head = Text(row.key, style="bold cyan" if heading else "bold")
        if row.default is not None:
            head.append(f" = {row.default}", style="green")
        head.append(f"   {', '.join(word for word in (row.type, row.unit) if word)}", style="dim")
        console.print(head, soft_wrap=True)
        text = row.meaning + (f" Source: {row.source}." if row.source else "")
        body = textwrap.fill(text, min(console.width, 120), initial_indent="    ", subsequent_indent="    ")
        console.print(body, markup=False, soft_wrap=True)
    return page.getvalue()
