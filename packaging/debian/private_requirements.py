"""Prints the requirements of pyproject.toml that no Debian package serves:  PYPROJECT NAME-FROM-DEBIAN..."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
for each in project["dependencies"]:
    if re.split(r"[^A-Za-z0-9_-]", each)[0] not in sys.argv[2:]:
        print(each)
