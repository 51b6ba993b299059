"""The tables of an experiment file, each one frozen model: its keys, their ranges and defaults."""

import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr

from rollout.env_source import EnvSource, VectorizationMode
from rollout.experiment_errors import Wanted
from rollout.experiment_rules import MAX_FRAME_STACK, MAX_UNROLL_LENGTH
from rollout.learners.impala_settings import ImpalaSettings
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.settings import Kinds, Settings, UnreadAlgorithm
from rollout.sizes import SIZE_PATTERN, parse_size

if TYPE_CHECKING:
    from rollout.envs.registry import AnyEnv


def usable_cores() -> int:
    """Cores this process may use; a container or `taskset` may leave fewer than there are."""
    return len(os.sched_getaffinity(0))


class EnvSettings(Settings):
    """The environments of the whole fleet."""

    id: str = Field(
        min_length=1,
        description="the environment to train in",
        examples=["CartPole-v1"],
    )
    num_envs: int = Field(
        default=64,
        ge=1,
        le=2**24 - 1,  # counts of steps fit 32 bits of a header with room to spare
        description="environments of the whole fleet; actors share them out",
    )
    max_episode_steps: Annotated[
        Annotated[int, Field(ge=1, le=2**31 - 1)] | Literal[-1] | None,
        Wanted("an integer from 1 to 2**31 - 1, or -1"),
    ] = Field(
        default=None,
        description="steps after which an episode is truncated, -1 for no limit; left out, the "
        "environment's own",
    )
    vectorization_mode: VectorizationMode = Field(
        default="sync",
        description="of an id of Gymnasium's: sync makes it N times, vector_entry_point once, as "
        "its own vector environment",
    )
    wrappers: Annotated[
        tuple[str | dict[str, bool | int | float | str | list[Any] | dict[str, Any]], ...],
        Field(strict=False),  # TOML has lists, no tuples
        Wanted('a list of names, or tables such as {name = "FrameStackObservation", …}'),
    ] = Field(
        default=(),
        description="wrappers of Gymnasium's around it, from the inside out, by name",
    )
    params: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = Field(
        default_factory=dict,
        description="the environment's own numbers that never change in an episode; of one of "
        "Gymnasium's, what it is made with",
    )

    _given: Any = PrivateAttr(None)

    @property
    def given(self) -> Any:
        """The environment itself, if it was given as an object; no file holds it."""
        return self._given

    @property
    def source(self) -> EnvSource:
        """What the environment is found by, from the current folder if it is one's own."""
        return EnvSource(
            id=self.id,
            params=dict(self.params),
            max_episode_steps=self.max_episode_steps,
            vectorization_mode=self.vectorization_mode,
            wrappers=self.wrappers,
            folder=os.getcwd(),
        )

    def find(self) -> "AnyEnv":
        """The environment. Raises EnvError."""
        from rollout.envs.registry import find_any_env  # with Gymnasium behind it: slow to import

        return find_any_env(self.source, self._given)

    @property
    def how_to_check(self) -> str:
        """What to type to find what is wrong with it."""
        if self._given is None:
            return f"`rollout check-env {self.id}`"
        if isinstance(self._given, type) and hasattr(self._given, "observe"):  # compiled
            return f"`rollout.envs.check_env({self._given.__name__})`"
        return "`gymnasium.utils.env_checker.check_env`"

    def pickled(self) -> bytes:
        """What was given as an object, for other processes; else nothing. Raises EnvError."""
        if self._given is None:
            return b""
        from rollout.envs.pickling import pickled_env

        return pickled_env(self._given, self.id)


class FleetSettings(Settings):
    """The actor processes, and what they send."""

    num_actors: int = Field(
        default_factory=usable_cores,
        ge=1,
        description="actor processes; left out, one per usable core of this machine",
    )
    unroll_length: int = Field(
        default=64,
        ge=1,
        le=MAX_UNROLL_LENGTH,
        description="steps of each environment in one unroll",
    )
    mode: Literal["lockstep", "async"] = Field(
        default="lockstep",
        description="whether actors wait for the weights an unroll is meant to have",
    )
    policy_lag: int = Field(
        default=1,
        ge=0,
        le=1,
        description="versions the acting weights are behind in lockstep; 1 overlaps acting and "
        "learning",
    )
    window: int = Field(
        default=2, ge=1, le=4, description="unrolls an actor may have sent that are in no batch yet"
    )
    hang_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds an unroll may take before its actor is replaced; left out, 20 times "
        "the longest measured, at least 10; and 60 for each step of the first",
    )
    max_actor_memory: Annotated[
        Annotated[
            int,
            Field(ge=1, le=2**63 - 1),
            BeforeValidator(
                lambda value: parse_size(value) if isinstance(value, str) else value,
                json_schema_input_type=Annotated[int, Field(ge=1, le=2**63 - 1)]
                | Annotated[str, Field(pattern=SIZE_PATTERN)],
            ),
        ]
        | None,
        Wanted('bytes, as an integer ≥ 1 or as text such as "500 MB" or "2 GiB"'),
    ] = Field(
        default=None,
        description="how far an actor's memory may grow before it begins anew, between two "
        "unrolls; left out, without limit",
    )
    on_env_failure: Literal["stop", "set_aside"] = Field(
        default="stop",
        description="what becomes of a run when an environment fails at the same step three times, "
        "or again and again without completing an episode if its state is hidden; set_aside goes "
        "on without that environment",
    )
    engine: Literal["local"] = Field(default="local", description="what starts the processes")


