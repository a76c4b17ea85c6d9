"""Every kind of disk, as libvirt 9.0, 11.3 and 12.8 write it: none is dropped, each has its mode, name and reason.

The files are of the real programs (12.8 writes an empty source for a drive without a medium), shortened; those of pools that
no libvirt here has a driver for say so.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.system.libvirt.domain_disks import NEVER_ASKED, Access, DomainDisk, Kind, Role
from holdfast.system.libvirt.domains import Domain, parse_domain, read_domain
from holdfast.system.libvirt.storage_pools import find_volume
from holdfast.system.libvirt.xml_text import NotUnderstood

FIXTURES = Path(__file__).resolve().parents[1] / "data"
VERSIONS = ("9.0", "11.3", "12.8")
EXCLUSIVE, SHARED, READ_ONLY = Access.EXCLUSIVE, Access.SHARED, Access.READ_ONLY


def fixture(version: str, name: str) -> Domain:
    folder = FIXTURES / f"libvirt-{version}"
    domain = read_domain(
        str(folder / f"{name}.xml"), (str(folder / "run-storage"), str(folder / "etc-storage"))
    )
    assert domain is not None
    return domain


def disk(element: str, pools: tuple[str, ...] = ()) -> DomainDisk:
    raw = f"<domain><name>web</name><uuid>u</uuid><devices>{element}</devices></domain>"
    (found,) = parse_domain(raw.encode(), pools).every
    return found


# --- what real libvirts write ---

IQN = "iqn.2026-11.example:disks"
DEFINED: list[tuple[str, Kind, Access, str, str]] = [
    ("9.0", Kind.NETWORK, EXCLUSIVE, "rbd:pool/image@s1", ""),
    ("9.0", Kind.NETWORK, EXCLUSIVE, f"iscsi:{IQN}/3", ""),
    ("9.0", Kind.NETWORK, EXCLUSIVE, "gluster:vol/dir/a.img", ""),
    ("9.0", Kind.NETWORK, READ_ONLY, "https://web.example:443/images/a.iso", ""),
    ("9.0", Kind.NETWORK, EXCLUSIVE, "ssh://ssh.example:22/images/b.img", ""),
    ("9.0", Kind.NETWORK, EXCLUSIVE, "nfs://nfs.example/export/a.img", ""),
    ("9.0 alone", Kind.NETWORK, EXCLUSIVE, "sheepdog:vdi", ""),
    ("9.0", Kind.NETWORK, EXCLUSIVE, "nbd://[::1]:10810/x", ""),
    ("9.0", Kind.NVME, EXCLUSIVE, "nvme://0000:01:00.0/1", ""),
    ("9.0", Kind.DIR, READ_ONLY, "/srv/fat", "/srv/fat"),
    ("9.0", Kind.VOLUME, EXCLUSIVE, "iscsi/unit:0:0:1", ""),
    ("9.0", Kind.BLOCK, EXCLUSIVE, "/dev/vg/web", "/dev/vg/web"),
    ("9.0", Kind.VHOSTUSER, EXCLUSIVE, "vhostuser:/run/vhost.sock", ""),
    ("11.3", Kind.VHOSTVDPA, EXCLUSIVE, "vhostvdpa:/dev/vhost-vdpa-0", ""),
]
"""The first libvirt that has it, and what is read from it."""


@pytest.mark.parametrize("version", VERSIONS)
def test_each_kind_of_a_definition_is_read(version: str) -> None:
    has = {"9.0": {"9.0", "9.0 alone"}}.get(version, {"9.0", "11.3"})
    wanted = [each[1:] for each in DEFINED if each[0] in has]
    if version == "9.0":  # its folder has the file of that pool: QEMU itself reaches the target
        lost = wanted.index((Kind.VOLUME, EXCLUSIVE, "iscsi/unit:0:0:1", ""))
        wanted[lost] = (Kind.NETWORK, EXCLUSIVE, f"iscsi:{IQN}/1", "")
    domain = fixture(version, "defined-kinds")
    assert [(d.kind, d.access, d.name, d.path) for d in domain.every] == wanted
    assert [d.path for d in domain.disks] == ["/dev/vg/web"], (
        "what libvirt asks locks for by a path that is known"
    )
    assert domain.readonly == {"/srv/fat"}
    assert {d.kind for d in domain.unlocked} == {k for k, access, *_ in wanted if access is not READ_ONLY} - {
        Kind.BLOCK,
        Kind.VOLUME,
    }
    assert {d.why_unlocked for d in domain.unlocked} == {NEVER_ASKED}
    assert [str(d) for d in domain.unresolved] == ([] if version == "9.0" else ["iscsi/unit:0:0:1 (vdj)"])


@pytest.mark.parametrize("version", VERSIONS)
def test_volume_of_a_running_vm_is_the_file_that_libvirt_locks(version: str) -> None:
    (volume,) = fixture(version, "running-volume").every
    assert (volume.kind, volume.path, volume.access) == (Kind.VOLUME, "/srv/pool/web.img", EXCLUSIVE)
    assert volume.is_asked_for


def test_newer_status_file_knows_the_path_of_a_volume_whose_pool_is_gone() -> None:
    for version in VERSIONS:
        domain = read_domain(str(FIXTURES / f"libvirt-{version}" / "running-volume.xml"), ())
        assert domain is not None
        if version == "9.0":
            assert (domain.disks, [str(d) for d in domain.unresolved]) == ((), ["images/web.img (vda)"])
            assert "no file of libvirt has its pool 'images'" in domain.unresolved[0].reason
        else:
            assert ([d.path for d in domain.disks], domain.unresolved) == (["/srv/pool/web.img"], ())


@pytest.mark.parametrize("version", VERSIONS)
def test_nbd_disks_of_a_running_vm_have_no_lock(version: str) -> None:
    domain = fixture(version, "running-nbd")
    assert (domain.pid, domain.state) == (4242, "running")
    assert [str(d) for d in domain.unlocked] == [
        "nbd://localhost:10809/export1 (vda)",
        "nbd+unix:///?socket=/srv/nbd.sock (vdb)",
    ]
    assert domain.disks == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_chain_copy_and_modes_of_a_running_vm_are_read(version: str) -> None:
    domain = fixture(version, "running-chain")
    assert [(d.target, d.access, d.path) for d in domain.every] == [
        ("vda", EXCLUSIVE, "/srv/top.qcow2"),
        ("vdb", READ_ONLY, "/srv/ro.img"),
        ("vdc", SHARED, "/srv/shared.img"),
    ]
    assert [(d.path, d.shareable, d.cache) for d in domain.disks] == [
        ("/srv/top.qcow2", False, ""),
        ("/srv/shared.img", True, "none"),
    ]
    assert domain.backing == {"/srv/mid.qcow2", "/srv/base.raw"}
    assert domain.readonly == {"/srv/ro.img"}
    assert [str(each) for each in domain.unguarded] == [
        "backing image of vda /srv/mid.qcow2",
        "backing image of vda /srv/base.raw",
    ], "the target of the copy has a lock"
    assert [each.path for each in domain.every[2].parts if each.role is Role.COPY] == ["/srv/copy.raw"]


@pytest.mark.parametrize("version", VERSIONS)
def test_data_file_is_shown_where_libvirt_knows_it(version: str) -> None:
    domain = fixture(version, "running-store")
    assert [d.path for d in domain.disks] == ["/srv/ext.qcow2"]
    known = [] if version == "9.0" else ["data file of vda /srv/data.raw"]
    assert [str(each) for each in domain.unguarded] == known
    assert domain.backing == set(() if version == "9.0" else ("/srv/data.raw",)), "a block job asks for it"


@pytest.mark.parametrize("version", VERSIONS)
def test_vhostuser_disk_of_a_running_vm_has_no_lock(version: str) -> None:
    assert [str(d) for d in fixture(version, "running-vhostuser").unlocked] == [
        "vhostuser:/srv/vu.sock (vda)"
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("running-nvram", "NVRAM /srv/vars.fd"),
        ("defined-nvram-file", "NVRAM /srv/vars.fd"),
        ("defined-nvram-net", "NVRAM iscsi:iqn.2026-11.example:vars/0"),
        ("defined-kinds", "TPM state /var/lib/libvirt/swtpm/11111111-1111-4111-8111-111111111106/tpm2"),
    ],
)
def test_nvram_and_tpm_state_are_shown(version: str, name: str, part: str) -> None:
    assert [str(each) for each in fixture(version, name).unguarded] == [part]


def test_parts_that_only_newer_libvirt_has_are_shown() -> None:
    assert [str(each) for each in fixture("11.3", "defined-tpm-source").unguarded] == [
        "TPM state /srv/tpm/web"
    ]
    assert [str(each) for each in fixture("12.8", "defined-tpm-source").unguarded] == [
        "TPM state /srv/tpm/web"
    ]
    assert [str(each) for each in fixture("12.8", "defined-varstore").unguarded] == ["NVRAM /srv/vars.json"]


def test_drive_without_a_medium_is_no_disk_without_a_lock() -> None:
    for version in VERSIONS:
        (drive,) = fixture(version, "running-nvram").every
        assert (drive.kind, drive.why_unlocked, drive.is_asked_for) == (Kind.EMPTY, "", False)
    floppy = disk("<disk type='file' device='floppy'><source startupPolicy='optional'/></disk>")
    assert (floppy.kind, floppy.why_unlocked) == (Kind.EMPTY, "")


def test_cd_is_only_read_and_a_floppy_is_written() -> None:
    cd = disk("<disk type='file' device='cdrom'><source file='/a.iso'/></disk>")
    assert (cd.access, cd.path, cd.is_asked_for, cd.why_unlocked) == (READ_ONLY, "/a.iso", False, "")
    assert disk("<disk type='file' device='floppy'><source file='/a.img'/></disk>").is_asked_for


# --- pools ---


@pytest.mark.parametrize(
    ("version", "source", "kind", "name"),
    [
        ("9.0", "pool='images' volume='a.img'", Kind.VOLUME, "/srv/pool/a.img"),
        ("9.0", "pool='logical' volume='web'", Kind.VOLUME, "/dev/vg/web"),
        (
            "9.0",
            "pool='iscsi' volume='unit:0:0:4' mode='direct'",
            Kind.NETWORK,
            f"iscsi:{IQN}/4",
        ),
        ("12.8", "pool='ceph' volume='a'", Kind.NETWORK, "rbd:pool/a"),
        ("12.8", "pool='gluster' volume='a'", Kind.NETWORK, "gluster:vol/sub/a"),
        ("12.8", "pool='direct' volume='unit:0:0:4'", Kind.NETWORK, f"iscsi:{IQN}/4"),
        ("12.8", "pool='sheep' volume='a'", Kind.NETWORK, "sheepdog:a"),
        ("12.8", "pool='x' volume='a' actualType='block' dev='/dev/vg/a'", Kind.VOLUME, "/dev/vg/a"),
        ("12.8", "pool='ceph' volume='a' actualType='network'", Kind.NETWORK, "rbd:pool/a"),
        ("12.8", "pool='lost' volume='a' actualType='network'", Kind.NETWORK, "lost/a"),
    ],
)
def test_volume_is_what_its_pool_makes_of_it(version: str, source: str, kind: Kind, name: str) -> None:
    folder = FIXTURES / f"libvirt-{version}"
    pools = (str(folder / "run-storage"), str(folder / "etc-storage"))
    found = disk(f"<disk type='volume'><source {source}/><target dev='vda'/></disk>", pools)
    assert (found.kind, found.name, found.reason) == (kind, name, "")
    assert found.path == (name if kind is Kind.VOLUME else "")
    assert found.why_unlocked == ("" if kind is Kind.VOLUME else NEVER_ASKED)


@pytest.mark.parametrize(
    ("source", "name", "reason"),
    [
        ("pool='iscsi' volume='unit:0:0:4'", "iscsi/unit:0:0:4", "only libvirt knows the paths"),
        ("pool='lost' volume='a'", "lost/a", "no file of libvirt has its pool 'lost'"),
        ("pool='images' volume='../a'", "images/../a", "its name is no file's"),
        ("pool='../images' volume='a'", "../images/a", "its pool or volume has no name"),
        ("volume='a'", "/a", "its pool or volume has no name"),
        ("pool='damaged' volume='a'", "damaged/a", "damaged.xml can't be read: it is no XML"),
    ],
)
def test_volume_that_can_not_be_found_is_asked_for_all_the_same(
    tmp_path: Path, source: str, name: str, reason: str
) -> None:
    (tmp_path / "damaged.xml").write_text("<pool")
    pools = (
        str(tmp_path),
        str(FIXTURES / "libvirt-9.0/run-storage"),
        str(FIXTURES / "libvirt-9.0/etc-storage"),
    )
    found = disk(f"<disk type='volume'><source {source}/></disk>", pools)
    assert (found.kind, found.name, found.path, found.is_asked_for) == (Kind.VOLUME, name, "", True)
    assert reason in found.reason


# --- what is not understood ---


@pytest.mark.parametrize(
    ("element", "kind", "reason"),
    [
        ("<disk type='ram'><source size='1'/></disk>", Kind.UNKNOWN, "does not know disks of that type"),
        ("<disk type='file'/>", Kind.UNKNOWN, "it has no source"),
        ("<disk type='file'><source fdgroup='x'/></disk>", Kind.UNKNOWN, "does not say where it is"),
        ("<disk type='block'><source file='/x'/></disk>", Kind.UNKNOWN, "does not say where it is"),
        ("<disk type='network'><source name='x'/></disk>", Kind.NETWORK, "does not say where it is"),
        ("<disk type='nvme'><source namespace='1'/></disk>", Kind.NVME, "does not say where it is"),
        (
            "<disk type='nvme'><source namespace='1'><address bus='bus'/></source></disk>",
            Kind.NVME,
            "does not say where it is",
        ),
        ("<disk type='vhostuser'><source type='unix'/></disk>", Kind.VHOSTUSER, "does not say where it is"),
        ("<disk type='vhostvdpa'><source/></disk>", Kind.VHOSTVDPA, "it has no source"),
    ],
)
def test_disk_that_is_not_understood_is_there_with_its_reason(element: str, kind: Kind, reason: str) -> None:
    found = disk(element)
    assert (found.kind, found.path, found.is_asked_for) == (kind, "", False)
    assert reason in found.reason
    assert found.why_unlocked, "nothing says that it has a lock"


def test_one_network_disk_has_one_name() -> None:
    ways = (
        "<host name='San.example'/>",
        "<host name='san.example' port='3260'/>",
        "<host name='san.example' port='3260' transport='tcp'/>",
        "<host name='portal2.example' port='860'/>",
    )
    names = {
        disk(f"<disk type='network'><source protocol='iscsi' name='{name}'>{host}</source></disk>").name
        for host in ways
        for name in (IQN, f"{IQN}/0")
    }
    assert names == {f"iscsi:{IQN}/0"}
    source = "<source protocol='gluster' name='v/a'><host name='{}'/><host name='{}'/></source>"
    first, second = (
        disk(f"<disk type='network'>{source.format(*each)}</disk>").name for each in (("b", "a"), ("a", "b"))
    )
    assert first == second == "gluster:v/a"


# --- files that libvirt did not write ---


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no XML"),
        (b"<domain", "no XML"),
        (b"<domain/><domain/>", "no XML"),
        (b"<?xml version='1.0' encoding='nonsense'?><domain/>", "no XML"),
        (b"<pool/>", "there is no <domain> in it"),
        ("<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>".encode("utf-16"), "document type"),
        (
            "<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>".encode("utf-16-le"),
            "document type",
        ),
        (b"<?xml version='1.0'?><!DOCTYPE d><domain/>", "document type"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><!DOCTYPE d><domain/>", "document type"),
        (b"<!DOCTYPE d [<!ENTITY a 'aaaaaaaa'>]><domain><name>&a;</name></domain>", "document type"),
    ],
)
def test_what_is_no_domain_is_one_named_error(raw: bytes, reason: str) -> None:
    with pytest.raises(NotUnderstood, match=reason):
        parse_domain(raw, ())


def test_declaration_and_a_comment_about_document_types_are_fine() -> None:
    raw = "<?xml version='1.0' encoding='UTF-16'?><!-- no <!DOCTYPE d> --><domain><name>\N{SNOWMAN}</name></domain>"
    assert parse_domain(raw.encode("utf-16"), ()).name == "\N{SNOWMAN}"
    assert parse_domain(raw.replace("16", "8").encode(), ()).name == "\N{SNOWMAN}"


def test_entities_are_refused_before_they_grow() -> None:
    grown = "".join(f"<!ENTITY e{i} '{f'&e{i - 1};' * 10}'>" for i in range(1, 12))
    bomb = f"<!DOCTYPE d [<!ENTITY e0 'x'>{grown}]><domain><name>&e11;</name></domain>"
    with pytest.raises(NotUnderstood, match="document type"):
        parse_domain(bomb.encode(), ())


def test_deep_chain_is_read_as_far_as_its_bound() -> None:
    store = "<backingStore type='file'><source file='/b'/>"
    deep = store * 100_000 + "</backingStore>" * 100_000
    found = disk(f"<disk type='file'><source file='/a'/>{deep}</disk>")
    assert (found.path, len(found.parts)) == ("/a", 1024)


@pytest.mark.parametrize("pid", ["\N{SUPERSCRIPT TWO}", "1" * 5000, "-1", ""])
def test_pid_that_is_no_number_is_none(pid: str) -> None:
    raw = f"<domstatus pid='{pid}'><domain><name>w</name></domain></domstatus>"
    assert parse_domain(raw.encode(), ()).pid is None


def test_file_that_is_no_file_or_too_large_is_no_answer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.xml")
    large = tmp_path / "large.xml"
    large.write_bytes(b"<domain>" + b" " * (4 << 20) + b"</domain>")
    for path in (tmp_path / "fifo.xml", large, tmp_path, tmp_path / "missing.xml"):
        assert read_domain(str(path)) is None


REAL = [path.read_bytes() for path in sorted(FIXTURES.glob("libvirt-*/*.xml"))]
PIECES = st.sampled_from(
    [b"<domain>", b"</domain>", b"<devices>", b"</devices>", b"<disk type='", b"'>", b"</disk>", b"<source ", b"/>",
     b"volume", b"network", b"nvme", b"file='/a'", b"<!DOCTYPE d>", b"&a;", b"\xff", b"\0", b"<backingStore>"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=24).map(b"".join)))
@example(
    b"<domain><devices><disk type='nvme'><source namespace='1'><address bus=''/></source></disk></devices></domain>"
)
def test_any_bytes_give_a_domain_or_the_named_error(raw: bytes) -> None:
    _value_or_error(raw)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(REAL), st.data())
def test_damaged_files_give_a_domain_or_the_named_error(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw)))
    how = data.draw(st.sampled_from(("cut", "lost", "changed")))
    if how == "cut":
        _value_or_error(raw[:at])
    elif how == "lost":
        _value_or_error(raw[:at] + raw[at + data.draw(st.integers(1, 200)) :])
    else:
        _value_or_error(raw[:at] + data.draw(st.binary(min_size=1, max_size=4)) + raw[at + 1 :])


POOL_FILES = [path.read_bytes() for path in sorted(FIXTURES.glob("libvirt-*/*-storage/*.xml"))]


@settings(deadline=None, max_examples=100)
@given(
    st.one_of(st.binary(max_size=64), st.sampled_from(POOL_FILES)), st.integers(0, 600), st.binary(max_size=3)
)
def test_damaged_pool_gives_a_path_a_name_or_a_reason(raw: bytes, at: int, changed: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "p.xml").write_bytes(raw[:at] + changed + raw[at + 1 :])
        found = find_volume("p", "a.img", (folder,))
    assert sum(map(bool, (found.path, found.network_name, found.reason))) == 1
    assert not found.path or found.path.startswith("/")


def _value_or_error(raw: bytes) -> None:
    try:
        domain = parse_domain(raw, ())
    except NotUnderstood as e:
        assert str(e)
        return
    assert len(domain.disks) + len(domain.unresolved) + len(domain.unlocked) <= len(domain.every)
    for each in domain.every:
        asked = each.is_asked_for or each.access is READ_ONLY or each.kind is Kind.EMPTY
        assert asked or each.why_unlocked, "each disk has a lock, needs none, or says why it has none"
