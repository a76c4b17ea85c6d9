"""What a command prints with --json against the schema that ships, closed: no key but those that it names."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import jsonschema

from holdfast.cli.json_schema import FILE


@cache
def _closed() -> dict[str, Any]:
    schema: dict[str, Any] = copy.deepcopy(json.loads(FILE.read_text()))
    for definition in schema["$defs"].values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    return schema


def why_not(command: str, output: object) -> str:
    """Why this is no output of a command (a key of `COMMANDS`); empty if it is one."""
    schema = {**_closed(), "$ref": f"#/$defs/{command.replace(' ', '%20')}"}
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(output))
    return "" if error is None else f"{command}: {error.json_path}: {error.message}"
