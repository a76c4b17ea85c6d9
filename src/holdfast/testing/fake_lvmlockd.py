"""A lvmlockd for tests: it speaks the socket of the real one, and what all hosts hold is in one file.

Each host of a test runs one, over the same file, which is locked while a request is served. There is no storage, no
sanlock and no waiting for one: a request that another host is in the way of is refused at once.

    python -m holdfast.testing.fake_lvmlockd --socket PATH --modes FILE --host-id N --vg VG [--vg VG ...]

Of the requests it serves hello, lock_lv and query_lock_lv; any other gets no answer, as from the real one. Where a lease is
checked, an LV has to be made known first (`Modes.add_lv`).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.wire import lvmlockd as wire
from holdfast.wire.lvmlockd import LvLock, Mode, OpResult

_PIECE_BYTES = 1 << 16
LOCK_TYPE = "sanlock"
"""Of its groups."""
_LOOK_AGAIN_S = 0.05
"""Whether a client that waits has gone."""
_OP_LOCK, _OP_QUERY = 7, 23
"""`op` of the answers."""


@dataclass(slots=True)
class State:
    """What the file says. `held`: by LV UUID, hosts' modes by their ids; `leases`: LV UUIDs by `lv_lock_args`."""

    held: dict[str, dict[str, str]] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)


