"""What an environment is found by: its name and all that says how it is made."""

import functools
from typing import Annotated, Any, Literal

import msgspec

OBJECT = "object:"  # of ids of environments that were given as objects, and have no name

VectorizationMode = Literal["sync", "vector_entry_point"]
StepLimit = Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]


class EnvSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment by name, as it goes from process to process, and into files (find_any_env).

    id: a bundled one's (`CartPole-v1`), `gymnasium:ID`, `package.module:Name`, or `object:Name` for
    one that has to be given besides. params: a compiled one's numbers, or what one of Gymnasium's
    is made with. max_episode_steps: in place of the environment's own limit, unless None; -1 for no
    limit. vectorization_mode: whether one of Gymnasium's registry is made N times, or once as its
    own vector environment. wrappers: of Gymnasium's, from the inside out; each a name, or a table
    with `name` and keyword arguments. folder: where modules are looked for first.
    """

    id: str
    params: dict[str, Any] = {}
    max_episode_steps: StepLimit | None = None
    vectorization_mode: VectorizationMode = "sync"
    wrappers: tuple[str | dict[str, Any], ...] = ()
    folder: str

    @property
    def is_object(self) -> bool:
        """Whether it was given as an object, of which no file holds more than the name."""
        return self.id.startswith(OBJECT)


def object_id(env: Any) -> str:
    """The id of an environment that is given as an object: a class, or a function that makes it."""
    while isinstance(env, functools.partial):
        env = env.func
    return f"{OBJECT}{getattr(env, '__name__', type(env).__name__)}"
