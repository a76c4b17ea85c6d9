"""A survey of libvirt's status files says which it could not read: a VM may be behind each."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.system.libvirt.domains import LibvirtStatusFiles

DOMAIN = (
    "<domstatus state='running' reason='booted' pid='{pid}'><domain><name>{name}</name></domain></domstatus>"
)
NOBODY = 2**22 + 1
"""No process has such a pid: it is above the kernel's maximum."""


def write(folder: Path, name: str, text: str) -> Path:
    """As libvirt does: the file is replaced as a whole."""
    new = folder / f"{name}.new"
    new.write_text(text)
    return new.rename(folder / f"{name}.xml")


def test_survey_has_living_vms_and_names_what_it_can_not_read(tmp_path: Path) -> None:
    status = LibvirtStatusFiles(str(tmp_path))
    write(tmp_path, "alive", DOMAIN.format(name="alive", pid=os.getpid()))
    write(tmp_path, "begins", DOMAIN.format(name="begins", pid=0))
    write(tmp_path, "dead", DOMAIN.format(name="dead", pid=NOBODY))
    cut = write(tmp_path, "cut", DOMAIN[:30])
    nobody = write(tmp_path, "strange", "<domain><name>strange</name></domain>")
    (tmp_path / "alive.pid").touch()
    seen = status.survey()
    assert [domain.name for domain in seen.domains] == ["alive", "begins"]
    assert seen.unread == (str(cut), str(nobody))
    cut.unlink()
    nobody.unlink()
    assert status.survey().unread == ()


def test_survey_reads_a_file_again_only_when_libvirt_has_replaced_it(tmp_path: Path) -> None:
    status = LibvirtStatusFiles(str(tmp_path))
    write(tmp_path, "v1", DOMAIN.format(name="v1", pid=os.getpid()))
    (first,) = status.survey().domains
    assert status.survey().domains[0] is first
    write(tmp_path, "v1", DOMAIN.format(name="v1", pid=os.getpid()).replace("running", "stopped"))
    assert status.survey().domains[0].state == "stopped"
    (tmp_path / "v1.xml").unlink()
    assert status.survey().domains == ()


def test_folder_that_can_not_be_listed_is_in_doubt(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert LibvirtStatusFiles(missing).survey().unread == (missing,)
