"""Running statistics against two passes over all, and what an algorithm makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rollout.learners import normalization
from rollout.learners.initialization import initial_parameters
from rollout.learners.layers import Normalize
from rollout.learners.network import (
    CategoricalHead,
    InputPart,
    NetworkSpec,
    make_mlp,
    with_normalized_inputs,
)
from rollout.learners.normalization import Moments, Normalization
from rollout.learners.ppo import PPO
from rollout.learners.ppo_settings import PpoSettings
from rollout.learners.synthetic_batch import make_synthetic_batch
from rollout.learners.torch_network import TorchNetwork
from rollout.learners.unroll import Batch
from tests.learners.batches import mark_no_ops

SPEC = with_normalized_inputs(make_mlp((3,), CategoricalHead((2,)), (8,), "tanh", "separate"))
GAMMA = 0.9


def make_ppo(spec: NetworkSpec = SPEC, kind: type[PPO] = PPO, **settings) -> PPO:
    network = TorchNetwork(spec, initial_parameters(spec, 0))
    chosen = {"gamma": GAMMA, "normalize_rewards": True, "num_minibatches": 2, "update_epochs": 2}
    return kind(network, PpoSettings(**(chosen | settings)), seed=1)


def make_batch(ppo: PPO, seed: int = 0, T: int = 12, B: int = 6) -> Batch:
    """Observations far from 0, of several sizes; episodes end at other steps than where they do
    in another batch."""
    batch = make_synthetic_batch(ppo.network, T, B, seed)
    random = np.random.default_rng(seed)
    batch.observation *= np.array([0.01, 1.0, 300.0], np.float32)
    batch.observation += np.array([0.5, -40.0, 1e4], np.float32)
    batch.reward[:] = 100.0 * random.standard_normal(batch.reward.shape) - 30.0
    batch.terminated |= random.random(batch.reward.shape) < 0.15
    return batch


def statistics(ppo: PPO) -> tuple[np.ndarray, np.ndarray]:
    flat = ppo.network.export()
    mean, scale = (SPEC.parameter(f"normalized.{n}").view(flat) for n in ("mean", "scale"))
    return mean.copy(), scale.copy()


def assert_equal(moments: Moments, rows: np.ndarray) -> None:
    """Those of rows [R, n], found in two passes with more digits."""
    precise = rows.astype(np.longdouble)
    mean = precise.mean(0)
    m2 = ((precise - mean) ** 2).sum(0)
    rounding = 10 * np.finfo(float).eps * np.abs(precise).max(0)  # of a mean, merged some times
    assert moments.count == len(rows)
    assert (np.abs(moments.mean - mean) <= rounding).all(), (moments.mean, mean)
    tolerance = 1e-12 * m2 + rounding * np.sqrt(len(rows) * m2) + len(rows) * rounding**2
    assert (np.abs(moments.m2 - m2) <= tolerance).all(), (moments.m2, m2)


# Moments


@given(data=st.data())
def test_any_partition_merged_in_any_order_equals_two_passes(data) -> None:
    seed, count = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 60))
    offset = data.draw(st.sampled_from([1.0, -50.0, 1e4, 1e8]))
    rows = offset + np.random.default_rng(seed).standard_normal((count, 3))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    parts = [Moments.of(part) for part in np.split(rows, cuts)]
    while len(parts) > 1:  # as a tree of any shape
        one = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        other = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.insert(data.draw(st.integers(0, len(parts))), one.merged(other))
    assert_equal(parts[0], rows)


def test_deviation_far_from_zero_is_accurate() -> None:
    """By the mean of squares less the square of the mean it would be lost altogether."""
    moments = Moments.none(1)
    for start in range(100):
        rows = 1e8 + np.where((np.arange(100) + start) % 2, 1.0, -1.0).reshape(-1, 1)
        moments = moments.merged(Moments.of(rows))
    assert moments.mean[0] == pytest.approx(1e8, abs=1e-6)
    assert moments.deviation[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_never_enters(wrong: float) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 2))
    poisoned = np.insert(rows, 7, [1.0, wrong], axis=0)
    assert_equal(Moments.of(poisoned), rows)
    nothing = Moments.of(np.full((3, 2), wrong))
    assert nothing.count == 0 and (nothing.mean == 0).all() and (nothing.deviation == 1).all()


def test_numbers_of_float32_at_their_largest_do_not_overflow() -> None:
    rows = np.array([[3e38], [-3e38], [3e38], [-3e38]], np.float32)
    moments = Moments.of(rows[:2]).merged(Moments.of(rows[2:]))
    assert moments.mean[0] == 0.0 and moments.deviation[0] == pytest.approx(3e38)


# Observations


def test_update_sees_the_statistics_of_its_version_and_the_next_version_has_its_batch() -> None:
    seen = []

    class Watching(PPO):
        def update(self, batch, update_index, fraction_done):
            before = statistics(self)
            metrics = super().update(batch, update_index, fraction_done)
            seen.append(before)
            for one, other in zip(before, statistics(self), strict=True):
                assert one.tobytes() == other.tobytes(), "no step of an optimizer changes them"
            return metrics

    ppo, rows = make_ppo(kind=Watching), np.zeros((0, 3), np.float32)
    for update in range(3):
        wanted = statistics(ppo)
        batch = make_batch(ppo, seed=update)
        no_op = mark_no_ops(batch)
        ppo.train_on(batch, update, 0.0)
        for one, other in zip(seen[-1], wanted, strict=True):
            assert one.tobytes() == other.tobytes()
        rows = np.concatenate([rows, batch.observation[:-1][~no_op]])
        mean, scale = statistics(ppo)
        np.testing.assert_allclose(mean, rows.astype(float).mean(0), rtol=1e-6)
        np.testing.assert_allclose(scale, 1.0 / rows.astype(float).std(0), rtol=1e-4)
    assert (seen[0][0] == 0.0).all() and (seen[0][1] == 1.0).all()
    mean, scale = statistics(ppo)
    normalized = (rows - mean) * scale
    assert np.abs(normalized.mean(0)).max() < 1e-3
    np.testing.assert_allclose(normalized.std(0), 1.0, rtol=1e-3)


def test_statistics_do_not_depend_on_how_many_rows_are_looked_at_together(monkeypatch) -> None:
    found = []
    for most in (normalization.MOST_NUMBERS, 7):
        monkeypatch.setattr(normalization, "MOST_NUMBERS", most)
        ppo = make_ppo()
        ppo.train_on(make_batch(ppo), 0, 0.0)
        found.append(statistics(ppo))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_statistics_have_no_gradient_and_are_no_part_of_its_norm() -> None:
    ppo = make_ppo(num_minibatches=1, update_epochs=1)
    ppo.train_on(make_batch(ppo), 0, 0.0)
    metrics = ppo.train_on(make_batch(ppo, seed=1), 1, 0.0)
    gradient = ppo.network.flat_grad.numpy()
    for parameter in SPEC.parameters:
        is_zero = not parameter.view(gradient).any()
        assert is_zero == (not parameter.is_trained), parameter.name
    assert metrics["losses/grad_norm"] > 0
    assert not ppo.optimizer.first_moment[:6].any() and not ppo.optimizer.second_moment[:6].any()


def test_stacked_frames_share_the_statistics_of_single_ones() -> None:
    stacking = make_mlp((3,), CategoricalHead((2,)), (8,), "tanh", "separate", frame_stack=2)
    ppo, single = make_ppo(with_normalized_inputs(stacking)), make_ppo()
    batch = make_batch(single)
    for each in (ppo, single):
        Normalization(each.network, each.settings).read_observations(batch)
    for name, wanted in zip(("mean", "scale"), statistics(single), strict=True):
        found = ppo.network.parameters[f"normalized.{name}"].detach().numpy()
        np.testing.assert_array_equal(found, np.tile(wanted, 2))


def test_columns_of_categories_stay_as_they_are() -> None:
    """An observation of a Dict: two numbers, then one of three directions."""
    parts = (InputPart(0, "<f4", 2, ()), InputPart(8, "<i4", 1, (3,)))
    plain = make_mlp((12,), CategoricalHead((2,)), (8,), "tanh", "shared", parts)
    spec = with_normalized_inputs(plain)
    network = TorchNetwork(spec, initial_parameters(spec, 0))
    record = np.dtype([("x", "<f4", 2), ("direction", "<i4")])
    shown = np.zeros((5, 4), record)
    random = np.random.default_rng(0)
    shown["x"], shown["direction"] = (
        random.normal(7.0, 3.0, (5, 4, 2)),
        random.integers(0, 3, (5, 4)),
    )
    batch = make_synthetic_batch(make_ppo().network, 4, 4)
    batch.observation = shown.view(np.uint8).reshape(5, 4, 12)
    kept = normalization.Normalization(network, PpoSettings())
    kept.read_observations(batch)
    mean, scale = (network.parameters[f"normalized.{n}"].numpy() for n in ("mean", "scale"))
    np.testing.assert_allclose(mean, [*shown["x"][:-1].mean((0, 1)), 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(scale, [*1 / shown["x"][:-1].std((0, 1)), 1, 1, 1], rtol=1e-5)


def test_normalized_input_is_clipped_and_nan_is_not_hidden() -> None:
    flat = initial_parameters(SPEC, 3)
    for name, numbers in (("mean", [1.0, 2.0, 3.0]), ("scale", [2.0, 0.5, 1.0])):
        SPEC.parameter(f"normalized.{name}").view(flat)[:] = numbers
    plain = make_mlp((3,), CategoricalHead((2,)), (8,), "tanh", "separate")
    observation = torch.tensor([[2.0, 2.0, 0.0], [1e9, -1e9, 3.0]])
    given_normalized = torch.tensor([[2.0, 0.0, -3.0], [Normalize.LIMIT, -Normalize.LIMIT, 0.0]])
    found = TorchNetwork(SPEC, flat).forward(observation)
    wanted = TorchNetwork(plain, flat[6:]).forward(given_normalized)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    logits, _ = TorchNetwork(SPEC, flat).forward(torch.tensor([[torch.nan, 0.0, 0.0]]))
    assert logits.isnan().all()


# Rewards


class Twin:
    """One environment's rewards after the other, with all returns of all steps kept."""

    def __init__(self) -> None:
        self.so_far: dict[int, float] = {}
        self.returns: list[float] = []

    def scaled(self, batch: Batch) -> np.ndarray:
        T, B = batch.reward.shape
        for b in range(B):
            env = int(batch.env[b])
            for t in range(T):
                found = float(batch.reward[t, b]) + GAMMA * self.so_far.get(env, 0.0)
                ended = batch.terminated[t, b] or batch.truncated[t, b]
                self.so_far[env] = 0.0 if ended else found
                if not (len(batch.no_op) and batch.no_op[t, b]):
                    self.returns.append(found)
        deviation = np.sqrt(np.var(self.returns) + 1e-8)
        return np.clip(batch.reward / deviation, -10.0, 10.0)


