"""`holdfast support-dump`: what somebody else needs to explain this host, in one archive, without secrets."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli import exits
from holdfast.cli.completion import FILE
from holdfast.cli.context import fail
from holdfast.model import printable

if TYPE_CHECKING:
    from holdfast.cli.context import Context

ITEM_S = 20.0
"""What takes longer (storage that hangs, a libvirtd that does not answer) is left out, and the archive says so."""
ITEM_BYTES_MAX = 8 << 20
OUR_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("version",),
    ("status", "--json"),
    ("list", "--json"),
    ("vm", "list", "--json"),
    ("lockspace", "list", "--json"),
    ("host", "list", "--json"),
    ("events", "--json"),
    ("doctor", "--json"),
    ("check-config", "--json"),
    ("config", "show"),
    ("config", "show", "--in-force"),
    ("explain-reset", "--json"),
)
OTHER_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("uname", "-a"),
    ("findmnt", "--json", "-o", "TARGET,SOURCE,FSTYPE,OPTIONS"),
    ("systemctl", "--no-pager", "status", "holdfastd.service", "holdfastd.socket", "libvirtd.service"),
    ("journalctl", "--no-pager", "-n", "5000", "-u", "holdfastd.service"),
    ("virsh", "--readonly", "version"),
    ("virsh", "--readonly", "list", "--all"),
    ("dpkg-query", "-W", "holdfast*", "libvirt-daemon*", "qemu-system*", "sanlock*"),
)
FILES = ("/etc/os-release", "/etc/libvirt/qemu-lockd.conf", "/etc/libvirt/qemu-sanlock.conf", "/proc/locks")
_SECRET = re.compile(
    r"(?i)\b([\w.-]*(?:passw(?:or)?d|secret|token|credential|auth|cephx?_?key|api_?key|private_?key)[\w.-]*)"
    r"(\s*[=:]\s*|\"\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s,;\"']+)"
)
_OF_CEPH = re.compile(r":key=[^:\s\"',]+")
"""In QEMU's name of an rbd disk."""
_IN_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@\"']*):[^\s/@\"']+@")


def without_secrets(text: str) -> str:
    """The text with the values of everything that is called like a secret replaced, and passwords in addresses."""
    text = _OF_CEPH.sub(":key=REMOVED", text)
    return _IN_ADDRESS.sub(r"\1:REMOVED@", _SECRET.sub(r"\1\2REMOVED", text))


@dataclass(frozen=True)
class Item:
    """One file of the archive, and where its content comes from."""

    name: str
    content: Callable[[], bytes]


@click.command("support-dump")
@click.argument("path", metavar="[FILE.tar.gz]", type=FILE, required=False)
@click.pass_obj
def support_dump(context: Context, path: str | None) -> None:
    """Write an archive for the people who help: state, configuration, events, notes, findings, logs. Changes nothing.

    Values that are called like a password, secret, token or key are replaced, as are passwords in addresses; names of VMs,
    disks and hosts stay. Read it before you send it. The file is readable by you alone, and must not exist yet.

    \b
    holdfast support-dump
    holdfast support-dump /root/host1.tar.gz

    Exit 0: written; 1: the file can't be written.
    """
    made = path or time.strftime(f"holdfast-{os.uname().nodename}-%Y%m%dT%H%M%S.tar.gz")
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        is_there = (
            "is a directory: name a file" if os.path.isdir(made) else "is there already, and stays as it is"
        )
        fail(f"{made} {is_there}", exits.FAILED)
    except OSError as e:
        fail(f"{made}: can't be written: {e.strerror}", exits.FAILED)
    failed = []
    with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for item in items(context):
            try:
                raw = item.content()
            except (OSError, subprocess.SubprocessError) as e:
                failed.append(item.name)
                raw = f"not there: {e}\n".encode()
            _add(archive, item.name, without_secrets(raw.decode("utf-8", "replace")).encode())
    more = f"; these of its files could not be gathered, and say why: {', '.join(failed)}" if failed else ""
    click.echo(printable(f"{made} is written{more}. Read it before you send it"))


def items(context: Context) -> Iterator[Item]:
    """What is gathered, in order."""
    program = [sys.executable, "-m", "holdfast.cli.main"]
    program += ["--config", context.config_file] if context.config_file else []
    program += ["--socket", context.socket] if context.socket else []
    for words in OUR_COMMANDS:
        yield Item(f"holdfast-{'-'.join(words).replace('--', '')}.txt", _said([*program, *words]))
    for words in OTHER_COMMANDS:
        yield Item(f"{'-'.join(words[:4]).replace('--', '').replace('*', '')}.txt", _said(list(words)))
    for path in FILES:
        yield Item(path.strip("/").replace("/", "-"), _read(path))
    state_dir = context.config().state_dir
    for name in ("before.jsonl", "latest.jsonl"):
        yield Item(f"flight-{name}", _read(f"{state_dir}/flight/{name}"))


def _said(words: list[str]) -> Callable[[], bytes]:
    def run() -> bytes:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=ITEM_S,
            check=False,
        )
        return done.stdout[-ITEM_BYTES_MAX:] + f"\n[exit {done.returncode}]\n".encode()

    return run


def _read(path: str) -> Callable[[], bytes]:
    def read() -> bytes:
        return Path(path).read_bytes()[-ITEM_BYTES_MAX:]

    return read


def _add(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    info = tarfile.TarInfo(f"holdfast-support/{name}")
    info.size, info.mtime, info.mode = len(raw), int(time.time()), 0o600
    archive.addfile(info, io.BytesIO(raw))
