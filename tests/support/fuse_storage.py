"""Storage that stalls, fails and delays on command: a FUSE file system that passes a directory through.

It speaks the kernel's protocol of /dev/fuse itself, for the few operations that lockspaces and lease files need, so
nothing has to be installed. Every file is opened with FOPEN_DIRECT_IO: each read and write of the program under test,
O_DIRECT or not, comes here and nowhere else, as on a disk.

    healthy      answered at once
    stall        no request is answered until it is healthy again; who waits cannot even be killed, as with a dead path
    stall-writes N   no write to the file with that inode number is; all else goes on
    fail         reads, writes and whatever changes the directory get EIO
    delay S      answered S seconds late

The server is a process of its own (`python fuse_storage.py`), and reads its orders from standard input, so
that no test can hang in its own file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_REQUEST = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_REPLY = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_ATTR_VALID = struct.Struct("<QII")
_STATFS = struct.Struct("<QQQQQIIII24x")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_MAJOR, _MINOR = 7, 31
_WRITE_BYTES_MAX = 1 << 20
_REQUEST_BYTES_MAX = _WRITE_BYTES_MAX + 4096
_ATOMIC_O_TRUNC, _BIG_WRITES, _MAX_PAGES = 1 << 3, 1 << 5, 1 << 22
_FOPEN_DIRECT_IO = 1
_ROOT = 1
_WRITE = 16
_THREADS = 64
"""Requests of programs under test that may hang here at once."""
_NO_REPLY = object()
_MS_NOSUID, _MS_NODEV, _MNT_DETACH = 2, 4, 2


class _Mood:
    """What is done to requests now."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._word, self._number = "healthy", 0.0

    def become(self, word: str, number: float = 0.0) -> None:
        with self._changed:
            self._word, self._number = word, number
            self._changed.notify_all()

    def suffer(self, *, touches_disk: bool, written: int | None) -> None:
        """Before a request is performed. Raises what is to be answered."""
        with self._changed:
            delay_s = self._number if self._word == "delay" else 0.0
        time.sleep(delay_s)
        with self._changed:
            while self._word == "stall" or (self._word, self._number) == ("stall-writes", written):
                self._changed.wait()
            if self._word == "fail" and touches_disk:
                raise OSError(errno.EIO, os.strerror(errno.EIO))


