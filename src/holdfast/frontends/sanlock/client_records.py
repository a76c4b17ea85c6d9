"""STATUS's records of clients (sanlock-socket.md 2.9)."""

from __future__ import annotations

from holdfast.frontends.sanlock.clients import Client
from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.wire.sanlock.command import Command
from holdfast.wire.sanlock.state_records import PID_NONE, VERSION_3_8_5, RecordType, StateRecord, key_words


def client_record(client: Client) -> StateRecord:
    """Of one connection; a process is named when it is registered."""
    pid = client.pid if client.registered and not client.dead else -1
    words: dict[str, object] = {
        "ci": client.client_id,
        "fd": client.fd,
        "pid": pid,
        "flags": 0,
        "restricted": f"{client.restricted:x}",
        "cmd_active": _number(client.active),
        "cmd_last": _number(client.last),
        "pid_dead": int(client.dead),
        "kill_count": client.kill_count,
        "kill_last": client.kill_last_s,
        "suspend": 0,
        "need_free": 0,
    }
    name = client.name.encode("utf-8", "surrogateescape")[:NAME_BYTES]
    return StateRecord(
        RecordType.CLIENT,
        data32=pid & PID_NONE,
        name=PaddedName(name.ljust(NAME_BYTES, b"\0")),
        text=key_words(RecordType.CLIENT, words, VERSION_3_8_5),  # the same in all later ones
    )


def _number(command: Command | None) -> int:
    return 0 if command is None else command.value


def name_of_command(command: Command) -> str:
    """What `status` calls a connection that is not registered: the command that it sent last."""
    return _NAMES.get(command, f"cmd{command.value}")


_NAMES = {
    Command.STATUS: "status",
    Command.ADD_LOCKSPACE: "add_lockspace",
    Command.REM_LOCKSPACE: "rem_lockspace",
    Command.INQ_LOCKSPACE: "inq_lockspace",
    Command.SHUTDOWN: "shutdown",
    Command.LOG_DUMP: "log_dump",
    Command.HOST_STATUS: "host_status",
}
