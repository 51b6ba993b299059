"""What the MinAtar games share: actions, sticky actions, and boards as pictures.

Young and Tian, "MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement
Learning Experiments" (arXiv 1903.03176) describe the games; their package `minatar` is the judge of
every detail. One difference from it is the same in all games: an episode's first sticky action
repeats a no-op, where the package repeats the last action of the episode before.
"""

import numpy as np
from gymnasium.spaces import Box

from rollout.envs.philox import uniform

SIZE = 10  # cells of a board, in both directions
NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)  # the full action set

BACKGROUND = np.array((18, 20, 28), np.uint8)
CELL_PIXELS = 20
# One colour per channel, told apart by lightness as well as by hue.
COLOURS = np.array(
    [
        (240, 240, 240),
        (230, 80, 80),
        (90, 170, 250),
        (245, 200, 60),
        (90, 200, 120),
        (180, 110, 220),
        (250, 140, 50),
        (70, 210, 210),
        (240, 150, 190),
        (150, 120, 90),
    ],
    np.uint8,
)


def board_space(channels: int) -> Box:
    """Boards as observations: bool [10, 10, channels]."""
    return Box(0, 1, (SIZE, SIZE, channels), np.bool_)  # type: ignore[arg-type] # as it takes too


def sticky_action(state, params, action, draw):
    """The action to take: now and then the last one instead of `action`. Writes last_action."""
    if uniform(draw, 0.0, 1.0) < params.sticky_action_prob:
        action = state.last_action
    state.last_action = action
    return action


def picture(board: np.ndarray) -> np.ndarray:
    """A board, bool [10, 10, channels], as uint8 [200, 200, 3].

    Where a cell has several channels the first is shown.
    """
    is_dark = ~board.any(axis=2, keepdims=True)
    cells = np.where(is_dark, BACKGROUND, COLOURS[board.argmax(axis=2)])
    pixels = cells.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)
    pixels[::CELL_PIXELS] = BACKGROUND  # a line between cells
    pixels[:, ::CELL_PIXELS] = BACKGROUND
    return pixels