@pytest.mark.parametrize("has_no_ops", [False, True])
def test_rewards_are_scaled_as_by_one_environment_after_the_other(has_no_ops: bool) -> None:
    """In any order of columns, some environments twice in a batch and some not at all."""
    ppo, twin, random, largest = make_ppo(), Twin(), np.random.default_rng(3), 0.0
    for update in range(5):
        batch = make_batch(ppo, seed=update)
        batch.env[:] = random.permutation(6) if update % 2 else random.integers(0, 6, 6)
        if has_no_ops:
            batch.reward[mark_no_ops(batch)] = 0.0
        before = batch.reward.copy()
        found = ppo._normalization.scaled_reward(batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, twin.scaled(batch), rtol=1e-5, atol=1e-6)
        assert (batch.reward == before).all()
        largest = max(largest, float(np.abs(found).max()))
    assert 0.1 < largest <= 10.0


def test_large_reward_is_clipped() -> None:
    ppo = make_ppo()
    batch = make_batch(ppo, T=40, B=6)
    batch.reward[:], batch.reward[3, 2], batch.reward[5, 1] = 0.0, 1e6, -1e6
    batch.terminated[:] = True
    found = ppo._normalization.scaled_reward(batch)
    assert (found[3, 2], found[5, 1]) == (10.0, -10.0)
    assert np.count_nonzero(found) == 2


