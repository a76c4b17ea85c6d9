"""Whether the configuration on disk is the one that the daemon works with.

Each start and reload keeps the configuration in force in RUN_DIR (`kept_config`), so a command can compare without
the daemon.
"""

from __future__ import annotations

from holdfast.config import Config

KEYS_NAMED_MAX = 6


def not_loaded(on_disk: Config, in_force: Config | None) -> str:
    """The keys that differ, with both values; empty if none do, or if nothing was kept."""
    if in_force is None:
        return ""
    old, new = _flat(in_force), _flat(on_disk)
    changes = [
        f"{key}: {old.get(key, 'not there')} -> {new.get(key, 'not there')}"
        for key in (*new, *(each for each in old if each not in new))
        if old.get(key) != new.get(key)
    ]
    more = f" and {len(changes) - KEYS_NAMED_MAX} more" if len(changes) > KEYS_NAMED_MAX else ""
    return "; ".join(changes[:KEYS_NAMED_MAX]) + more


def _flat(config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in config.__struct_fields__:
        value = getattr(config, key)
        if key in ("sources", "rule_sources"):
            continue
        if key == "backend":
            for name, table in value.items():
                found.update({f"backend.{name}.{each}": repr(what) for each, what in table.items()})
        elif key == "disk":
            for number, rule in enumerate(value, 1):
                found[f"disk[{number}]"] = ", ".join(
                    f"{each} = {what!r}"
                    for each in rule.__struct_fields__
                    if (what := getattr(rule, each)) not in (None, 0)
                )
        elif hasattr(value, "__struct_fields__"):
            found.update({f"{key}.{each}": repr(getattr(value, each)) for each in value.__struct_fields__})
        else:
            found[key] = repr(value)
    return found
