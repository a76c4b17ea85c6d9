"""Worked examples of the virtlockd protocol, captured from the real daemon (virtlockd-rpc.md 2.4)."""

from __future__ import annotations

import uuid

from holdfast.wire import libvirt_rpc as rpc
from holdfast.wire import virtlockd as wire


def raw(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


LOCKSPACE = "/var/lib/libvirt/lockd/files"
IMAGE = "/var/lib/libvirt/images/a.img"

CALLS: dict[str, tuple[bytes, int, int, wire.Call]] = {
    "create_lockspace": (
        raw("""0000003c 0ea7beef 00000001 00000008 00000000 00000000 00000000 0000001c
               2f766172 2f6c6962 2f6c6962 76697274 2f6c6f63 6b642f66 696c6573"""),
        0,
        wire.PROC_CREATE_LOCKSPACE,
        wire.CreateLockspace(LOCKSPACE),
    ),
    "register": (
        raw("""00000040 0ea7beef 00000001 00000001 00000000 00000001 00000000 a4950ce2
               51c74aba 802243e1 697781b0 00000003 766d3100 00000001 000002e8 00000000"""),
        1,
        wire.PROC_REGISTER,
        wire.Register(uuid.UUID("a4950ce2-51c7-4aba-8022-43e1697781b0").bytes, "vm1", 1, 744, 0),
    ),
    "acquire": (
        raw("""00000048 0ea7beef 00000001 00000006 00000000 00000002 00000000 00000000
               0000001d 2f766172 2f6c6962 2f6c6962 76697274 2f696d61 6765732f 612e696d
               67000000 00000000"""),
        2,
        wire.PROC_ACQUIRE_RESOURCE,
        wire.ResourceCall("", IMAGE, 0),
    ),
    "acquire_indirect": (
        raw("""00000084 0ea7beef 00000001 00000006 00000000 00000004 00000000 0000001c
               2f766172 2f6c6962 2f6c6962 76697274 2f6c6f63 6b642f66 696c6573 00000040
               31373735 36373530 64393161 65313162 34376433 32333936 32343261 39653833
               33393337 66303261 62343835 36393230 31666532 39623161 39346563 62353230
               00000002"""),
        4,
        wire.PROC_ACQUIRE_RESOURCE,
        wire.ResourceCall(
            LOCKSPACE,
            "17756750d91ae11b47d32396242a9e833937f02ab48569201fe29b1a94ecb520",
            wire.ACQUIRE_AUTOCREATE,
        ),
    ),
    "release": (
        raw("""00000048 0ea7beef 00000001 00000007 00000000 00000005 00000000 00000000
               0000001d 2f766172 2f6c6962 2f6c6962 76697274 2f696d61 6765732f 612e696d
               67000000 00000000"""),
        5,
        wire.PROC_RELEASE_RESOURCE,
        wire.ResourceCall("", IMAGE, 0),
    ),
    "restrict": (
        raw("00000020 0ea7beef 00000001 00000002 00000000 00000007 00000000 00000000"),
        7,
        wire.PROC_RESTRICT,
        wire.Restrict(0),
    ),
}
"""name -> (bytes, serial, procedure, what it means)."""

_BUSY = f"Lockspace resource '{IMAGE}' is locked"
_NO_FILE = "Unable to open resource /nope: No such file or directory"

REPLIES: dict[str, tuple[bytes, rpc.ErrorReply | None]] = {
    "create_lockspace": (raw("0000001c 0ea7beef 00000001 00000008 00000001 00000000 00000000"), None),
    "register": (raw("0000001c 0ea7beef 00000001 00000001 00000001 00000001 00000000"), None),
    "acquire": (raw("0000001c 0ea7beef 00000001 00000006 00000001 00000002 00000000"), None),
    "busy": (
        raw("""000000f0 0ea7beef 00000001 00000006 00000001 00000003 00000001 00000057
               00000033 00000001 0000004b 7265736f 75726365 20627573 793a204c 6f636b73
               70616365 20726573 6f757263 6520272f 7661722f 6c69622f 6c696276 6972742f
               696d6167 65732f61 2e696d67 27206973 206c6f63 6b656400 00000002 00000000
               00000001 00000011 7265736f 75726365 20627573 793a2025 73000000 00000001
               0000003c 4c6f636b 73706163 65207265 736f7572 63652027 2f766172 2f6c6962
               2f6c6962 76697274 2f696d61 6765732f 612e696d 67272069 73206c6f 636b6564
               00000000 ffffffff ffffffff 00000000"""),
        rpc.ErrorReply(
            code=87, domain=51, message=f"resource busy: {_BUSY}", str1="resource busy: %s", str2=_BUSY
        ),
    ),
    "no_file": (
        raw("""000000c8 0ea7beef 00000001 00000006 00000001 00000006 00000001 00000026
               00000033 00000001 00000038 556e6162 6c652074 6f206f70 656e2072 65736f75
               72636520 2f6e6f70 653a204e 6f207375 63682066 696c6520 6f722064 69726563
               746f7279 00000002 00000000 00000001 00000002 25730000 00000001 00000038
               556e6162 6c652074 6f206f70 656e2072 65736f75 72636520 2f6e6f70 653a204e
               6f207375 63682066 696c6520 6f722064 69726563 746f7279 00000000 00000002
               ffffffff 00000000"""),
        rpc.ErrorReply(code=38, domain=51, message=_NO_FILE, str1="%s", str2=_NO_FILE, int1=2),
    ),
    "unknown_procedure": (
        raw("""00000088 0ea7beef 00000001 00000063 00000001 00000008 00000001 00000027
               00000007 00000001 00000015 756e6b6e 6f776e20 70726f63 65647572 653a2039
               39000000 00000002 00000000 00000001 00000002 25730000 00000001 00000015
               756e6b6e 6f776e20 70726f63 65647572 653a2039 39000000 00000000 ffffffff
               ffffffff 00000000"""),
        rpc.ErrorReply(
            code=39, domain=7, message="unknown procedure: 99", str1="%s", str2="unknown procedure: 99"
        ),
    ),
}
"""name -> (bytes, the error in it; None for success)."""

PING = raw("0000001c 6b656570 00000001 00000001 00000002 00000000 00000000")
PONG = raw("0000001c 6b656570 00000001 00000002 00000002 00000000 00000000")
UNKNOWN_PROCEDURE = raw("0000001c 0ea7beef 00000001 00000063 00000000 00000008 00000000")
