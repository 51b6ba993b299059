"""What an environment is found by: its name and all that says how it is made."""

from typing import Annotated, Any, Literal

import msgspec

VectorizationMode = Literal["sync", "vector_entry_point"]
StepLimit = Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]


class EnvSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment by name, as it goes from process to process, and into files (find_any_env).

    id: a bundled one's (`CartPole-v1`), `gymnasium:ID`, or `package.module:Name`. params: a
    compiled one's numbers, or what one of Gymnasium's is made with. max_episode_steps: in place of
    the environment's own limit, unless None; -1 for no limit. vectorization_mode: whether one of
    Gymnasium's registry is made N times, or once as its own vector environment. wrappers: of
    Gymnasium's, from the inside out; each a name, or a table with `name` and keyword arguments.
    folder: where modules are looked for first.
    """

    id: str
    params: dict[str, Any] = {}
    max_episode_steps: StepLimit | None = None
    vectorization_mode: VectorizationMode = "sync"
    wrappers: tuple[str | dict[str, Any], ...] = ()
    folder: str
