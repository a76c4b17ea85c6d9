"""Scripts show what they compared, as tests do."""

from __future__ import annotations

import pytest

for _module in ("commands", "results", "recovery", "client", "scene"):
    pytest.register_assert_rewrite(f"tests.interop.sanlock_socket.{_module}")
