"""`holdfast setup --join`: what a host that joins reads of a lockspace in which a real daemon lives."""

from __future__ import annotations

from pathlib import Path

from tests.daemon.test_leases import joined
from tests.support.daemon import Holdfastd
from tests.support.leases import SPACE, make_lockspace

from holdfast.cli.setup.facts import Watchdog, Wishes
from holdfast.cli.setup.lockspace_there import look
from holdfast.cli.setup.proposal import propose
from holdfast.protocol.timing import Timing

IO_TIMEOUT_S, FIRE_TIMEOUT_S = 1, 3


def test_timeouts_are_those_of_the_host_that_lives_there_and_others_are_refused(place: Path) -> None:
    directory = place / "leases"
    directory.mkdir()
    make_lockspace(directory / SPACE)
    daemon = Holdfastd(
        place,
        f'[backend.leases]\ndriver = "paxos"\ndirectory = "{directory}"\nhost_id = 7\nwatchdog = "none"\n'
        f"io_timeout_s = {IO_TIMEOUT_S}\nfire_timeout_s = {FIRE_TIMEOUT_S}\ncross_host = true\n",
    )
    try:
        joined(daemon.start())
        seen = look(str(directory))
        assert seen == look(str(directory / SPACE)), "the directory and its lockspace's file mean the same"
        (host,) = seen.hosts
        assert (host.host_id, host.io_timeout_s, host.fire_timeout_s) == (7, IO_TIMEOUT_S, FIRE_TIMEOUT_S)
        made = propose(Wishes(join=str(directory)), seen, Watchdog(device=True))
        assert made.timing == Timing(IO_TIMEOUT_S, FIRE_TIMEOUT_S)
        assert made.refusals == ()
        misfit = propose(Wishes(join=str(directory), profile="fast"), seen, Watchdog(device=True))
        assert "does not fit" in misfit.refusals[0]
    finally:
        daemon.stop_all()
