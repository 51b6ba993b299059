"""What every table of an experiment file has in common, and how a table comes in several kinds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema


class Settings(BaseModel):
    """One table of an experiment file; an algorithm's own settings are a subclass.

    Immutable. Unknown keys, NaN, infinity, and values of a neighbouring type (`"3"`, `3.0` or
    `true` for 3) are refused; an integer is welcome where a float is wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Kinds:
    """Metadata of a field whose table's key `kind` chooses the table's model.

    A further kind is one more model. Pydantic's own discriminated union needs two kinds at least,
    and knows them all beforehand; an algorithm named `package.module:Class` brings its own.

    models: by kind; the first is the one for a table that does not say.
    """

    models: Mapping[str, type[Settings]]

    def model_for(self, table: Any) -> type[Settings] | None:
        """The model of the table's kind, or None if there is no such kind."""
        default = next(iter(self.models))
        kind = table.get("kind", default) if isinstance(table, Mapping) else default
        return self.models.get(kind) if isinstance(kind, str) else None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._choose, handler(source))

    def _choose(self, table: Any) -> Any:
        if isinstance(table, Settings):
            return table
        if not isinstance(table, Mapping):
            what = InitErrorDetails(type="dict_type", input=table)
            raise ValidationError.from_exception_data("table", [what])
        model = self.model_for(table)
        if model is not None:
            return model.model_validate(table)
        expected = " or ".join(repr(kind) for kind in self.models)
        raise ValidationError.from_exception_data(
            "kind",
            [
                InitErrorDetails(
                    type="literal_error",
                    loc=("kind",),
                    input=table["kind"],
                    ctx={"expected": expected},
                )
            ],
        )