class Modes:
    """The file that hosts share."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def locked(self) -> Iterator[State]:
        """Its content, for this caller alone; changes are written at the end. One that is killed changes nothing."""
        with open(f"{self._path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = self._path.read_text() if self._path.exists() else ""
            state = State(**json.loads(text)) if text else State()
            yield state
            after = json.dumps({"held": state.held, "leases": state.leases}, indent=1)
            if after != text:
                new = Path(f"{self._path}.new")
                new.write_text(after)
                new.replace(self._path)

    def add_lv(self, lock: LvLock) -> None:
        """It has its lease from now on, as `lvcreate` leaves it."""
        with self.locked() as state:
            state.leases[lock.lv_lock_args] = lock.lv_uuid

    def of(self, lv_uuid: str) -> dict[int, Mode]:
        """Who holds it: modes by host id."""
        with self.locked() as state:
            return {int(host): Mode(mode) for host, mode in state.held.get(lv_uuid, {}).items()}


class FakeLvmlockd:
    """One host's; serves from construction to `close`, each client by a thread.

    `checks_leases`: an LV that was not added is refused, as is one with another one's place. `killed_vgs` and
    `starting_vgs` may be changed at any time, and so may `vgs`: those that are started on this host.
    """

    def __init__(
        self, path: Path, modes: Modes, host_id: int, vgs: Sequence[str], *, checks_leases: bool = False
    ) -> None:
        self.vgs = set(vgs)
        self.starting_vgs: set[str] = set()
        self.killed_vgs: set[str] = set()
        self._modes = modes
        self._host = str(host_id)
        self._checks_leases = checks_leases
        self._connections: set[socket.socket] = set()
        self._passing: dict[str, dict[socket.socket, Mode]] = {}
        """Locks of this host that end with a connection, by LV UUID."""
        self._persistent: set[str] = set()
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._socket.bind(str(path))
        self._socket.listen()
        with modes.locked() as state:
            self._persistent |= {uuid for uuid, held in state.held.items() if self._host in held}
        threading.Thread(target=self._accept, name="fake-lvmlockd", daemon=True).start()

    def close(self) -> None:
        """As when it is killed: what this host holds stays in the file."""
        with self._changed:
            self._passing.clear()
        for each in (self._socket, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def drop_vg(self, vg: str, lv_uuids: Sequence[str]) -> None:
        """`lvmlockctl --drop`: locks and lockspace go."""
        with self._changed, self._modes.locked() as state:
            for uuid in lv_uuids:
                state.held.get(uuid, {}).pop(self._host, None)
                self._persistent.discard(uuid)
        self.killed_vgs.discard(vg)
        self.vgs.discard(vg)

    # --- connections ---

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        framer = wire.Framer()
        with contextlib.suppress(OSError, wire.MalformedText):
            while piece := connection.recv(_PIECE_BYTES):
                messages = framer.feed(piece)
                if not messages:
                    continue
                framer = wire.Framer()  # what was sent before the answer is dropped
                answer = self._answered(wire.decode(messages[0]), connection)
                if answer:
                    connection.sendall(wire.encode(answer))
        self._connections.discard(connection)
        connection.close()
        self._ended(connection)

    def _ended(self, connection: socket.socket) -> None:
        with self._changed:
            for uuid, passing in self._passing.items():
                if passing.pop(connection, None) is not None:
                    self._write_mode(uuid)
            self._changed.notify_all()

    # --- requests ---

    def _answered(self, keys: dict[str, str], connection: socket.socket) -> dict[str, str | int]:
        """Empty: none is sent."""
        match keys.get("request"):
            case wire.HELLO:
                return {
                    "response": "OK",
                    "result": 0,
                    "protocol": wire.PROTOCOL,
                    "version": wire.VERSION,
                }
            case wire.QUERY_LOCK_LV:
                result, mode = self._queried(keys)
                return {
                    "response": "OK",
                    "op": _OP_QUERY,
                    "op_result": result,
                    "lock_type": LOCK_TYPE,
                    "mode": mode.value,
                }
            case wire.LOCK_LV:
                result = self._locked(keys, connection)
                of_manager = result in (OpResult.HELD_ELSEWHERE, OpResult.LOCK_MANAGER_FAILED)
                return {
                    "response": "OK",
                    "op": _OP_LOCK,
                    "lock_type": LOCK_TYPE,
                    "op_result": result,
                    "lm_result": result if of_manager else 0,
                    "result_flags": "none",
                }
            case _:
                return {}

    def _standing(self, keys: dict[str, str]) -> OpResult:
        vg = keys.get("vg_name", "")
        if vg in self.starting_vgs:
            return OpResult.LOCKSPACE_STARTING
        if vg not in self.vgs:
            return OpResult.NO_LOCKSPACE
        if keys.get("vg_lock_type") != LOCK_TYPE:
            return OpResult.INVALID
        return OpResult.VG_KILLED if vg in self.killed_vgs else OpResult.DONE

    def _queried(self, keys: dict[str, str]) -> tuple[OpResult, Mode]:
        if result := self._standing(keys):
            return result, Mode.INVALID
        with self._modes.locked() as state:
            held = state.held.get(keys.get("lv_uuid", ""), {})
            return OpResult.DONE, Mode(held.get(self._host, Mode.UNLOCKED))

    def _locked(self, keys: dict[str, str], connection: socket.socket) -> OpResult:
        uuid, persistent = keys.get("lv_uuid", ""), wire.PERSISTENT in keys.get("opts", "").split(",")
        standing = self._standing(keys)
        if keys.get("mode") == Mode.UNLOCKED and standing in (OpResult.DONE, OpResult.VG_KILLED):
            return self._given_up(uuid, connection, persistent)
        if standing:
            return standing
        if keys.get("mode") not in (Mode.SHARED, Mode.EXCLUSIVE):
            return OpResult.INVALID
        mode = Mode(keys["mode"])
        with self._changed:
            while self._local_client_in_the_way(uuid, mode, connection):
                self._changed.wait(_LOOK_AGAIN_S)
                if _has_ended(connection):
                    return OpResult.NOT_HELD  # and nobody reads it
            return self._taken(uuid, mode, connection, keys.get("lv_lock_args", ""), persistent)

    def _local_client_in_the_way(self, uuid: str, mode: Mode, connection: socket.socket) -> bool:
        others = [held for client, held in self._passing.get(uuid, {}).items() if client is not connection]
        return bool(others) and Mode.EXCLUSIVE in (mode, *others)

    def _taken(
        self, uuid: str, mode: Mode, connection: socket.socket, place: str, persistent: bool
    ) -> OpResult:
        with self._modes.locked() as state:
            if self._checks_leases and state.leases.get(place) != uuid:
                return OpResult.LOCK_MANAGER_FAILED
            held = state.held.setdefault(uuid, {})
            if persistent and uuid in self._persistent and held.get(self._host) == mode:
                return OpResult.HELD_SO_ALREADY
            others = [each for host, each in held.items() if host != self._host]
            if others and Mode.EXCLUSIVE in (mode, *others):
                return OpResult.HELD_ELSEWHERE
            if persistent or uuid not in self._persistent:
                held[self._host] = mode.value
        if persistent:
            self._persistent.add(uuid)
        else:
            self._passing.setdefault(uuid, {})[connection] = mode
        return OpResult.DONE

    def _given_up(self, uuid: str, connection: socket.socket, persistent: bool) -> OpResult:
        with self._changed:
            if persistent:
                if uuid not in self._persistent:
                    return OpResult.NOT_HELD
                self._persistent.discard(uuid)
            elif self._passing.get(uuid, {}).pop(connection, None) is None:
                return OpResult.NOT_HELD
            self._write_mode(uuid)
            self._changed.notify_all()
        return OpResult.DONE

    def _write_mode(self, uuid: str) -> None:
        """After something of this host ended: a persistent lock keeps its mode, else that of its clients is left."""
        if uuid in self._persistent:
            return
        left = list(self._passing.get(uuid, {}).values())
        with self._modes.locked() as state:
            held = state.held.setdefault(uuid, {})
            held.pop(self._host, None)
            if left:
                held[self._host] = left[0].value


def _has_ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="fake_lvmlockd")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--modes", type=Path, required=True)
    parser.add_argument("--host-id", type=int, required=True)
    parser.add_argument("--vg", action="append", required=True)
    given = parser.parse_args(arguments)
    FakeLvmlockd(given.socket, Modes(given.modes), given.host_id, given.vg)
    threading.Event().wait()


if __name__ == "__main__":
    main()
