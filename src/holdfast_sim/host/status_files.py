"""libvirt's status files of one simulated machine: the state of each virtual machine, and notifications of changes.

StatusFiles   the folder: written by libvirt, lost at a reset; it outlives a daemon
StatusPort    its `DomainStatus` for one run of the daemon; notifications may be lost, as inotify's at an overflow
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from holdfast.system.libvirt.domains import Disk, Domain
from holdfast_sim.event_loop import Process
from holdfast_sim.host.machine import VirtualMachine

NEWS_LOST = 0.3
"""The share of changes without a notification: the daemon also reads the files from time to time."""

OnChange = Callable[[str], None]


class StatusFiles:
    """Status by the name of the virtual machine."""

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
        """libvirt writes the status of a domain."""
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
        """Remove the file of a virtual machine whose process has ended."""
        if self._files.pop(vm.name, None) is not None:
            self._changed(vm.name)

    def hide(self, vm: VirtualMachine, *, hidden: bool) -> None:
        """Make the file unreadable for a while."""
        (self._unreadable.add if hidden else self._unreadable.discard)(vm.name)

    def reset(self) -> None:
        """Remove all files: /run is in memory."""
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
    """`DomainStatus` and `WatchedStatus` of one run of the daemon."""

    def __init__(self, files: StatusFiles, process: Process) -> None:
        self._files = files
        self._process = process

    def look(self, name: str, uuid: str, pid: int) -> Domain | None:
        return self._files.look(name, uuid, pid)

    def running(self) -> list[Domain]:
        return self._files.all()

    def watch(self, on_change: OnChange) -> Callable[[], None]:
        return self._files.watch(self._process, on_change)
