"""`holdfast setup`: from an installed package to a protected host, in steps, and back.

    survey ──facts──► plan (PURE) ──steps──► execute ──► survey again: a step is done when the plan has it no more
                                                └─► record: backups and what was there before, for undo

Nothing here stops a virtlockd in which a VM may have a lock, and nothing touches a VM.
"""
