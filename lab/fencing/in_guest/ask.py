"""Asks holdfastd for a disk until it is granted, then runs the command with it, as `holdfast run` does.

    ask.py CONTROL_SOCKET DISK NAME COMMAND...

One process instead of one for each question: an emulated guest takes a second to start Python.
"""

import sys
import time

from holdfast.cli.commands.run import hold_and_run
from holdfast.cli.exits import REFUSED, UNREACHABLE
from holdfast.control.api import DiskWish

ASK_EVERY_S = 0.3

_, control, disk, name, *command = sys.argv
while hold_and_run(control, [DiskWish(disk, False)], command, name) in (REFUSED, UNREACHABLE):
    time.sleep(ASK_EVERY_S)
