"""Prints the configuration of a host that has none, as root's holdfastd shows it:  EMPTY-FILE"""

import os
import sys

os.getuid = os.geteuid = lambda: 0  # the build may run as anybody
sys.argv = ["holdfastd", "--config", sys.argv[1], "--show-config"]

from holdfast.holdfastd import main  # noqa: E402

print("# Every default. holdfastd reads /etc/holdfast/holdfast.toml; without it, this is what is in force.")
sys.exit(main())
