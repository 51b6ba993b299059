"""Reading an experiment: TOML files, what they extend, overrides; and where each value came from.

Nothing here knows which keys exist.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollout.errors import ConfigError

# Far above any experiment; keeps a wrong argument (a data set, a device file) from filling memory.
MAX_FILE_BYTES = 1 << 20

# Tables nest this deep at most (`env.params.force`). What lies deeper is some key's value, wrong as
# a whole; not walking it keeps a thousand nested tables from exhausting the stack.
MAX_DEPTH = 3

KeyPath = tuple[str, ...]

_OVERRIDE_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Source:
    """Where a value came from.

    label: how an error about it begins. text: how `rollout config` names it.
    """

    label: str
    text: str


@dataclass
class Layers:
    """Values put over one another, the later ones on top, each with its source.

    main: what was asked for; errors about no value in particular are about it.
    values: the nested result. sources: by path, for every value that is not a table.
    problems: what was wrong with overrides.
    """

    main: Source
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[KeyPath, Source] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, table: Mapping[str, Any], source: Source) -> None:
        """Put a table's values over those already here; tables merge, all else is replaced."""
        self._merge(self.values, table, (), source)

    def put_missing(self, path: KeyPath, value: Any, source: Source) -> None:
        """Put a value unless one is there, or a table on the way to it is no table."""
        table: Any = self.values
        for key in path[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                return
        if path[-1] not in table:
            table[path[-1]] = value
            self.sources[path] = source

    def put_override(self, text: str) -> None:
        """Put `key=value` over the rest; value is TOML if it parses, else a string."""
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not _OVERRIDE_KEY.fullmatch(key):
            self.problems.append(
                f"override {text}: wanted key=value, for example fleet.num_actors=2"
            )
        elif key == "extends":
            self.problems.append(f"override {text}: extends works only inside a file")
        else:
            table: Any = _toml_or_text(value)
            for part in reversed(key.split(".")):
                table = {part: table}
            self.put(table, Source(f"override {key}={value}", "override"))

    def source_of(self, path: KeyPath) -> Source:
        """The source of a value; of a table, that of its first value; else what was asked for."""
        if path in self.sources:
            return self.sources[path]
        below = (s for p, s in self.sources.items() if p[: len(path)] == path)
        above = (self.sources[p] for n in range(len(path)) if (p := path[:n]) in self.sources)
        return next(below, None) or next(above, None) or self.main

    def lacks(self, path: KeyPath) -> bool:
        """Whether there is no such key in a table that is there."""
        table: Any = self.values
        for key in path[:-1]:
            table = table.get(key) if isinstance(table, Mapping) else None
        return isinstance(table, Mapping) and path[-1] not in table

    def remove(self, path: KeyPath) -> None:
        """Forget the value or table at a path, if it is there."""
        table = self.values
        for key in path[:-1]:
            table = table.get(key, {})
        table.pop(path[-1], None)
        self._forget_sources(path)

    def _merge(
        self, into: dict[str, Any], table: Mapping[str, Any], at: KeyPath, source: Source
    ) -> None:
        for key, value in table.items():
            path = (*at, key)
            is_table = isinstance(value, Mapping) and len(path) < MAX_DEPTH
            if key in into and not (is_table and isinstance(into[key], dict)):
                del into[key]
                self._forget_sources(path)
            if is_table:
                self._merge(into.setdefault(key, {}), value, path, source)
            else:
                into[key] = value
                self.sources[path] = source

    def _forget_sources(self, path: KeyPath) -> None:
        for known in [p for p in self.sources if p[: len(path)] == path]:
            del self.sources[known]


def read_file_layers(path: str | os.PathLike[str]) -> Layers:
    """An experiment file over the files it extends. Raises ConfigError if one cannot be read."""
    main = os.fspath(path)
    layers = Layers(_file_source(main))
    for shown, table in reversed(_read_chain(main)):
        layers.put(table, _file_source(shown))
    layers.put_missing(("name",), Path(main).stem, Source(main, "the file's name"))
    return layers


def mapping_layers(mapping: Mapping[str, Any]) -> Layers:
    """An experiment given in Python, as nested tables."""
    layers = Layers(Source("experiment", "the experiment given"))
    layers.put(_with_text_keys(mapping, ()), layers.main)
    return layers


def _read_chain(main: str) -> list[tuple[str, dict[str, Any]]]:
    """The tables of a file, of the file it extends, and so on; each with its path."""
    chain: list[tuple[str, dict[str, Any]]] = []
    seen = set()
    shown, because = main, ""
    while True:
        table = _read_toml(shown, because)
        real = os.path.realpath(shown)
        if real in seen:
            circle = " extends ".join([*(name for name, _ in chain), shown])
            raise ConfigError(f"{main}: a circle: {circle}; remove one extends")
        seen.add(real)
        base = table.pop("extends", None)
        chain.append((shown, table))
        if base is None:
            return chain
        if not isinstance(base, str) or not base:
            raise ConfigError(
                f"{shown}: extends={base!r} wanted the path of another experiment file, in quotes"
            )
        because = f" ({shown} extends it)"
        shown = os.path.normpath(os.path.join(os.path.dirname(shown), base))


def _file_source(shown: str) -> Source:
    return Source(shown, f"file {shown}")


def _read_toml(shown: str, because: str) -> dict[str, Any]:
    """The tables of a file; `because` says in errors why this file is read at all."""
    try:
        with open(shown, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file{because}; {_neighbours(shown)}") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{shown}: a directory{because}, wanted an experiment file; {_neighbours(shown)}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{shown!r}: cannot be read{because}: {reason}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{shown}: more than {MAX_FILE_BYTES:,} bytes{because}, wanted an experiment file"
        )
    try:
        table = tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{shown}: not UTF-8 text{because} (line {line}: byte 0x{content[error.start]:02x}); "
            "save it as UTF-8"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{shown}: not an experiment file{because}: nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, or a number with too many digits
        raise ConfigError(f"{shown}: not TOML{because}: {error}") from error
    if not table:
        raise ConfigError(
            f"{shown}: says nothing{because}; an experiment needs at least id under [env] and one "
            "condition under [stop]"
        )
    return table


def _neighbours(shown: str) -> str:
    """What could have been meant: the experiment files where people keep them."""
    folder = Path(shown) if os.path.isdir(shown) else Path(shown).parent
    found = {
        file.name: str(file) for place in (folder, Path("configs")) for file in _toml_in(place)
    }
    for name in difflib.get_close_matches(Path(shown).stem, found, n=1):
        return f"did you mean {found[name]}?"
    if not found:
        return f"there is no experiment file in {folder}{os.sep}"
    files = sorted(found.values())
    return f"there is {', '.join(files[:5])}{', …' if len(files) > 5 else ''}"


def _toml_in(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.glob("*.toml") if file.name != "pyproject.toml"]
    except OSError:
        return []


def _toml_or_text(text: str) -> Any:
    """The TOML value a text is, or else the text. A text with a line break is no value."""
    if "\n" in text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _with_text_keys(mapping: Mapping[Any, Any], at: KeyPath) -> dict[str, Any]:
    for key in mapping:
        if not isinstance(key, str):
            where = ".".join(at) or "the experiment"
            raise ConfigError(f"experiment: key {key!r} in {where} wanted to be a string")
    return {
        key: _with_text_keys(value, (*at, key))
        if isinstance(value, Mapping) and len(at) + 1 < MAX_DEPTH
        else value
        for key, value in mapping.items()
    }
