"""What `holdfast support-dump` takes away from what it gathers."""

from __future__ import annotations

import pytest

from holdfast.cli.commands.support_dump import without_secrets


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('password = "hunter2"', "password = REMOVED"),
        ('"admin_passwd": "a b"', '"admin_passwd": REMOVED'),
        ("rw,username=vm,password=x,vers=3", "rw,username=vm,password=REMOVED,vers=3"),
        (
            "rbd:pool/image:id=a:key=AQ==:auth_supported=cephx",
            "rbd:pool/image:id=a:key=REMOVED:auth_supported=REMOVED",
        ),
        ("iscsi://vm:geheim@10.0.0.1/iqn", "iscsi://vm:REMOVED@10.0.0.1/iqn"),
        ("API_KEY: 'k'", "API_KEY: REMOVED"),
        ("lockspace S: io_timeout_s = 10", "lockspace S: io_timeout_s = 10"),
        ("http://10.0.0.1:8080/x", "http://10.0.0.1:8080/x"),
    ],
)
def test_secrets_go_and_all_else_stays(text: str, kept: str) -> None:
    assert without_secrets(text) == kept
