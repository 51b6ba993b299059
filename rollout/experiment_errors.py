"""What is wrong with an experiment, said so that its author can mend it.

Pydantic finds what is wrong. The words come from the models: each field's type, range, default and
description; so a new field needs none of its own.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rollout.experiment_file import KeyPath, Layers
from rollout.learners.settings import Kinds, Settings

# Values this version refuses and a later one will take.
NOT_YET = {
    "fleet.engine": {"ray"},
}


class Wanted(str):
    """Metadata of a field: the value it takes, in words, where type and range do not say it."""


@dataclass(frozen=True)
class Key:
    """A key of an experiment file."""

    model: type[Settings]
    name: str

    @property
    def field(self) -> FieldInfo:
        return self.model.model_fields[self.name]

    @property
    def kinds(self) -> Kinds | None:
        return next((m for m in self.field.metadata if isinstance(m, Kinds)), None)

    @property
    def table(self) -> type[Settings] | None:
        """The model of this key's table, if it names one (of the first kind, if of several)."""
        annotation: Any = self.kinds.model_for({}) if self.kinds else self.field.annotation
        for one in (annotation, *get_args(annotation)):  # a table that may be left out: X | None
            if isinstance(one, type) and issubclass(one, Settings):
                return one
        return None

    @property
    def words(self) -> str | None:
        """What its `Wanted` says, if it has one."""
        return next((m for m in self.field.metadata if isinstance(m, Wanted)), None)

    def wanted(self) -> str:
        """The value it takes, in words."""
        return self.words or _in_words(self.model.model_json_schema()["properties"][self.name])


def keys_of(
    model: type[Settings],
    values: Any,
    own: Mapping[str, type[Settings]] | None = None,
    at: KeyPath = (),
) -> dict[KeyPath, Key]:
    """Every key an experiment may have, given the kinds that its tables say. own: see Kinds."""
    keys: dict[KeyPath, Key] = {}
    for name in model.model_fields:
        key = keys[(*at, name)] = Key(model, name)
        inside = values.get(name) if isinstance(values, Mapping) else None
        table = key.kinds.model_for(inside, own) if key.kinds else key.table
        keys |= keys_of(table or key.table, inside, own, (*at, name)) if key.table else {}
    return keys


def problems_of(
    error: ValidationError,
    model: type[Settings],
    layers: Layers,
    own: Mapping[str, type[Settings]] | None = None,
) -> dict[KeyPath, str]:
    """Each wrong key with its message. A key with a wrong element is reported once, as a whole.

    own: see Kinds.
    """
    keys = keys_of(model, layers.values, own)
    problems: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        path = _key_path(detail["loc"], keys)
        if path in problems:
            continue
        label = layers.source_of(path).label
        is_own_check = detail["type"] in ("value_error", "assertion_error")
        if detail["type"] == "extra_forbidden":
            next_move = _of_other_kinds(path, keys) or nearest(path, keys)
            what = f"unknown key {show_key(path)}; {next_move}"
        elif detail["type"] == "missing" and path in keys:
            what = _missing(path, keys[path])
        elif is_own_check and path in keys and not keys[path].words:
            what = _refused(path, _value_at(layers.values, path), keys[path], label, detail["msg"])
        else:
            table = keys.get(path[:-1])
            kinds = table.kinds if table and path[-1] == "kind" else None
            what = _wrong(path, _value_at(layers.values, path), keys.get(path), label, kinds)
        problems[path] = f"{label}: {what}"
    return problems


def nearest(path: KeyPath, known: Iterable[KeyPath]) -> str:
    """The next move after an unknown key: the nearest that exists, or all of its table."""
    known = list(known)
    siblings = [key for key in known if key[:-1] == path[:-1]]
    elsewhere = [key for key in known if key[-1] == path[-1]]  # the right name in a wrong table
    for candidates in (elsewhere, siblings, known):
        names = {key[-1]: key for key in reversed(candidates)}  # of equal names the first
        for name in difflib.get_close_matches(path[-1], names, n=1, cutoff=0.6):
            return f"did you mean {show_key(names[name])}?"
    where = f"[{show_key(path[:-1])}]" if path[:-1] else "an experiment"
    return f"{where} has {', '.join(show_key(key[-1:]) for key in siblings) or 'no keys'}"


def _of_other_kinds(path: KeyPath, keys: Mapping[KeyPath, Key]) -> str | None:
    """The next move after a key that only other kinds of its table have."""
    table = keys.get(path[:-1])
    models = table.kinds.models if table and table.kinds else {}
    kinds = [show_value(kind) for kind, model in models.items() if path[-1] in model.model_fields]
    if not kinds:
        return None
    return f"only {show_key((*path[:-1], 'kind'))}={' or '.join(kinds)} has it; leave it out"


def found(path: KeyPath, value: Any, label: str) -> str:
    """`key=value `, unless the label is that of an override and has said so."""
    has_said_so = label.startswith(f"override {show_key(path)}=")
    return "" if has_said_so else f"{show_key(path)}={show_value(value)} "


def show_key(path: KeyPath) -> str:
    """A dotted key; parts that TOML would quote are quoted."""
    return ".".join(
        part if part and all(c.isalnum() or c in "_-" for c in part) else show_value(part)
        for part in path
    )


