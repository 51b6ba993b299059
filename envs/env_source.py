"""What an environment is found by: its name and all that says how it is made."""

from typing import Annotated, Any

import msgspec

StepLimit = Annotated[int, msgspec.Meta(ge=-1, lt=2**31)]


class EnvSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment by name, as it goes from process to process, and into files (find_any_env).

    id: a bundled one's (`CartPole-v1`), `gymnasium:ID`, or `package.module:Name`. params: a
    compiled one's numbers, or what one of Gymnasium's is made with. max_episode_steps: in place of
    the environment's own limit, unless None; -1 for no limit. folder: where modules are looked for
    first.
    """

    id: str
    params: dict[str, Any] = {}
    max_episode_steps: StepLimit | None = None
    folder: str
