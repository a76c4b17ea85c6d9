"""Entry point of releases before the layout of ADR 0189, kept for one release: a reload runs it by this name."""

from holdfast.daemon.main import main

__all__ = ["main"]
