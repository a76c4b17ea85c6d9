"""Whether the configuration on disk is the one that the daemon works with.

Each start and reload keeps the configuration in force in RUN_DIR (`kept_config`), so a command can compare without
the daemon. To learn what this version makes of that file takes the whole program, and time that a person notices
(`kept_config`); where it says the same as the files on disk, word for word, nobody needs that.
"""

from __future__ import annotations

from holdfast.config import Config
from holdfast.daemon import kept_file
from holdfast.system.files.regular_file import Unreadable
from holdfast.system.host.process import boot_id

KEYS_NAMED_MAX = 6


def edited(on_disk: Config, config_file: str | None) -> str:
    """The keys of the configuration on disk that are not loaded, as `not_loaded`."""
    run_dir = kept_file.run_dir_of(config_file)
    text = kept_file.read(run_dir)
    if isinstance(text, Unreadable):
        return ""
    written = kept_file.decode(text, kept_file.kept_path(run_dir), boot_id())
    if isinstance(written, Unreadable) or not not_loaded(on_disk, written.config):
        return ""
    from holdfast.daemon import kept_config

    return not_loaded(on_disk, kept_config.in_force(config_file))


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
