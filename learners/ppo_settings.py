"""PPO's settings: the table `[algorithm]` with `kind = "ppo"`. Without torch."""

from typing import Literal

from pydantic import Field

from rollout.learners.settings import AlgorithmSettings


class PpoSettings(AlgorithmSettings):
    """PPO (Schulman et al. 2017), by the names and with the defaults CleanRL's users know."""

    kind: Literal["ppo"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="ppo", description="which algorithm"
    )
    learning_rate: float = Field(default=2.5e-4, gt=0, description="Adam's step size")
    anneal_lr: bool = Field(
        default=False, description="let learning_rate fall linearly to 0 over stop.env_steps"
    )
    adam_eps: float = Field(default=1e-5, gt=0, description="Adam's epsilon")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="decay of advantage estimates per step"
    )
    clip_coef: float = Field(
        default=0.2, gt=0, description="how far the probability ratio may leave 1"
    )
    clip_vloss: bool = Field(default=False, description="clip the value's change by clip_coef, too")
    norm_adv: bool = Field(
        default=True, description="give advantages mean 0 and deviation 1 per minibatch"
    )
    ent_coef: float = Field(
        default=0.01, ge=0, description="weight of the entropy bonus in the loss"
    )
    vf_coef: float = Field(default=0.5, ge=0, description="weight of the value loss in the loss")
    max_grad_norm: float = Field(
        default=0.5, gt=0, description="gradients longer than this are shortened"
    )
    update_epochs: int = Field(default=4, ge=1, description="passes over each batch")
    num_minibatches: int = Field(
        default=4, ge=1, description="optimizer steps per pass over a batch"
    )
    target_kl: float | None = Field(
        default=None,
        gt=0,
        description="stop a batch's passes early beyond this KL divergence, in nats",
    )
    vtrace: bool = Field(
        default=False,
        description="evaluate each batch with the newest weights first, and correct for those that "
        "acted it (V-trace); for steps that are more than a version old, as in async",
    )

    @property
    def needs_value(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the actors, for every observation."""
        return not self.vtrace
