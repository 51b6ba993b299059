"""What an experiment is, and how a file, overrides and this machine become one.

Its tables are in experiment_tables.py. An `Experiment` made by `load_experiment`, `as_experiment`
or `Experiment.from_dict` obeys all rules; each of them reports everything that is wrong at once.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tomli_w
from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
)

from rollout.env_source import OBJECT, object_id
from rollout.errors import AlgorithmError, ConfigError, NetworkError
from rollout.experiment_errors import Key, Wanted, problems_of, show_key, show_value
from rollout.experiment_file import KeyPath, Layers, Source, mapping_layers, read_file_layers
from rollout.experiment_rules import (
    broken_rules,
    network_problems,
    resolve_params,
)
from rollout.experiment_tables import (
    ALGORITHM_KINDS,
    NETWORK_KINDS,
    CheckpointSettings,
    EnvSettings,
    FleetSettings,
    LearnerSettings,
    MlpSettings,
    ModuleSettings,
    NetworkSettings,
    StopSettings,
    usable_cores,
)
from rollout.learners.impala_settings import ImpalaSettings
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.settings import Settings, UnreadAlgorithm

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm


def _check_name(name: str) -> str:
    if name[:1] in ("", ".", "-", " ") or name != name.rstrip() or not name.isprintable():
        raise ValueError("not a directory's name")
    if "/" in name or len(name.encode()) > 100:  # runs/NAME-TIME must stay under 255 bytes
        raise ValueError("not a directory's name")
    return name


class Experiment(Settings):
    """One experiment: what is trained, in what, how, and until when."""

    name: Annotated[
        str,
        AfterValidator(_check_name),
        Wanted("text usable as a directory's name: no slash, no dot or dash first, ≤ 100 bytes"),
    ] = Field(
        default="experiment", description="begins the run directory's name; the file's, if left out"
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="begins all randomness of the run")
    env: EnvSettings
    fleet: FleetSettings = Field(default_factory=FleetSettings)
    learner: LearnerSettings = Field(default_factory=LearnerSettings)
    network: Annotated[NetworkSettings, NETWORK_KINDS] = Field(default_factory=MlpSettings)
    algorithm: Annotated[
        SerializeAsAny[PpoSettings | ImpalaSettings | UnreadAlgorithm], ALGORITHM_KINDS
    ] = Field(default_factory=PpoSettings)
    stop: StopSettings
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)

    _given_algorithm: Any = PrivateAttr(None)

    @property
    def given_algorithm(self) -> Any:
        """The class of the algorithm, if it was given as an object; no file holds it."""
        return self._given_algorithm

    @property
    def given_network(self) -> Any:
        """The class of the network's module, if it was given as an object; no file holds it."""
        return self.network.given if isinstance(self.network, ModuleSettings) else None

    def pickled_network(self) -> bytes:
        """That class, for other processes; else nothing. Raises NetworkError."""
        if self.given_network is None:
            return b""
        from rollout.envs.pickling import pickled

        try:
            return pickled(self.given_network)
        except Exception as error:  # of whatever it uses
            raise NetworkError(
                f"network {self.network.kind!r} cannot be sent to the processes that act: "
                f"{type(error).__name__}: {error}; make what it uses in its constructor"
            ) from error

    def find_algorithm(self) -> "type[Algorithm]":
        """The class of the algorithm. Imports torch. Raises AlgorithmError."""
        from rollout.algorithms import find_algorithm

        return find_algorithm(self.algorithm.kind, self._given_algorithm)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any], overrides: Iterable[str] = ()) -> "Experiment":
        """The experiment of nested tables, with `key=value` overrides. Raises ConfigError."""
        return resolve(mapping, overrides).experiment

    @property
    def batch_size(self) -> int:
        """Steps in one batch: one unroll of every environment."""
        return self.env.num_envs * self.fleet.unroll_length

    @property
    def num_minibatches(self) -> int | None:
        """Parts into which the algorithm cuts a batch, if its settings say so."""
        return getattr(self.algorithm, "num_minibatches", None)

    @property
    def has_minibatches_of_envs(self) -> bool:
        """Whether these are whole environments, as the algorithm or the network needs them."""
        return self.algorithm.has_minibatches_of_envs or self.network.core is not None

    @property
    def minibatch_size(self) -> int | None:
        """Steps in one minibatch."""
        return self.num_minibatches and self.batch_size // self.num_minibatches

    @property
    def curve(self) -> dict[str, Any]:
        """All that the learning curve depends on, as tables that JSON can hold.

        Left out is where, how carefully and for how long it runs: name, fleet.num_actors,
        fleet.hang_s, fleet.max_actor_memory, fleet.on_env_failure, fleet.engine,
        learner.max_skipped_steps, checkpoint.* and stop.*, but for the stop.env_steps towards which
        a learning rate is annealed.
        """
        tables = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "fleet": {"num_actors", "hang_s", "max_actor_memory", "on_env_failure", "engine"},
                "learner": {"max_skipped_steps"},
                "checkpoint": True,
                "stop": True,
            },
        )
        if self.algorithm.is_annealed:
            tables["stop"] = {"env_steps": self.stop.env_steps}
        return tables

    @property
    def config_digest(self) -> str:
        """sha256 of all that the learning curve depends on, as hexadecimal digits."""
        canonical = json.dumps(self.curve, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


ExperimentSource = str | os.PathLike[str] | Mapping[str, Any] | Experiment


@dataclass(frozen=True)
class Resolved:
    """An experiment, and for each of its dotted keys where the value came from.

    sources: `default`, `file configs/x.toml`, `override`, `this machine's cores`, `the file's name`
    or `the experiment given`.
    """

    experiment: Experiment
    sources: Mapping[str, str]


def load_experiment(
    path: str | os.PathLike[str], overrides: Iterable[str] = (), **options: Any
) -> Experiment:
    """The experiment of a TOML file, with `key=value` overrides. options: see `resolve`."""
    return resolve(path, overrides, **options).experiment


def as_experiment(
    source: ExperimentSource, overrides: Iterable[str] = (), **options: Any
) -> Experiment:
    """The experiment of a TOML file, of nested tables, or as it is. options: see `resolve`."""
    return resolve(source, overrides, **options).experiment


def resolve(
    source: ExperimentSource,
    overrides: Iterable[str] = (),
    *,
    env: Any = None,
    algorithm: Any = None,
    network: Any = None,
    reads_algorithm: bool = True,
) -> Resolved:
    """The experiment of a TOML file, of nested tables, or given as it is; and its values' sources.

    env: the environment itself, in place of `env.id`. algorithm: the algorithm's class itself, in
    place of `algorithm.kind`; network: a module's, in place of `network.kind`.
    reads_algorithm=False: for who does not learn, leave the table of an algorithm of somebody's own
    as it is; else its module is imported. Raises ConfigError.
    """
    layers = _layers(source)
    for text in [overrides] if isinstance(overrides, str) else overrides:
        layers.put_override(text)
    if isinstance(source, Experiment):
        env = source.env.given if env is None else env
        algorithm = source.given_algorithm if algorithm is None else algorithm
        network = source.given_network if network is None else network
    wrong_from_start: set[KeyPath] = set()
    objects = (
        (("env", "id"), env),
        (("algorithm", "kind"), algorithm),
        (("network", "kind"), network),
    )
    for path, given in objects:
        if given is not None and not _put_given(layers, path, object_id(given)):
            wrong_from_start.add(path)
    own, cause = {}, None
    if reads_algorithm and ("algorithm", "kind") not in wrong_from_start:
        own, cause = _own_algorithm(layers, algorithm)
        if cause is not None:
            layers.remove(("algorithm",))  # nobody can say what is wrong in it besides
            wrong_from_start.add(("algorithm",))
    _put_num_actors(layers)
    experiment, wrong, problems = _validate(layers, own)
    experiment.env._given = env
    experiment._given_algorithm = algorithm
    if isinstance(experiment.network, ModuleSettings):
        experiment.network._given = network
    wrong |= wrong_from_start
    problems = [*layers.problems, *problems, *broken_rules(experiment, wrong, layers)]
    if ("env", "id") not in wrong and ("env",) not in wrong:
        experiment, env_problems, env_cause = _with_env_params(experiment, layers)
        problems += env_problems
        cause = cause or env_cause
    if problems:
        raise ConfigError(problems) from cause
    sources = {}
    for path, _ in leaves(experiment.model_dump()):
        source_of_value = layers.sources.get(path)
        sources[show_key(path)] = source_of_value.text if source_of_value else "default"
    return Resolved(experiment, sources)


def resolved_toml(experiment: Experiment, comments: Mapping[str, str] | None = None) -> str:
    """An experiment file that loads back to an equal experiment; values that are off are left out.

    comments: by dotted key, written behind the value.
    """
    rows: list[tuple[str, str]] = []
    table: KeyPath = ()
    for path, value in leaves(experiment.model_dump()):
        if value is None:
            continue
        if path[:-1] != table:
            table = path[:-1]
            rows += [("", ""), (f"[{show_key(table)}]", "")]
        rows.append((_assignment(path[-1], value), (comments or {}).get(show_key(path), "")))
    width = max(len(text) for text, comment in rows)
    return "".join(
        f"{text:{width}}  # {comment}\n" if comment else f"{text}\n" for text, comment in rows
    )


def _layers(source: ExperimentSource) -> Layers:
    if isinstance(source, Experiment):
        values = source.model_dump()
        if "num_actors" not in source.fleet.model_fields_set:
            del values["fleet"]["num_actors"]  # the default may be more than there are environments
        return mapping_layers(values)
    if isinstance(source, Mapping):
        tables = {k: _dumped(v) if isinstance(v, Settings) else v for k, v in source.items()}
        return mapping_layers(tables)
    return read_file_layers(source)


def _dumped(table: Settings) -> dict[str, Any]:
    """A table as keys and values; an algorithm's settings need not say whose they are."""
    values = table.model_dump()
    if values.get("kind") == "":
        del values["kind"]
    return values


def _put_num_actors(layers: Layers) -> None:
    """Without a number of actors: one per core, but none without an environment."""
    env = layers.values.get("env")
    num_envs = env.get("num_envs") if isinstance(env, dict) else None
    if type(num_envs) is not int or num_envs < 1:
        num_envs = EnvSettings.model_fields["num_envs"].default
    source = Source(layers.main.label, "this machine's cores")
    layers.put_missing(("fleet", "num_actors"), min(usable_cores(), num_envs), source)


def _put_given(layers: Layers, path: KeyPath, name: str) -> bool:
    """Put the name of what is given as an object; whether there is no other one.

    path: `env.id`, `algorithm.kind` or `network.kind`.
    """
    table, short = path[0], name.removeprefix(OBJECT)
    layers.put_missing(path, name, Source(f"{table}={short}", "the object given"))
    values = layers.values[table]
    known = values.get(path[1]) if isinstance(values, dict) else None
    if known in (None, name):
        return True
    what = f"{layers.source_of(path).label}: {show_key(path)}={show_value(known)} "
    if str(known).startswith(OBJECT):
        meant = str(known).removeprefix(OBJECT)
        move = f"give the one it was, {table}={meant}"
        layers.problems.append(f"{what}is not {table}={short}; {move}")
    else:
        kind = {"env": "environments"}.get(table, f"{table}s")
        layers.problems.append(f"{what}and {table}={short} are two {kind}; leave one out")
    return False


def _own_algorithm(
    layers: Layers, given: Any
) -> tuple[dict[str, type[Settings]], AlgorithmError | None]:
    """The model of the table of an algorithm that is not ours, by kind; what is wrong with it."""
    table = layers.values.get("algorithm")
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str) or ":" not in kind:
        return {}, None
    from rollout.algorithms import find_algorithm  # with torch behind it: slow to import

    try:
        return {kind: find_algorithm(kind, given).Settings}, None
    except AlgorithmError as error:
        label = layers.source_of(("algorithm", "kind")).label
        layers.problems.append(f"{label}: {error}")
        return {}, error


