"""libvirt's status files of one simulated machine: what they say of each virtual machine, and news of changes.

StatusFiles   the folder: written by libvirt, gone after a reset; it outlives a daemon
StatusPort    the `DomainStatus` of one life of the daemon over it; news may be lost, as inotify's are when they overflow
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from holdfast.system.libvirt.domains import Disk, Domain
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import VirtualMachine

NEWS_LOST = 0.3
"""How many changes nobody is told of: the daemon reads the files from time to time as well."""

OnChange = Callable[[str], None]


class StatusFiles:
    """By name of the virtual machine."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._files: dict[str, Domain] = {}
        self._unreadable: set[str] = set()
        self._watchers: list[tuple[Process, OnChange]] = []

    def write(
        self,
        vm: VirtualMachine,
        state: str = "running",
        *,
        reason: str = "booted",
        job: str = "",
        phase: str = "",
    ) -> None:
        """libvirt saves what it knows of a domain."""
        self._files[vm.name] = Domain(
            name=vm.name,
            uuid=vm.uuid,
            disks=(Disk(vm.disk, shareable=False),),
            backing=frozenset(),
            pid=vm.pid,
            state=state,
            async_job=job,
            phase=phase,
            reason=reason,
        )
        self._changed(vm.name)

    def remove(self, vm: VirtualMachine) -> None:
        """Its process has ended."""
        if self._files.pop(vm.name, None) is not None:
            self._changed(vm.name)

    def hide(self, vm: VirtualMachine, *, hidden: bool) -> None:
        """The file can't be read for a while."""
        (self._unreadable.add if hidden else self._unreadable.discard)(vm.name)

    def reset(self) -> None:
        """They are in memory."""
        self._files.clear()
        self._unreadable.clear()
        self._watchers.clear()

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        domain = None if name in self._unreadable else self._files.get(name)
        return domain if domain is not None and (domain.uuid, domain.pid) == (uuid, pid) else None

    def all(self) -> list[Domain]:
        return [domain for name, domain in self._files.items() if name not in self._unreadable]

    def watch(self, process: Process, on_change: OnChange) -> Callable[[], None]:
        watcher = (process, on_change)
        self._watchers.append(watcher)

        def stop() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return stop

    def _changed(self, name: str) -> None:
        for process, on_change in list(self._watchers):
            if process.alive and self._rng.random() >= NEWS_LOST:
                process.loop.call_soon(on_change, name)


class StatusPort:
    """`DomainStatus` and `WatchedStatus`."""

    def __init__(self, files: StatusFiles, process: Process) -> None:
        self._files = files
        self._process = process

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return self._files.look(name, uuid, pid)

    def running(self) -> list[Domain]:
        return self._files.all()

    def watch(self, on_change: OnChange) -> Callable[[], None]:
        return self._files.watch(self._process, on_change)