def test_update_sees_scaled_rewards_and_nobody_else_does() -> None:
    seen = []

    class Failing(PPO):
        def update(self, batch, update_index, fraction_done):
            seen.append(batch.reward.copy())
            raise RuntimeError("of the author's")

    ppo = make_ppo(kind=Failing)
    batch = make_batch(ppo)
    before = batch.reward.copy()
    with pytest.raises(RuntimeError):
        ppo.train_on(batch, 0, 0.0)
    np.testing.assert_allclose(seen[0], Twin().scaled(batch), rtol=1e-5)
    assert (batch.reward == before).all()


def test_reward_that_is_not_finite_shows_in_the_loss_and_never_in_the_statistics() -> None:
    ppo = make_ppo(num_minibatches=1, update_epochs=1)
    batch = make_batch(ppo)
    batch.reward[3, 3] = np.nan
    metrics = ppo.train_on(batch, 0, 0.0)
    assert metrics["losses/skipped_steps"] == 1
    state = ppo.checkpoint_state()
    assert all(bool(x.isfinite().all()) for x in state.values())


# Checkpoints


class Forgetful(PPO):
    """What an author may write: `state_dict` without `super()`."""

    def state_dict(self):
        return {"steps": torch.tensor(self.optimizer.step_count)}

    def load_state_dict(self, state):
        assert set(state) == {"steps"}


