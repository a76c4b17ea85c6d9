#!/usr/bin/python@VERSION@ -I
"""Runs @MODULE@ by the Python that this package was built for, with its private directory on the path.

A daemon that reloads runs the new program by its own Python, which a release upgrade may have left behind (ADR 0206).
"""

import os
import sys

if f"{sys.version_info[0]}.{sys.version_info[1]}" != "@VERSION@":
    os.execv("/usr/bin/python@VERSION@", ["/usr/bin/python@VERSION@", "-I", *sys.argv])

sys.dont_write_bytecode = True  # the maintainer scripts write and remove it
sys.path.insert(0, "/usr/lib/holdfast/lib")

from @MODULE@ import main

sys.exit(main())