class LearnerSettings(Settings):
    """The process that updates weights."""

    device: Annotated[str, Wanted('"auto", "cpu", "cuda" or "cuda:N"')] = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?)$",
        description="where the update runs; auto takes a GPU if there is one",
    )
    num_threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="torch's threads for the update on a CPU; another number gives other bits",
    )
    max_skipped_steps: int = Field(
        default=10,
        ge=1,
        description="optimizer steps in a row whose loss or gradient is not finite; such steps are "
        "skipped, and after so many the run fails",
    )


class CoreSettings(Settings):
    """A recurrent layer behind the hidden ones: a policy with a memory of its episode."""

    kind: Literal["lstm", "gru"] = Field(default="lstm", description="which recurrent layer")
    size: int = Field(default=128, ge=1, le=8192, description="units of the recurrent layer")


class GaussianSettings(Settings):
    """How quantities (a Box of actions) are drawn: around the network's outputs."""

    std: Literal["independent", "dependent"] = Field(
        default="independent",
        description="whether deviations are parameters, the same in every state, or outputs of "
        "the network",
    )
    squash: Literal["none", "tanh"] = Field(
        default="none",
        description="what brings them within the action space's bounds: tanh is part of the "
        "distribution; with none, environments clip",
    )


class MlpSettings(Settings):
    """A multilayer perceptron for policy and value."""

    kind: Literal["mlp"] = Field(default="mlp", description="which network")
    hidden_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...],
        Field(strict=False),  # TOML has lists, no tuples
    ] = Field(
        default=(64, 64), min_length=1, max_length=16, description="units of each hidden layer"
    )
    activation: Literal["tanh", "relu"] = Field(
        default="tanh", description="function after each hidden layer"
    )
    value_network: Literal["shared", "separate"] = Field(
        default="shared", description="whether the value has hidden layers of its own"
    )
    core: CoreSettings | None = Field(
        default=None, description="a recurrent layer behind the hidden ones; left out, none"
    )
    gaussian: GaussianSettings | None = Field(
        default=None,
        description="how quantities (a Box of actions) are drawn; left out, by its defaults",
    )
    normalize_observations: bool = Field(
        default=False,
        description="give every quantity of an observation mean 0 and deviation 1, by statistics "
        "of all that was trained on, and clip it to ±10",
    )
    frame_stack: int = Field(
        default=1,
        ge=1,
        le=MAX_FRAME_STACK,
        description="how many of an episode's last observations it reads; actors send each once",
    )


class ConvSettings(Settings):
    """Convolutions of an image, then dense layers, for policy and value."""

    kind: Literal["conv"] = Field(default="conv", description="which network")
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(strict=False)] = (
        Field(
            default=(16,),
            min_length=1,
            max_length=16,
            description="output channels of each convolution",
        )
    )
    kernel_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(strict=False)] = (
        Field(
            default=(3,),
            min_length=1,
            max_length=16,
            description="side of each convolution's square kernel, in pixels; there is no padding",
        )
    )
    strides: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(strict=False)] = Field(
        default=(1,),
        min_length=1,
        max_length=16,
        description="pixels from one patch of each convolution to the next",
    )
    channels_axis: Literal["auto", "first", "last"] = Field(
        default="auto",
        description="where an observation has its channels (or stacked frames); auto takes the "
        "first axis if it is the shortest, else the last",
    )
    hidden_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...], Field(strict=False)
    ] = Field(default=(128,), max_length=16, description="units of each dense layer after them")
    activation: Literal["tanh", "relu"] = Field(
        default="relu", description="function after each convolution and each of these layers"
    )
    value_network: Literal["shared", "separate"] = Field(
        default="shared", description="whether the value has all of these layers of its own"
    )
    core: CoreSettings | None = Field(
        default=None, description="a recurrent layer behind the dense ones; left out, none"
    )
    gaussian: GaussianSettings | None = Field(
        default=None,
        description="how quantities (a Box of actions) are drawn; left out, by its defaults",
    )
    frame_stack: int = Field(
        default=1,
        ge=1,
        le=MAX_FRAME_STACK,
        description="how many of an episode's last observations it reads; actors send each once",
    )


class ModuleSettings(Settings):
    """A torch.nn.Module of your own for policy and value, which torch executes in actors, too."""

    core: ClassVar[None] = None  # no recurrent layer
    frame_stack: ClassVar[int] = 1

    kind: str = Field(
        pattern=":", description="package.module:Class of a torch.nn.Module of your own"
    )
    params: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = Field(
        default_factory=dict, description="keyword arguments of its constructor"
    )
    gaussian: GaussianSettings | None = Field(
        default=None,
        description="how quantities (a Box of actions) are drawn; left out, by its defaults",
    )

    _given: Any = PrivateAttr(None)

    @property
    def given(self) -> Any:
        """The class itself, if it was given as an object; no file holds it."""
        return self._given


class StopSettings(Settings):
    """When a run ends: at the first condition that holds, checked after each update."""

    env_steps: int | None = Field(
        default=None, ge=1, le=2**63 - 1, description="steps trained on, over all environments"
    )
    episode_return: float | None = Field(
        default=None, description="mean return of the last 100 episodes that is the goal"
    )
    wall_s: float | None = Field(
        default=None, gt=0, description="seconds since the process started"
    )


class CheckpointSettings(Settings):
    """When the run is saved; the end of a run always is."""

    every_updates: int | None = Field(default=None, ge=1, description="updates between checkpoints")
    every_minutes: float = Field(
        default=10.0, gt=0, description="minutes between checkpoints, at most"
    )
    keep: int = Field(
        default=3, ge=1, description="newest checkpoints that are kept, besides the best"
    )


NetworkSettings = MlpSettings | ConvSettings | ModuleSettings
NETWORK_KINDS = Kinds({"mlp": MlpSettings, "conv": ConvSettings}, ModuleSettings)
ALGORITHM_KINDS = Kinds({"ppo": PpoSettings, "impala": ImpalaSettings}, UnreadAlgorithm)
