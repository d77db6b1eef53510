"""A TOML table is a call: its keys are the keyword-only arguments of the callable that it configures.

Arguments left of the `*` are given by the code, arguments right of it by the pipeline file. Defaults stand in one
place, the signature; there is no schema beside it.
"""

import dataclasses
import difflib
import importlib
import importlib.metadata
import inspect
import json
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wmrl.errors import ArtifactError, ConfigError

GROUPS = {
    "representation": "wmrl.representations",
    "dynamics": "wmrl.dynamics",
    "controller": "wmrl.controllers",
    "trainer": "wmrl.trainers",
}
"""Where a table stands in a pipeline -> the entry-point group in which plug-ins offer further kinds of it."""


def build(registry: Mapping[str, str], table: Mapping[str, Any], where: str, *given: Any) -> Any:
    """Make the component that `table` names: look its `kind` up, check its arguments, call it.

    Args:
        registry: kind -> "module:callable".
        table: `{"kind": ..., **arguments}`.
        where: The table's place in the pipeline, for messages: "dynamics".
        given: Positional arguments that the code provides (spaces, say).

    Raises:
        ConfigError: for an unknown kind or key, a wrong type, a missing argument, a value the callable refuses.
    """
    target, args = lookup(registry, table, where)
    bound = bind(target, args, where)
    try:
        return target(*given, **bound)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def resolved(registry: Mapping[str, str], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The table with every default written out: what an artifact stores, and what a new version can still build.

    Raises:
        ConfigError: as `build`.
    """
    target, args = lookup(registry, table, where)
    full = {name: p.default for name, p in keywords(target).items() if p.default is not p.empty}
    return plain({"kind": table["kind"], **full, **bind(target, args, where)})


def lookup(registry: Mapping[str, str], table: Mapping[str, Any], where: str) -> tuple[Callable, dict[str, Any]]:
    """The callable that `table["kind"]` names, and the rest of the table.

    Raises:
        ConfigError: if the kind is unknown.
        ArtifactError: if it needs a package that is not installed.
    """
    args = dict(table)
    kind = args.pop("kind", None)
    if kind not in registry:
        registry = {**plugins(where), **registry}
    if kind not in registry:
        problem = f"{kind!r} is not known" if kind is not None else "missing"
        raise ConfigError(f"{where}.kind: {problem}{hint(str(kind or ''), registry)}")
    return _import(registry[kind], f"{where}.kind {kind!r}"), args


def plugins(where: str) -> dict[str, str]:
    """The kinds that other installed packages offer for this table."""
    found = importlib.metadata.entry_points(group=GROUPS.get(where, f"wmrl.{where}"))
    return {entry.name: entry.value for entry in found}


def _import(address: str, what: str) -> Any:
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        if module.startswith("wmrl."):
            raise ArtifactError(f"{what} needs a package that is not installed: {error}") from error
        warnings.warn(f"the plug-in {address} is broken: {error}", stacklevel=2)
        raise ConfigError(f"{what} comes from the plug-in {address}, which cannot be imported: {error}") from error


def keywords(target: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of `target`: what a pipeline may set."""
    return {p.name: p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY}


def hints(target: Callable) -> dict[str, Any]:
    """The types of the parameters of `target`."""
    return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)


def bind(target: Callable, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check `table` against the keyword-only parameters of `target`; return the arguments, typed.

    Raises:
        ConfigError: naming the key, what was found, and what would be right.
    """
    params, wanted = keywords(target), hints(target)
    for key in table:
        if key not in params:
            raise ConfigError(f"{_at(where, key)}: unknown key{hint(key, params)}")
    for name, param in params.items():
        if param.default is param.empty and name not in table:
            raise ConfigError(f"{_at(where, name)}: missing, and it has no default")
    return {k: _cast(v, wanted[k], _at(where, k), params[k].default) for k, v in table.items()}


def plain(value: Any) -> Any:
    """Dataclasses and tuples as the dicts and lists that TOML and JSON hold; None is left out of tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if v is not None}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest right one, or all of them, keys by their tables."""
    close = difflib.get_close_matches(word, list(known), n=1)
    tables = sorted({name.partition(".")[0] for name in known})
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(tables)}"


def type_name(want: Any) -> str:
    """How a type is called in messages and in `wmrl describe`."""
    if typing.get_origin(want) is typing.Literal:
        return " | ".join(json.dumps(a) for a in typing.get_args(want))
    if typing.get_origin(want) in (typing.Union, types.UnionType):
        return " | ".join(type_name(a) for a in typing.get_args(want) if a is not type(None))
    return getattr(want, "__name__", str(want)) if typing.get_origin(want) is None else str(want)


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _cast(value: Any, want: Any, where: str, default: Any) -> Any:
    table: Any = next((a for a in (want, *typing.get_args(want)) if dataclasses.is_dataclass(a)), None)
    if table is not None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected {type_name(want)}, got {value!r}")
        bound = bind(table, value, where)
        given = dataclasses.is_dataclass(default) and not isinstance(default, type)
        return dataclasses.replace(default, **bound) if given else table(**bound)
    return _validate(value, want, where)


def _validate(value: Any, want: Any, where: str) -> Any:
    import pydantic

    try:
        text = json.dumps(plain(value))
    except TypeError:
        raise ConfigError(f"{where}: expected {type_name(want)}, got {value!r}") from None
    try:
        finite = pydantic.ConfigDict(allow_inf_nan=False)
        return pydantic.TypeAdapter(want, config=finite).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = where + "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        if typing.get_origin(want) is typing.Literal:
            choices = ", ".join(repr(a) for a in typing.get_args(want))
            raise ConfigError(f"{place}: {value!r} is not one of {choices}") from None
        if first["type"] == "finite_number":
            raise ConfigError(f"{place}: must be a finite number, got {value!r}") from None
        raise ConfigError(f"{place}: expected {type_name(want)}, got {value!r}") from None
