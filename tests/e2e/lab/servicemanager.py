"""A service manager of one service, with a descriptor store: what systemd does for holdfastd, and nothing
else.

The hosts of the lab have no systemd.  This stands in for it where the tests need the descriptor store
(sd_notify(3), FileDescriptorStoreMax=, Restart=always): it keeps the descriptors that the service sends it,
drops those that hang up, and hands the rest to the next instance at the numbers from 3 up, named in
LISTEN_FDNAMES.

    SIGHUP    systemctl restart: SIGTERM to the service, then a new instance
    SIGTERM   systemctl stop: SIGTERM to the service, and the end
    a crash   a new instance at once

It imports nothing of the project, because it runs as a script in a host: servicemanager.py PID-FILE
COMMAND...
"""

import os
import select
import signal
import socket
import sys

NOTIFY = "lab-notify"
FIRST_FD = 3
MOVED_FDS_FROM = 500
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


class Manager:
    """The service, its store, and the next thing to do."""

    def __init__(self, pid_file: str, command: list[str]) -> None:
        self.pid_file = pid_file
        self.command = command
        self.store: list[tuple[str, int]] = []
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(f"\0{NOTIFY}")
        self.stopping = False
        self.main_pid = 0
        self.wake_reader, self.wake_writer = os.pipe()
        os.set_blocking(self.wake_writer, False)

    def run(self) -> int:
        """Until told to stop; returns the service's exit code."""
        signal.set_wakeup_fd(self.wake_writer)
        for number in SIGNALS:
            signal.signal(number, self.on_signal)
        self.start()
        while True:
            self.wait()
            pid, status = os.waitpid(self.main_pid, os.WNOHANG)
            if pid == 0:
                continue
            self.take_notifications()
            if self.stopping:
                return os.waitstatus_to_exitcode(status)
            self.start()

    def on_signal(self, number: int, _frame: object) -> None:
        """Orders go on to the service; the end of a child only wakes the loop."""
        if number == signal.SIGCHLD:
            return
        self.stopping = number == signal.SIGTERM
        os.kill(self.main_pid, signal.SIGTERM)

    def wait(self) -> None:
        """For the next thing to do; descriptors that hang up leave the store, as in systemd."""
        poll = select.poll()
        poll.register(self.notify, select.POLLIN)
        poll.register(self.wake_reader, select.POLLIN)
        for _, fd in self.store:
            poll.register(fd, 0)
        for fd, events in poll.poll():
            if fd == self.notify.fileno():
                self.take_notifications()
            elif fd == self.wake_reader:
                os.read(fd, 512)
            elif events & (select.POLLHUP | select.POLLERR):
                self.drop([stored for stored in self.store if stored[1] == fd])

    def take_notifications(self) -> None:
        """All that the service has said so far."""
        while select.select([self.notify], [], [], 0)[0]:
            message, fds, _, _ = socket.recv_fds(self.notify, 4096, 64)
            words = dict(line.partition("=")[::2] for line in message.decode().splitlines())
            name = words.get("FDNAME", "stored")
            if words.get("FDSTORE") == "1":
                self.store += [(name, fd) for fd in fds]
                continue
            for fd in fds:
                os.close(fd)
            if words.get("FDSTOREREMOVE") == "1":
                self.drop([stored for stored in self.store if stored[0] == name])

    def drop(self, leaving: list[tuple[str, int]]) -> None:
        """Close and forget."""
        for stored in leaving:
            os.close(stored[1])
            self.store.remove(stored)

    def start(self) -> None:
        """A new instance, with everything that is in the store."""
        self.main_pid = os.fork()
        if self.main_pid:
            with open(f"{self.pid_file}.new", "w", encoding="ascii") as file:
                file.write(str(self.main_pid))
            os.rename(f"{self.pid_file}.new", self.pid_file)
            return
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        # Out of the way first: a descriptor may sit on a number that another one needs.
        moved = [os.dup2(fd, MOVED_FDS_FROM + i, inheritable=False) for i, (_, fd) in enumerate(self.store)]
        for i, fd in enumerate(moved):
            os.dup2(fd, FIRST_FD + i, inheritable=True)
        environ = os.environ | {"NOTIFY_SOCKET": f"@{NOTIFY}", "FDSTORE": "4096"}
        if self.store:
            environ |= {
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDS": str(len(self.store)),
                "LISTEN_FDNAMES": ":".join(name for name, _ in self.store),
            }
        os.execve(self.command[0], self.command, environ)


if __name__ == "__main__":
    sys.exit(Manager(sys.argv[1], sys.argv[2:]).run())
