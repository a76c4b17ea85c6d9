"""Logical volumes of shared volume groups: which host may have them active, and in which mode (docs/shared-lvm.md)."""