class _Server:
    """The file system over one directory. A node is an inode below it, pinned by a descriptor that only names it."""

    def __init__(self, source: str, device: int, mood: _Mood) -> None:
        self._device = device
        self._mood = mood
        self._lock = threading.Lock()
        self._nodes: dict[int, tuple[int, int]] = {_ROOT: (os.open(source, os.O_PATH), 1)}
        """Node to its descriptor and how often the kernel was told of it."""
        self._operations: dict[int, tuple[Callable[[int, bytes], object], bool]] = {
            1: (self._lookup, False),
            2: (self._forget, False),
            3: (self._getattr, False),
            4: (self._setattr, True),
            9: (self._mkdir, True),
            10: (self._unlink, True),
            12: (self._rename, True),
            13: (self._link, True),
            14: (self._open, False),
            15: (self._read, True),
            _WRITE: (self._write, True),
            17: (self._statfs, False),
            18: (self._release, False),
            20: (self._fsync, True),
            25: (lambda node, body: b"", False),  # FLUSH
            26: (self._init, False),
            27: (self._opendir, False),
            28: (self._readdir, False),
            29: (self._release, False),
            30: (self._fsync, True),
            35: (self._create, True),
            36: (lambda node, body: _NO_REPLY, False),  # INTERRUPT: a disk can't be interrupted
            42: (self._batch_forget, False),
        }

    _AT_ONCE = frozenset({2, 18, 26, 29, 36, 42})
    """Operations that are no request to a disk: they never wait."""

    def serve(self) -> None:
        with ThreadPoolExecutor(_THREADS) as threads:
            while True:
                try:
                    raw = os.read(self._device, _REQUEST_BYTES_MAX)
                except OSError as e:
                    if e.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue  # the request was taken back
                    return  # unmounted
                if int.from_bytes(raw[4:8], "little") in self._AT_ONCE:
                    self._answer(raw)
                else:
                    threads.submit(self._answer, raw)

    def _answer(self, raw: bytes) -> None:
        _, opcode, unique, node, *_ = _REQUEST.unpack_from(raw)
        body: object = b""
        number = 0
        try:
            operation, touches_disk = self._operations[opcode]
            if opcode not in self._AT_ONCE:
                self._mood.suffer(touches_disk=touches_disk, written=node if opcode == _WRITE else None)
            body = operation(node, raw[_REQUEST.size :])
        except KeyError:
            number = errno.ENOSYS
        except OSError as e:
            number = e.errno or errno.EIO
        if body is _NO_REPLY:
            return
        assert isinstance(body, bytes)
        reply = _REPLY.pack(_REPLY.size + len(body), -number, unique) + body
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(self._device, reply)

    # --- nodes ---

    def _path(self, node: int) -> str:
        with self._lock:
            return f"/proc/self/fd/{self._nodes[node][0]}"

    def _child(self, node: int, name: bytes) -> str:
        return os.path.join(self._path(node), os.fsdecode(name.rstrip(b"\0")))

    def _entry(self, path: str) -> bytes:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        found = os.fstat(fd)
        with self._lock:
            known, count = self._nodes.get(found.st_ino, (fd, 0))
            if known != fd:
                os.close(fd)
            self._nodes[found.st_ino] = known, count + 1
        return _ENTRY.pack(found.st_ino, 0, 0, 0, 0, 0) + _attr(found)

    def _drop(self, node: int, count: int) -> None:
        with self._lock:
            fd, known = self._nodes[node]
            if node != _ROOT and known <= count:
                del self._nodes[node]
                os.close(fd)
            else:
                self._nodes[node] = fd, known - count

    def _forget(self, node: int, body: bytes) -> object:
        self._drop(node, struct.unpack_from("<Q", body)[0])
        return _NO_REPLY

    def _batch_forget(self, _: int, body: bytes) -> object:
        (count,) = struct.unpack_from("<I", body)
        for at in range(count):
            self._drop(*struct.unpack_from("<QQ", body, 8 + 16 * at))
        return _NO_REPLY

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._child(node, body))

    def _getattr(self, node: int, _: bytes) -> bytes:
        return _ATTR_VALID.pack(0, 0, 0) + _attr(os.stat(self._path(node)))

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size, _, _, _, _, _, _, _, mode, _, uid, gid = struct.unpack_from(
            "<IIQQQQQQIIIIIII", body
        )
        path = self._path(node)
        if valid & 1:
            os.chmod(path, mode & 0o7777)
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(path, size)
        return self._getattr(node, b"")

    # --- directories ---

    def _mkdir(self, node: int, body: bytes) -> bytes:
        mode, umask = struct.unpack_from("<II", body)
        path = self._child(node, body[8:])
        os.mkdir(path)
        os.chmod(path, mode & ~umask & 0o7777)
        return self._entry(path)

    def _unlink(self, node: int, body: bytes) -> bytes:
        os.unlink(self._child(node, body))
        return b""

    def _rename(self, node: int, body: bytes) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        before, after = body[8:].split(b"\0")[:2]
        os.rename(self._child(node, before), self._child(target, after))
        return b""

    def _link(self, node: int, body: bytes) -> bytes:
        (old,) = struct.unpack_from("<Q", body)
        name = os.fsdecode(body[8:].rstrip(b"\0"))
        with self._lock:
            directory = self._nodes[node][0]
        # Only with a directory does Python call linkat(), which follows /proc/self/fd to the file itself.
        os.link(self._path(old), name, dst_dir_fd=directory, follow_symlinks=True)
        return self._entry(self._child(node, body[8:]))

    def _opendir(self, node: int, _: bytes) -> bytes:
        return struct.pack("<QII", os.open(self._path(node), os.O_RDONLY | os.O_DIRECTORY), 0, 0)

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for at, name in enumerate(sorted(os.listdir(self._path(node)))[offset:], offset + 1):
            encoded = os.fsencode(name)
            entry = struct.pack("<QQII", 1, at, len(encoded), 0) + encoded
            entry = entry.ljust(-(-len(entry) // 8) * 8, b"\0")
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def _statfs(self, node: int, _: bytes) -> bytes:
        s = os.statvfs(self._path(node))
        return _STATFS.pack(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax, s.f_frsize, 0
        )  # fmt: skip

    # --- files ---

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        kept = flags & (os.O_ACCMODE | os.O_TRUNC)
        return struct.pack("<QII", os.open(self._path(node), kept), _FOPEN_DIRECT_IO, 0)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        path = self._child(node, body[16:])
        fd = os.open(path, (flags & (os.O_ACCMODE | os.O_EXCL)) | os.O_CREAT, mode & 0o7777)
        return self._entry(path) + struct.pack("<QII", fd, _FOPEN_DIRECT_IO, 0)

    def _release(self, _: int, body: bytes) -> bytes:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def _read(self, _: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(fd, size, offset)

    def _write(self, _: int, body: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(fd, body[40 : 40 + size], offset), 0)

    def _fsync(self, _: int, body: bytes) -> bytes:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def _init(self, _: int, body: bytes) -> bytes:
        _, _, readahead, flags = struct.unpack_from("<IIII", body)
        wanted = flags & (_ATOMIC_O_TRUNC | _BIG_WRITES | _MAX_PAGES)
        return _INIT_OUT.pack(
            _MAJOR, _MINOR, readahead, wanted, _THREADS, _THREADS, _WRITE_BYTES_MAX, 1,
            _WRITE_BYTES_MAX // 4096, 0, 0,
        )  # fmt: skip


def _attr(found: os.stat_result) -> bytes:
    def whole_and_rest(ns: int) -> tuple[int, int]:
        return divmod(ns, 1_000_000_000)

    times = [whole_and_rest(ns) for ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
    return _ATTR.pack(
        found.st_ino,
        found.st_size,
        found.st_blocks,
        *(whole for whole, _ in times),
        *(rest for _, rest in times),
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        4096,
        0,
    )


def _mount(device: int, at: str, kind: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"faulty", os.fsencode(at), kind.encode(), _MS_NOSUID | _MS_NODEV, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), at)


def _main(source: str, at: str, kind: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    _mount(device, at, kind)
    mood = _Mood()
    threading.Thread(target=_Server(source, device, mood).serve, daemon=True).start()
    print("mounted", flush=True)
    for line in sys.stdin:
        word, *number = line.split()
        if word == "end":
            break
        mood.become(word, *map(float, number))
        print(word, flush=True)
    # The descriptor's end aborts whatever still waits here: nobody hangs longer than this process lives.
    os._exit(0)


class FaultyStorage:
    """A mounted one, from the outside: `at` is where programs under test look, `source` where nothing ever goes wrong."""

    def __init__(self, source: Path, at: Path, kind: str = "fuse", *, enter: Sequence[str] = ()) -> None:
        """`kind`: the type in the mount table, as "fuse.glusterfs", by which programs judge what a lock there is worth.
        `enter`: a command that runs others in a mount namespace, where both directories are; the mount goes with that.
        """
        self.source, self.at = source, at
        if not enter:
            for directory in (source, at):
                directory.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-P", str(Path(__file__).resolve()), str(source), str(at), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("mounted")

    def healthy(self) -> None:
        self._become("healthy")

    def stall(self) -> None:
        self._become("stall")

    def stall_writes(self, path: Path) -> None:
        """To one file behind it."""
        self._become(f"stall-writes {path.stat().st_ino}")

    def fail(self) -> None:
        self._become("fail")

    def delay(self, seconds: float) -> None:
        self._become(f"delay {seconds}")

    def close(self) -> None:
        """Whoever still waits gets an error, then the mount goes."""
        # A word, and not the end of the pipe: processes that a test forked have it open too.
        self._process.communicate("end\n")
        ctypes.CDLL(None).umount2(os.fsencode(self.at), _MNT_DETACH)

    def _become(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._expect(line.split(maxsplit=1)[0])

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line == word, f"the faulty storage said {line!r}, not {word!r}"


if __name__ == "__main__":
    _main(*sys.argv[1:])
