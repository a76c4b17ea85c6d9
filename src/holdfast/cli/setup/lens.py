"""libvirt's files, changed by libvirt's own augeas lenses: the lens knows their grammar, and refuses what it can't read.

augtool works on a copy, so that the new text can be shown and compared before the file itself is replaced.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

LENS_DIRECTORIES = ("/usr/share/augeas/lenses", "/usr/share/augeas/lenses/dist")
AUGTOOL_S = 60.0
PLACE = "/etc/file"
"""Of the copy, below the root that augtool is given."""


class NotEdited(Exception):
    """Why a file was not changed; the text names the file and what to do."""


def cannot_edit(lens: str) -> str:
    """Why this host can't edit files by a lens such as `Libvirtd_qemu.lns`, with the package; empty if it can."""
    if shutil.which("augtool") is None:
        return "augtool is missing, by which setup edits libvirt's files: apt-get install augeas-tools"
    module = lens.partition(".")[0].lower()
    if not any(glob.glob(f"{each}/{module}.aug") for each in LENS_DIRECTORIES):
        return (
            f"libvirt's augeas lens {module}.aug is missing, by which setup edits libvirt's files: apt-get install "
            "libvirt-daemon-driver-qemu"
        )
    return ""


def edited(path: str, raw: bytes, lens: str, settings: Sequence[tuple[str, str]]) -> bytes:
    """The bytes of a file with these settings; raises `NotEdited`. The file itself is not touched."""
    with tempfile.TemporaryDirectory(prefix="holdfast-setup-") as root:
        copy = root + PLACE
        os.mkdir(os.path.dirname(copy))
        with open(copy, "wb") as f:
            f.write(raw)
        if (
            line := _ask(root, lens, [f"print /augeas/files{PLACE}/error/line"])
            .rpartition(" = ")[2]
            .strip('"\n ')
        ):
            raise NotEdited(
                f"{path}, line {line}: libvirt's augeas lens can't read it; correct that line first"
            )
        commands = []
        for key, value in settings:
            place = f"/files{PLACE}"
            comment = f'{place}/#comment[. =~ regexp("{key} *=.*")]'
            # Beside the line that libvirt ships as a comment, where there is one.
            if not _ask(root, lens, [f"match {place}/{key}"]).startswith("/files") and _ask(
                root, lens, [f"match {comment}"]
            ).startswith("/files"):
                commands.append(f"ins {key} after {comment}[last()]")
            commands.append(f'set {place}/{key}[1] "{value}"')
        _ask(root, lens, [*commands, "save"])
        with open(copy, "rb") as f:
            changed = f.read()
    if changed == raw:
        raise NotEdited(f"{path}: augtool changed nothing")
    return changed


def _ask(root: str, lens: str, commands: Sequence[str]) -> str:
    words = ["augtool", "--noload", "--noautoload", "--root", root]
    words += [f"--include={each}" for each in LENS_DIRECTORIES[:1]]
    words += ["--transform", f"{lens} incl {PLACE}"]
    try:
        done = subprocess.run(
            words,
            input="\n".join(["load", *commands]) + "\n",
            capture_output=True,
            text=True,
            timeout=AUGTOOL_S,
            check=False,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise NotEdited(f"augtool: {e}") from None
    if done.returncode != 0 or done.stderr.strip():
        raise NotEdited(f"augtool: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
