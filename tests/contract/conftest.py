"""Hosts that a test made are closed after it."""

from collections.abc import Iterator

import pytest
from tests.support import leases


@pytest.fixture(autouse=True)
def _hosts_are_closed() -> Iterator[None]:
    yield
    leases.close_all()