def test_authors_state_dict_cannot_lose_the_statistics() -> None:
    first, second = make_ppo(kind=Forgetful), make_ppo(kind=Forgetful)
    for update in range(2):
        first.train_on(make_batch(first, update), update, 0.0)
    second.network.load(first.network.export())
    second.load_checkpoint_state(first.checkpoint_state())
    for ppo in (first, second):
        ppo.train_on(make_batch(make_ppo(), 2), 2, 0.0)
    kept = [ppo.checkpoint_state() for ppo in (first, second)]
    assert {"steps", "normalization/observation_m2", "normalization/returns"} <= set(kept[0])
    for name in kept[0].keys() - {"steps"}:
        assert torch.equal(kept[0][name], kept[1][name]), name


def test_normalizing_algorithm_goes_on_from_its_state_bit_for_bit() -> None:
    first, second = make_ppo(), make_ppo()
    first.train_on(make_batch(first), 0, 0.0)
    state = first.checkpoint_state()
    second.network.load(first.network.export())
    second.load_checkpoint_state(state)
    for ppo in (first, second):
        for update in (1, 2):
            ppo.train_on(make_batch(make_ppo(), update), update, 0.0)
    assert first.network.export().tobytes() == second.network.export().tobytes()
    state = {name: x for name, x in state.items() if name.startswith("normalization/")}
    again = make_ppo()
    again.load_checkpoint_state(make_ppo().optimizer.state_dict() | state)
    for name, x in state.items():
        assert torch.equal(again.checkpoint_state()[name], x), (
            "a copy, which later steps leave alone"
        )


def test_nothing_is_kept_where_nothing_is_normalized() -> None:
    spec = make_mlp((3,), CategoricalHead((2,)), (8,), "tanh", "separate")
    ppo = make_ppo(spec, normalize_rewards=False)
    batch = make_batch(ppo)
    assert ppo._normalization.scaled_reward(batch) is batch.reward
    ppo.train_on(batch, 0, 0.0)
    assert ppo.checkpoint_state().keys() == ppo.optimizer.state_dict().keys()


def test_rewards_that_were_not_normalized_before_begin_without_statistics() -> None:
    """Who resumes a run with `algorithm.normalize_rewards=true`."""
    before, after = make_ppo(normalize_rewards=False), make_ppo()
    before.train_on(make_batch(before), 0, 0.0)
    after.load_checkpoint_state(before.checkpoint_state())
    batch = make_batch(after, 1)
    found = after._normalization.scaled_reward(batch)
    np.testing.assert_allclose(found, Twin().scaled(batch), rtol=1e-5)
