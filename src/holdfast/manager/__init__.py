"""The lock manager: owners, the lock table, the use cases, and the journal that survives the daemon."""
