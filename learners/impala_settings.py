"""IMPALA's settings: the table `[algorithm]` with `kind = "impala"`. Without torch."""

from typing import ClassVar, Literal

from pydantic import Field

from rollout.learners.settings import AlgorithmSettings


class ImpalaSettings(AlgorithmSettings):
    """IMPALA (Espeholt et al. 2018), by the names that PPO's settings have where both have them."""

    needs_value: ClassVar[bool] = False  # of the actors: the learner's own network computes values
    has_minibatches_of_envs: ClassVar[bool] = True  # traces run through whole unrolls

    kind: Literal["impala"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="impala", description="which algorithm"
    )
    learning_rate: float = Field(default=6e-4, gt=0, description="Adam's step size")
    anneal_lr: bool = Field(
        default=False, description="let learning_rate fall linearly to 0 over stop.env_steps"
    )
    adam_eps: float = Field(default=1e-5, gt=0, description="Adam's epsilon")
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount per step")
    gae_lambda: float = Field(
        default=1.0, ge=0, le=1, description="further decay of V-trace's traces per step"
    )
    rho_clip: float = Field(
        default=1.0,
        gt=0,
        description="bound of the ratio of probabilities that weighs a step's own error; what the "
        "values converge to depends on it",
    )
    c_clip: float = Field(
        default=1.0,
        gt=0,
        description="bound of the ratio that hands later errors back; how fast values converge "
        "depends on it; in the paper at most rho_clip",
    )
    ent_coef: float = Field(
        default=0.01, ge=0, description="weight of the entropy bonus in the loss"
    )
    vf_coef: float = Field(default=0.5, ge=0, description="weight of the value loss in the loss")
    max_grad_norm: float = Field(
        default=0.5, gt=0, description="gradients longer than this are shortened"
    )
    num_minibatches: int = Field(
        default=1,
        ge=1,
        description="optimizer steps per batch, each on whole unrolls of as many environments",
    )
