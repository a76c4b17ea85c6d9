"""libvirt's configuration files: what we accept is what libvirt accepts. virtlockd reads its own with the same code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.cli import libvirt_conf

pytestmark = pytest.mark.interop

ACCEPTED = (
    "",
    "x = 1",
    "X=1\n",
    "\tx\t=\t1\n",
    "x = -5\n",
    "x = +5\n",
    "x = 9223372036854775807\n",
    f"x = {'0' * 5000}9\n",
    'x = ""\n',
    "x = 'a'\n",
    'x = """a"b\nc"""\n',
    'x = """"""\n',
    'x = "a" # c\n',
    'x = "a"; y = 9\n',
    'x = "a";\n',
    "x = 1 ; # c\n",
    "x = 1\r\n",
    "x = 1\ry = 2\n",
    "# c\n\n\nx=1\n",
    "# c\n  ",
    "x = 1\n\t\n#c\n",
    " \n x = 1\n",
    'x = [ "a", "b" ]\n',
    'x = [ "a",\n "b",\n ]\n',
    'x = [ "a"\n, "b"] # c\n',
    "x = [ ]\n",
    "x = [ [ 1 ] ]\n",
    'max_clients = 9\nmax_clients = "x"\n',  # the first one counts
    "log_filters = '1:x'\nlog_filters = 5\n",
)
TOO_LARGE = ("x = 9223372036854775808\n", "x = 99999999999999999999\n", "x = -9223372036854775810\n")
"""Of these libvirt 9.0 reads another number, and 11.3 refuses the file."""
REFUSED = (
    "\n",
    "   \n",
    "\ufeffx = 1\n",
    "x = lockd\n",
    'x = "a\n',
    'x = "a\nb"\n',
    "x = 'a\nb'\n",
    'x = "a\\"b"\n',
    'x = """a\n',
    'x = "a" b\n',
    "x = ''''''\n",
    'x "a"\n',
    "x\n= 1\n",
    "x =\n 1\n",
    "_x = 1\n",
    "1x = 1\n",
    "x-y = 1\n",
    "x.y = 1\n",
    "x = 1 2\n",
    "x = 5a\n",
    "x = 0x5\n",
    "x = -\n",
    "x = --5\n",
    "x = ä\n",
    "x=1\x0by=2\n",
    "x = 1\0y\n",
    ";x = 1\n",
    "x = 1;;y = 2\n",
    "x = 1\n;\n",
    'x = [ "a" 1 ]\n',
    'x = [ "a", # c\n "b" ]\n',
    "x = [,]\n",
    'x = ["a" , , "b"]\n',
    'x = ["a"\n',
    'x = ["a"] 5\n',
    'max_clients = "x"\nmax_clients = 9\n',
)


def libvirt_says(place: Path, text: str) -> str:
    """Its error; empty if it has started with the file."""
    file = place / "virtlockd.conf"
    file.write_bytes(text.encode())
    program = shutil.which("virtlockd", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program is not None, (
        "these tests compare with a real virtlockd: as root, run tools/debian-packages test"
    )
    private = "mount -t tmpfs holdfast-test /run && mkdir -p /run/libvirt && "
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", f"{private}exec {program} -f {file} -t 1"],
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
        errors="replace",
    )
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("text", ACCEPTED)
def test_file_that_libvirt_accepts_is_accepted(text: str, tmp_path: Path) -> None:
    assert libvirt_says(tmp_path, text) == ""
    assert libvirt_conf.parse(text).error == ""


@pytest.mark.parametrize("text", TOO_LARGE)
def test_number_that_newer_libvirt_refuses_is_refused(text: str, tmp_path: Path) -> None:
    said = libvirt_says(tmp_path, text)
    assert said == "" or "numeric overflow" in said
    assert "a number of at most 9223372036854775807" in libvirt_conf.parse(text).error


@pytest.mark.parametrize("text", REFUSED)
def test_file_that_libvirt_refuses_is_refused(text: str, tmp_path: Path) -> None:
    assert "Can't load config file" in libvirt_says(tmp_path, text)
    conf = libvirt_conf.parse(text)
    assert conf.error or conf.get("max_clients") != conf.settings[-1], (
        "a type, which the reader of a key checks"
    )
