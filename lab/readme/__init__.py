"""README's block "Two hosts, from the package", followed in guests with a kernel, a systemd and a watchdog of their own.

alpha and beta mount one directory of a third guest by NFS. From the package to a VM on alpha, a refused start on beta and
the page: line by line what README says. Then alpha ends, in four ways, and nobody vouches for that: beta starts the VM
after the bound, and alpha comes back.

    python -m lab.readme [--distro SUITE] [CASE ...]

`--distro`: the hosts' Debian release, by default this machine's; each has its own kernel, libvirt, QEMU and Python.

    __main__   the command line, the steps and the cases     hosts    the guests, and what an administrator prepares
    verdict    the bounds
"""
