"""Prints what the private directory has to hold, as pip's requirements with their exact versions:

    private_requirements.py PYPROJECT [NAME-FROM-DISTRIBUTION ...]

These are the requirements of pyproject.toml and theirs in turn, as this environment has them, without those that the
distribution's own packages serve.
"""

import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

left = tomllib.loads(Path(sys.argv[1]).read_text())["project"]["dependencies"]
served = {canonicalize_name(each) for each in sys.argv[2:]}
found = {}
while left:
    wanted = Requirement(left.pop())
    name = canonicalize_name(wanted.name)
    if name in found or name in served or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        continue
    there = distribution(name)
    found[name] = there.version
    left += there.requires or []
for name, version in sorted(found.items()):
    print(f"{name}=={version}")
