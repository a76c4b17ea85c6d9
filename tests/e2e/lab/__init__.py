"""The lab: two libvirt hosts, alpha and beta, made of namespaces on one machine.

Read `hosts` first (what a host is), then `storage` (what the hosts share), `daemons` (what runs on a
host), `domains` (what a guest is) and `lab` (all of it brought up and taken down).
"""