def show_value(value: Any) -> str:
    """A value as one would type it in TOML, on one line, cut where it gets long."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{_printable(value if len(value) <= 60 else value[:60] + "…")}"'
        case int() if value.bit_length() > 128:
            return f"an integer of {value.bit_length()} bits"
        case int() | float():
            return repr(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list() | tuple():
            shown = ["[…]" if isinstance(v, list | tuple) else show_value(v) for v in value[:8]]
            return f"[{', '.join([*shown, '…'] if len(value) > 8 else shown)}]"
        case Mapping():
            return "{…}" if value else "{}"
        case None:
            return "None"
        case _:
            return f"an object of type {type(value).__name__}"


def _key_path(loc: tuple[int | str, ...], keys: Mapping[KeyPath, Key]) -> KeyPath:
    """The key an error is about: pydantic also counts elements and branches of a union."""
    path: KeyPath = ()
    for part in loc:
        inside = keys.get(path)
        if inside is not None and (not inside.table or isinstance(part, int)):
            # An element of a list spoils the key; a value in a table of free names is a key.
            is_free = (
                "additionalProperties"
                in inside.model.model_json_schema()["properties"][inside.name]
            )
            return (*path, str(part)) if is_free else path
        path = (*path, str(part))
    return path


def _missing(path: KeyPath, key: Key) -> str:
    example = (key.field.examples or [None])[0]
    write = f"{path[-1]} = {show_value(example)}" if example is not None else path[-1]
    about = f" ({key.field.description})" if key.field.description else ""
    if key.table:
        return f"missing table [{show_key(path)}]{about}; write it, and its keys below"
    return f"missing key {show_key(path)}{about}; write {write} under [{show_key(path[:-1])}]"


def _refused(path: KeyPath, value: Any, key: Key, label: str, said: str) -> str:
    """said: by a validator of the model's author, as pydantic repeats it."""
    shown = f"[{show_key(path)}] " if key.table else found(path, value, label)
    text = said.partition(", ")[2]
    return f"{shown}fails its own check{f': {text}' if text else ''}"


def _wrong(
    path: KeyPath, value: Any, key: Key | None, label: str, kinds: Kinds | None = None
) -> str:
    """kinds: those that the table has, if the key chooses between them."""
    # Only params have names of their own; who takes them says more about each later.
    wanted = key.wanted() if key else "a number, or true or false"
    if kinds is not None:
        wanted = kinds.in_words
    if key is not None and not key.table and key.field.description:
        wanted += f" ({key.field.description})"
    return f"{found(path, value, label)}wanted {wanted}; {_next_move(path, value, key, kinds)}"


def _next_move(path: KeyPath, value: Any, key: Key | None, kinds: Kinds | None) -> str:
    dotted = ".".join(path)
    if isinstance(value, str):
        if value in NOT_YET.get(dotted, ()):
            return f"{show_value(value)} is not available yet in this version"
        choices = list(kinds.models) if kinds is not None else _choices(key)
        close = difflib.get_close_matches(value.lower(), choices, n=1)
        if close:
            return f"did you mean {show_value(close[0])}?"
        if not choices and _is_quoted_number(value):
            return f"write it without quotes, {show_key(path[-1:])} = {value}"
    if key is None:
        whose = "environment" if path[0] == "env" else "network"
        return f"leave it out for the {whose}'s own default"
    if key.table:
        return f"write [{dotted}] and its keys below it"
    if isinstance(value, date | time) and not _choices(key):
        return "put it in quotes if it is meant as text"
    if key.field.is_required():
        example = (key.field.examples or ["…"])[0]
        return f"for example {show_key(path[-1:])} = {show_value(example)}"
    default = key.field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return "leave it out"
    return f"leave it out for the default, {show_value(default)}"


def _choices(key: Key | None) -> list[str]:
    if key is None:
        return []
    schema = _own_schema(key.model.model_json_schema()["properties"][key.name])
    return [schema["const"]] if "const" in schema else schema.get("enum", [])


def _is_quoted_number(text: str) -> bool:
    try:
        return isinstance(tomllib.loads(f"v = {text}")["v"], bool | int | float)
    except (ValueError, RecursionError):
        return False


def _own_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without the branch that says a value may be left out."""
    branches = [b for b in schema.get("anyOf", []) if b.get("type") != "null"]
    return branches[0] if len(branches) == 1 else schema


def _in_words(schema: dict[str, Any], plural: bool = False) -> str:
    """A JSON schema of one field as a noun: `an integer from 1 to 4`."""
    schema = _own_schema(schema)
    if "const" in schema or "enum" in schema:
        return " or ".join(show_value(v) for v in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer" | "number" as kind:
            noun = "integer" if kind == "integer" else "number"
            article = "an" if kind == "integer" else "a"
            return (f"{noun}s" if plural else f"{article} {noun}") + _range_in_words(schema)
        case "boolean":
            return "true or false"
        case "string":
            return "strings" if plural else "a string, in quotes"
        case "array":
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            count = f"{least} to {most}" if most else f"{least} or more"
            count = str(most) if least == most else count
            of = _in_words(schema["items"], plural=True) if "items" in schema else "values"
            return f"a list of {count} {of}"
        case _:
            return "a table"


def _range_in_words(schema: dict[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f" from {_short(least)} to {_short(most)}"
    words = [
        f" {word} {_short(bound)}"
        for word, bound in (("above", above), ("below", below), ("≥", least), ("≤", most))
        if bound is not None
    ]
    return " and".join(words)


def _short(bound: float) -> str:
    """A bound as people write it: 2⁶³ - 1 and the like would hide the other one."""
    power = round(bound).bit_length()
    if power > 20 and bound == 2**power - 1:
        return f"2**{power} - 1"
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _value_at(values: Any, path: KeyPath) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() and c not in '"\\' else c.encode("unicode_escape").decode()
        for c in text
    ).replace('"', '\\"')
