"""A configuration written as TOML that loads to the same."""

from __future__ import annotations

import re

import msgspec

from holdfast.config import TABLES, TOP, Config


def to_toml(config: Config) -> str:
    """The whole effective configuration, as TOML that loads to the same."""
    lines = [f"# from: {', '.join(config.sources) or 'built-in defaults'}"]
    lines += [f"{key} = {to_toml_value(getattr(config, key))}" for key in TOP]
    for name in TABLES:
        table = getattr(config, name)
        lines += ["", f"[{name}]"]
        lines += [
            f"{key} = {to_toml_value(value)}"
            for key in table.__struct_fields__
            if (value := getattr(table, key)) is not None
        ]
    for name, backend in config.backend.items():
        lines += ["", f"[backend.{_key(name)}]"]
        lines += [f"{_key(key)} = {to_toml_value(value)}" for key, value in backend.items()]
    for rule in config.disk:
        lines += ["", "[[disk]]"]
        for key in rule.__struct_fields__:
            if (value := getattr(rule, key)) is not None:
                lines.append(f"{key} = {to_toml_value(value)}")
    for action in config.hook_actions:
        lines += ["", "[[hook.actions]]"]
        for key in action.__struct_fields__:
            if (value := getattr(action, key)) is not None:
                lines.append(f"{key} = {to_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else to_toml_value(name)


def to_toml_value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
            return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(to_toml_value(v) for v in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{_key(str(k))} = {to_toml_value(v)}" for k, v in value.items()) + " }"
        case _:
            return to_toml_value(str(value))
