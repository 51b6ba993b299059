"""The JSON schema of experiment files, so that an editor completes and checks them.

`python -m rollout.schema` writes it to configs/schema.json, or to the path given.
"""

import json
import sys
from pathlib import Path
from typing import Any

from rollout.experiment import Experiment


def schema_text() -> str:
    """The schema as JSON, the same for the same models."""
    schema = Experiment.model_json_schema()
    for table in [schema, *schema["$defs"].values()]:
        # A file may leave to another file that it extends, or to an override, what it must have.
        table.pop("required", None)
        for name, field in table["properties"].items():
            field.pop("title", None)
            if "$ref" in field:
                table["properties"][name] = {"$ref": field["$ref"]}
    schema["properties"] = {
        "extends": {
            "description": "path, from this file, of an experiment file that this one changes",
            "type": "string",
        },
        **schema["properties"],
    }
    del schema["properties"]["name"]["default"]  # it is the file's name
    document: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "rollout experiment",
        "description": "An experiment of rollout: what is trained, in what, how, and until when.",
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(*sys.argv[1:2] or ["configs/schema.json"]).write_text(schema_text(), encoding="utf-8")
