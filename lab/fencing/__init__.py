"""A host that can't renew its lease is made harmless before another takes over, and the other does not wait too long.

Two guests with their own kernel and watchdog (micro-hosts) share two raw disks: one of leases, and one that belongs to
the lease. h1 has the lease and writes the disk all the time; then something happens to h1, while h2 asks for the
lease again and again. All times are taken from outside, from what is on the disks:

    cause ──► h1's last renewal lands …… h1's last write to its disk ……………… the lease names h2
              |<-------- 8 io_timeouts + fire timeout, and at most one renewal more -------->|
                                         |<-- more than nothing --------------------------->|

    python -m lab.fencing [SUITE|CAUSE|SUITE/CAUSE ...]

    __main__   the command line     suites     what is run, beside what, and why
    scenario   one case             observer   the disks, read from outside
    guests     the two guests       managers   holdfastd and the real sanlock in a guest
    verdict    the bounds           planted    deliberate bugs that the lab must find
    in_guest/  what runs in the guests: the owner, and who asks
"""
