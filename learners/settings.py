"""What every table of an experiment file has in common, and how a table comes in several kinds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, InitErrorDetails, core_schema


class Settings(BaseModel):
    """One table of an experiment file; an algorithm's own settings are a subclass.

    Immutable. Unknown keys, NaN, infinity, and values of a neighbouring type (`"3"`, `3.0` or
    `true` for 3) are refused; an integer is welcome where a float is wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AlgorithmSettings(Settings):
    """The table `[algorithm]`; the settings of an algorithm of your own are a subclass.

    needs_value: whether actors record the value of every observation. has_minibatches_of_envs:
    whether minibatches are made of whole environments, which `num_minibatches` must divide then; of
    steps otherwise.

    Three names mean something to the rest of an experiment. `num_minibatches: int`, where a
    subclass has it, must divide a batch. `anneal_lr: bool` says whether updates depend on
    `fraction_done`, which is 0 without it: then `stop.env_steps` must be there and belongs to
    `config_digest`. `gamma: float` is the discount of the returns that `normalize_rewards` goes by.
    """

    needs_value: ClassVar[bool] = False
    has_minibatches_of_envs: ClassVar[bool] = False

    kind: str = Field(default="", description="which algorithm")
    normalize_rewards: bool = Field(
        default=False,
        description="divide rewards by the standard deviation of the discounted return so far in "
        "an episode, and clip them to ±10; episode returns stay as they are",
    )

    @property
    def is_annealed(self) -> bool:
        """Whether updates depend on how much of the run is done."""
        return bool(getattr(self, "anneal_lr", False))


class UnreadAlgorithm(AlgorithmSettings):
    """The table of an algorithm of somebody's own, as it is: its class was not asked."""

    model_config = ConfigDict(extra="allow")
    needs_value: ClassVar[bool] = True  # as most do; who only acts may record too much

    kind: str = Field(pattern=":", description="package.module:Class of an algorithm of your own")


@dataclass(frozen=True)
class Kinds:
    """Metadata of a field whose table's key `kind` chooses the table's model.

    A further kind is one more model. Pydantic's own discriminated union needs two kinds at least,
    and knows them all beforehand; an algorithm named `package.module:Class` brings its own, which
    the validation's context maps its kind to.

    models: by kind; the first is the one for a table that does not say. unread: the model of a kind
    `package.module:Class` of which the context says nothing; None if there are no such kinds.
    """

    models: Mapping[str, type[Settings]]
    unread: type[Settings] | None = None

    @property
    def in_words(self) -> str:
        """The kinds there are."""
        names = [f'"{kind}"' for kind in self.models]
        return " or ".join([*names, *(['"package.module:Class"'] if self.unread else [])])

    def model_for(
        self, table: Any, own: Mapping[str, type[Settings]] | None = None
    ) -> type[Settings] | None:
        """The model of the table's kind, or None if there is no such kind.

        own: models of kinds `package.module:Class`, by kind.
        """
        default = next(iter(self.models))
        kind = table.get("kind", default) if isinstance(table, Mapping) else default
        if not isinstance(kind, str) or kind in self.models or self.unread is None:
            return self.models.get(kind) if isinstance(kind, str) else None
        return (own or {}).get(kind, self.unread) if ":" in kind else None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        # The field's own type is for the JSON schema only: every table is of the model chosen here.
        return core_schema.with_info_wrap_validator_function(self._choose, handler(source))

    def _choose(self, table: Any, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if isinstance(table, Settings):
            return table
        if not isinstance(table, Mapping):
            raise _wrong("dict_type", (), table)
        model = self.model_for(table, info.context)
        if model is None:
            raise _wrong("literal_error", ("kind",), table["kind"], expected=self.in_words)
        return model.model_validate(table)


def _wrong(kind: str, loc: tuple[str, ...], found: Any, **context: Any) -> ValidationError:
    details = InitErrorDetails(type=kind, loc=loc, input=found, ctx=context)
    return ValidationError.from_exception_data(kind, [details])
