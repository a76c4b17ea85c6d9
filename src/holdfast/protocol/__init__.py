"""Decisions about leases, without anything that waits, measures or touches a disk by itself. Pure.

Two shapes of code live here, and nothing else:

* what reads like the paper (a ballot, taking a host id, renewing it) is a straight-line `async def` that
  waits only on the ports of `ports`: the same coroutine runs on an event loop, on a thread whose ports
  never suspend, and in a simulator;
* what lives long (how old is our lease, who is alive) is a machine: `actions = machine.step(now, event)`.

Time, chance and failing disks are inputs. A failed disk is an answer (`IoFailed`); an exception is a bug of
ours. Outcomes are closed unions of small records that name the facts, for the caller to `match`.

`timing` derives every bound from io_timeout; `delta_lease` claims and renews a host id; `host_status` and
`expiry` watch the others and ourselves; `ballot` decides one version of a lease, `paxos_lease` and its
neighbours make locks of it.
"""
