"""Packages that environments may need, and what installs them."""

EXTRAS = {  # by module
    "ale_py": "atari",
    "cv2": "atari",
    "mujoco": "mujoco",
    "Box2D": "box2d",
    "pygame": "box2d",
    "envpool": "envpool",
    "pettingzoo": "pettingzoo",
}
NAMESPACES = {"ALE": "ale_py"}  # of ids, and the module that registers them
SAID = {"box2d": "box2d", "mujoco": "mujoco", "opencv": "atari", "cv2": "atari", "ale": "atari"}


def install(extra: str) -> str:
    """The command that installs an extra of ours."""
    return f"pip install 'rollout-cluster[{extra}]'"


def install_hint(error: BaseException) -> str:
    """What installs the package that an error misses, as a sentence's end; or nothing."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = EXTRAS.get(error.name.partition(".")[0])
    else:
        extra = next((extra for word, extra in SAID.items() if word in str(error).lower()), None)
    return f"; {install(extra)}" if extra else ""
