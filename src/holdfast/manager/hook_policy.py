"""A site's own policy for libvirt's hook (`[[hook.actions]]`): the lock of a disk at a start and at an arrival. PURE.

A start gets the lock that the domain's XML asks for, or is refused if the policy demands the other one: a lock that is not
what libvirt asks for later would not last. A guest that arrives gets its disks when it is about to run; where the policy
says so, they are acquired at its `prepare` already. Then a guest whose source holds its disk does not arrive, unless both
hold it shared.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from holdfast.errors import Refused
from holdfast.model import DIRECT_LOCKSPACE, AcquireRequest, Mode

MODES = {"exclusive": Mode.EXCLUSIVE, "shared": Mode.SHARED}
XML = {Mode.EXCLUSIVE: "is not <shareable/>", Mode.SHARED: "is <shareable/>"}


class HookPolicy:
    """`rules`: (glob, prepare, migrate), each action a word of `MODES` or, for nothing, any other."""

    def __init__(self, rules: Iterable[tuple[str, str, str]] = ()) -> None:
        self._rules = [
            (number, glob, re.compile(fnmatch.translate(glob)).match, MODES.get(prepare), MODES.get(migrate))
            for number, (glob, prepare, migrate) in enumerate(rules, 1)
        ]

    def check(self, wants: Sequence[AcquireRequest]) -> None:
        """Raises `Refused` for a disk that its rule wants otherwise than the domain's XML has it."""
        for want in wants:
            for number, glob, matches, prepare, _ in self._rules:
                if want.resource.lockspace == DIRECT_LOCKSPACE and matches(want.resource.name):
                    if prepare is not None and prepare is not want.mode:
                        raise Refused(
                            reason=f"{want.resource.name} {XML[want.mode]} in the domain's XML, and hook.actions[{number}] "
                            f"'{glob}' has prepare = \"{prepare.word}\": change the <disk>, or that rule"
                        )
                    break

    def at_arrival(self, wants: Sequence[AcquireRequest]) -> list[AcquireRequest]:
        """What an arriving guest must have before QEMU is started for it."""
        found = []
        for want in wants:
            for _, _, matches, _, migrate in self._rules:
                if want.resource.lockspace == DIRECT_LOCKSPACE and matches(want.resource.name):
                    if migrate is not None:
                        found.append(want._replace(mode=min(migrate, want.mode)))
                    break
        return found