def _validate(
    layers: Layers, own: Mapping[str, type[Settings]]
) -> tuple[Experiment, set[KeyPath], list[str]]:
    """The experiment with defaults for what is wrong; the paths of that; a message for each.

    own: see Kinds.
    """
    for name in ("env", "stop"):
        layers.values.setdefault(name, {})  # so that the missing key is named, not its table
    wrong: set[KeyPath] = set()
    messages: list[str] | None = None
    while True:
        try:
            found = Experiment.model_validate(layers.values, context=own)
            return found, wrong, messages or []
        except ValidationError as error:
            problems = problems_of(error, Experiment, layers, own)
        if messages is None:  # a later round meets only what putting defaults has brought about
            messages = list(problems.values())
        for path in problems:
            is_kind = path[1:] == ("kind",) and Key(Experiment, path[0]).kinds
            if is_kind or (layers.lacks(path) and path != ("env", "id")):
                # Without its kind a table's other keys mean nothing; and what lacks a key that has
                # no default is put right by none. (An environment's id has a stand-in.)
                path = path[:1]
            wrong.add(path)
            _put_default(layers, path)


def _put_default(layers: Layers, path: KeyPath) -> None:
    if path == ("env", "id"):
        layers.put({"env": {"id": "?"}}, layers.main)
    elif len(path) == 1 and path[0] in ("env", "stop"):
        layers.values[path[0]] = {}
    else:
        layers.remove(path)


def _with_env_params(
    experiment: Experiment, layers: Layers
) -> tuple[Experiment, list[str], Exception | None]:
    """The experiment with all of its environment's params; messages; what caused one of them."""
    from rollout.envs.errors import EnvError  # with Gymnasium behind it: slow to import

    label = layers.source_of(("env", "id")).label
    try:
        env = experiment.env.find()
    except EnvError as error:
        return experiment, [f"{label}: {error}"], error
    params, problems = resolve_params(env, experiment.env.params, layers)
    problems += network_problems(experiment, env, layers)
    settings = experiment.env.model_copy(update={"params": params})
    return experiment.model_copy(update={"env": settings}), problems, None


def leaves(table: Mapping[str, Any], at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a table, by path; a table's own values before its tables."""
    for key, value in sorted(table.items(), key=lambda item: isinstance(item[1], Mapping)):
        if isinstance(value, Mapping):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def _assignment(key: str, value: Any) -> str:
    name = tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
    return f"{name} = {_inline(value)}"


def _inline(value: Any) -> str:
    """A value in TOML, on one line; tomli_w writes one element per line."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(_assignment(key, inner) for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
