"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="An experiment file.", show_default=False)
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings over those of the file: fleet.num_actors=4. A value is TOML, or else text.",
        show_default=False,
    ),
]

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN",
        help="Directories of runs; a folder of runs stands for all of them.",
        show_default=False,
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
