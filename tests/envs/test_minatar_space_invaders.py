"""SpaceInvaders-MinAtar against the `minatar` package."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.envs.minatar.space_invaders import (
    ALIEN,
    ALIEN_LEFT,
    CANNON,
    ENEMY_BULLET,
    FASTEST,
    SLOWEST,
    SpaceInvaders,
    SpaceInvadersFull,
)
from rollout.envs.registry import find_env
from tests.envs.minatar_judge import (
    LETTERS,
    Judge,
    assert_compiled_equals_plain,
    assert_render_shows_observation,
    assert_same_distributions,
    random_player,
)
from tests.some_fast import slow_unless


def fields(their):
    return {
        "x": their.pop("pos"),
        "direction": their.pop("alien_dir"),
        "move_interval": their.pop("enemy_move_interval"),
        "move_timer": their.pop("alien_move_timer"),
        "alien_shot_timer": their.pop("alien_shot_timer"),
        "shot_timer": their.pop("shot_timer"),
        "ramps": their.pop("ramp_index"),
        "aliens": rows_of_bits(their.pop("alien_map")),
        "bullets": rows_of_bits(their.pop("f_bullet_map")),
        "enemy_bullets": rows_of_bits(their.pop("e_bullet_map")),
    }


def rows_of_bits(board):
    assert set(np.unique(board)) <= {0, 1}
    return (board @ 2 ** np.arange(10)).astype(int)


def shoot_and_dodge(board, rng):
    """A player that shoots where aliens will be, and steps out of bullets' ways."""
    cannon = int(board[9, :, CANNON].argmax())
    safe = [
        letter
        for letter, x in (("f", cannon), ("l", max(0, cannon - 1)), ("r", min(9, cannon + 1)))
        if not board[7:9, x, ENEMY_BULLET].any()
    ]
    aliens = np.argwhere(board[:, :, ALIEN])
    direction = -1 if board[:, :, ALIEN_LEFT].any() else 1
    meeting = [place_when_met(int(y), int(x), direction, len(aliens)) for y, x in aliens]
    nearest = min(meeting, key=lambda x: abs(x - cannon))
    wish = "f" if nearest == cannon else "lr"[int(nearest > cannon)]
    return wish if wish in safe or not safe else safe[rng.integers(len(safe))]


def place_when_met(y, x, direction, num_aliens):
    """About where an alien is when a bullet shot now comes to its row. Few aliens move quickly."""
    for t in range(9):
        if y >= 9 - t:
            break
        if num_aliens < 12 and t % num_aliens == 0:
            if 0 <= x + direction <= 9:
                x += direction
            else:
                direction = -direction
                y += 1
    return x


@pytest.mark.parametrize("ramping", slow_unless([True], [True, False]))
@pytest.mark.parametrize("sticky", slow_unless([0.1], [0.0, 0.1, 0.5]))
@pytest.mark.parametrize("env", [SpaceInvaders, SpaceInvadersFull])
def test_random_play_is_the_packages(env, sticky, ramping):
    judge = Judge(
        env, "space_invaders", fields, sticky_action_prob=sticky, difficulty_ramping=ramping
    )
    assert len(judge.play(random_player(judge.letters), 700)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("ramping", [True, False])
@pytest.mark.parametrize("sticky", [0.0, 0.1])
def test_play_that_gets_far_is_the_packages(sticky, ramping):
    judge = Judge(
        SpaceInvaders,
        "space_invaders",
        fields,
        sticky_action_prob=sticky,
        difficulty_ramping=ramping,
    )
    assert max(judge.play(shoot_and_dodge, 2000)) > 2 * 24, "never beyond the second wave"


rows = st.lists(st.integers(0, 1023), min_size=10, max_size=10)
few = st.lists(st.sampled_from([0, 0, 0, 1, 16, 512]), min_size=10, max_size=10)  # a cell in a row


def board_of(rows):
    """Rows of bits as the package's board."""
    return (np.array(rows)[:, None] >> np.arange(10) & 1).astype(float)


@functools.cache
def judge_of_states(ramping: bool) -> Judge:
    return Judge(
        SpaceInvadersFull,
        "space_invaders",
        fields,
        sticky_action_prob=0.3,
        difficulty_ramping=ramping,
    )


@settings(max_examples=500)
@given(
    state=st.fixed_dictionaries(
        {
            "pos": st.integers(0, 9),
            "alien_dir": st.sampled_from([-1, 1]),
            "enemy_move_interval": st.integers(FASTEST, SLOWEST),
            "alien_move_timer": st.just(0) | st.integers(0, SLOWEST),
            "alien_shot_timer": st.just(0) | st.integers(0, 10),
            "shot_timer": st.integers(0, 5),
            "ramp_index": st.integers(0, 6),
            "last_action": st.integers(0, 5),
        }
    ),
    aliens=(rows | few).filter(any),  # there are always some
    bullets=rows | few,
    enemy_bullets=few,
    ramping=st.booleans(),
    letters=st.text(LETTERS, min_size=1, max_size=8),
)
def test_transitions_from_any_state_are_the_packages(
    state, aliens, bullets, enemy_bullets, ramping, letters
):
    judge = judge_of_states(ramping)
    judge.put(
        alien_map=board_of(aliens),
        f_bullet_map=board_of(bullets),
        e_bullet_map=board_of(enemy_bullets),
        **state,
    )
    for letter in letters:
        _, terminated = judge.step(letter)
        if terminated:
            break


def test_waves_become_faster_to_a_limit_as_the_packages():
    """Shoot the last alien of wave after wave."""
    for ramping in (True, False):
        judge = judge_of_states(ramping)
        judge.reset()
        intervals = []
        for _ in range(FASTEST + 2):
            last_alien, bullet = np.zeros((2, 10, 10))
            last_alien[3, 4] = bullet[4, 4] = 1
            judge.put(alien_map=last_alien, f_bullet_map=bullet, alien_move_timer=3)
            assert judge.step("n") == (1, False)
            intervals.append(judge.theirs.env.enemy_move_interval)
        assert intervals == ([11, 10, 9, 8, 7, 6, 6, 6] if ramping else [SLOWEST] * 8)


@pytest.mark.slow
def test_compiled_play_is_plain_pythons():
    assert assert_compiled_equals_plain(SpaceInvaders, shoot_and_dodge, 600) > 0
    assert assert_compiled_equals_plain(SpaceInvadersFull, random_player(LETTERS), 600) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("player", "episodes"), [(random_player(LETTERS), 400), (shoot_and_dodge, 60)]
)
def test_returns_and_lengths_are_distributed_as_the_packages(player, episodes):
    assert_same_distributions(SpaceInvadersFull, player, episodes)


def test_it_is_bundled_and_renders():
    assert find_env("SpaceInvaders-MinAtar") is SpaceInvaders
    assert find_env("SpaceInvaders-MinAtar-full") is SpaceInvadersFull
    assert_render_shows_observation(SpaceInvaders)
