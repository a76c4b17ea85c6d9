"""Several hosts in one lockspace with one lease, in the simulated world, and a checker that sees everything.

A node joins by the shipping delta lease code, renews, watches the others, and is reset by its watchdog if
it does not. The watchdog here is hardware: it goes on while the host is paused, and fires at its latest
permitted moment.

The checker knows two things. What hosts believe: no two hosts may hold the lease in conflicting modes,
where a belief ends when the owner starts to release or its host is reset. And what is written: two leaders
of one version name the same owner, a host writes only its own sectors and the leader, its ballot numbers
never go back, no block is written empty.
"""

from tests.unit.protocol.simulated import Faults, Host, World

from holdfast.ondisk.geometry import GEOMETRIES, MIB
from holdfast.ondisk.host_block import HostBlock
from holdfast.ondisk.leader import Leader
from holdfast.protocol import delta_lease as delta
from holdfast.protocol import lease_area
from holdfast.protocol.expiry import Corrupted, Expiry, Renewed, Ticked
from holdfast.protocol.host_status import HostTable, Sampled
from holdfast.protocol.lease_area import LeaseArea
from holdfast.protocol.lockspace_area import LockspaceArea, init
from holdfast.protocol.membership import Membership
from holdfast.protocol.paxos_release import Lease, Mode
from holdfast.protocol.timing import Timing
from holdfast.protocol.types import HostId
from holdfast_sim.storage.prepared import many_hosts

G512 = GEOMETRIES[0]
LEASE_AT = MIB
NUM_HOSTS = 4
MANY_HOSTS = many_hosts(G512)
"""So many that a glance does not show all blocks."""
TIMING = Timing(io_timeout_s=1, fire_timeout_s=6)


class Checker:
    """Watches beliefs and writes; raises at the first violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.believers: dict[Node, Mode] = {}
        self.decided: dict[int, tuple[int, int, int]] = {}
        self.acquired = 0
        self._mbal: dict[int, int] = {}
        self.nodes: list[Node] = []
        world.on_write = self._written

    def believes(self, node: "Node", mode: Mode) -> None:
        for other, others_mode in self.believers.items():
            if other is not node and Mode.EXCLUSIVE in (mode, others_mode):
                raise AssertionError(
                    f"{self._world.now:.3f}: {node} holds {mode.value}, {other} {others_mode.value}"
                )
        self.believers[node] = mode
        self.acquired += 1

    def gave_up(self, node: "Node") -> None:
        self.believers.pop(node, None)

    def _written(self, host: Host, offset: int, content: bytes) -> None:
        if not LEASE_AT <= offset < LEASE_AT + MIB or len(content) != 512:
            return
        node = next((node for node in self.nodes if node.host is host), None)
        if node is None:
            return
        sector = (offset - LEASE_AT) // 512
        if sector == 0:
            self._leader_written(content)
        elif sector != 1:
            assert sector == 1 + node.host_id, f"{node} wrote the block of host {sector - 1}"
            self._block_written(node, content)

    def _leader_written(self, content: bytes) -> None:
        leader = Leader.decode(content)
        assert isinstance(leader, Leader)
        if leader.timestamp:
            value = (leader.owner_id, leader.owner_generation, leader.timestamp)
            assert self.decided.setdefault(leader.lver, value) == value, (
                f"lver {leader.lver} was decided twice"
            )

    def _block_written(self, node: "Node", content: bytes) -> None:
        block = HostBlock.decode(content)
        assert isinstance(block, HostBlock)
        assert block.dblock.mbal >= self._mbal.get(node.host_id, 0), f"{node} took back a promise"
        assert block.dblock.mbal % 2000 == node.host_id
        assert block.dblock.bal <= block.dblock.mbal
        assert (block.dblock.inp == 0) == (block.dblock.bal == 0)
        self._mbal[node.host_id] = block.dblock.mbal


class Cluster:
    """One world with a lockspace, a lease for four hosts, and the checker."""

    def __init__(self, seed: int, faults: Faults | None = None, num_hosts: int = NUM_HOSTS) -> None:
        self.world = World(seed, 2 * MIB)
        admin = self.world.host("admin")
        admin.run(init(admin.disk, 0, G512, "LS1", io_timeout_s=1))
        admin.run(lease_area.init(LeaseArea(admin.disk, LEASE_AT, G512, "LS1", "disk"), num_hosts))
        self.world.faults = faults or Faults()
        self.checker = Checker(self.world)

    def join(self, *host_ids: int) -> "list[Node]":
        """Hosts that have joined and are seen alive by each other."""
        nodes = [Node(self, host_id) for host_id in host_ids]
        tasks = [node.host.spawn(node.join()) for node in nodes]
        self.world.run(*tasks)
        self.world.run(until=self.world.now + 3 * TIMING.renewal_s)
        return nodes

    def leader(self) -> Leader:
        leader = Leader.decode(bytes(self.world.content[LEASE_AT : LEASE_AT + 512]))
        assert isinstance(leader, Leader)
        return leader

    def block(self, host_id: int) -> HostBlock:
        at = LEASE_AT + G512.host_block_offset_bytes(host_id)
        block = HostBlock.decode(bytes(self.world.content[at : at + 512]))
        assert isinstance(block, HostBlock)
        return block

    def put(self, offset_in_lease: int, content: bytes) -> None:
        at = LEASE_AT + offset_in_lease
        self.world.content[at : at + len(content)] = content


class Node:
    """One life of one host."""

    _lives = 0

    def __init__(self, cluster: Cluster, host_id: int, name: str = "") -> None:
        """`name`: that of an earlier life, whose id may then be claimed at once."""
        Node._lives += 1
        self.cluster = cluster
        self.host = cluster.world.host(f"h{host_id}.{Node._lives:012x}")
        self.host_id = HostId(host_id)
        self.name = name or self.host.name
        self.successor: Node | None = None
        self.joined = False
        self.running = True
        self._leaving = False
        self.lockspace = LockspaceArea(self.host.disk, 0, G512, "LS1")
        self.lease_area = LeaseArea(self.host.disk, LEASE_AT, G512, "LS1", "disk")
        cluster.checker.nodes.append(self)

    def __str__(self) -> str:
        return self.host.name

    async def join(self) -> None:
        """Claim the host id, however often that takes."""
        claim = delta.Claim(self.host_id, self.name, TIMING)
        while True:
            outcome = await delta.acquire(self.lockspace, self.host.clock, claim)
            if isinstance(outcome, delta.Held):
                break
            await self.host.disk.settled(0, MIB)
            await self.host.clock.sleep(1)
        self.held = outcome
        self.expiry = Expiry(TIMING, self.held.renewed_at)
        self.table = HostTable("LS1", self.host_id, TIMING)
        self.member = Membership(
            lockspace=self.lockspace,
            host_id=self.host_id,
            generation=self.held.generation,
            ended_generation=self.held.ended_generation,
            bounds=lambda: TIMING,
            may_write=lambda: self.running and self.expiry.may_write(self.host.clock.now()),
            view=lambda host_id: self.table.view(host_id, self.host.clock.now()),
        )
        self.joined = True
        self._arm_watchdog()
        self.host.spawn(self._keep_renewing())

    async def _keep_renewing(self) -> None:
        held = self.held
        while not self._leaving:
            outcome = await delta.renew(self.lockspace, self.host.clock, held, hosts_watched=NUM_HOSTS)
            now = self.host.clock.now()
            match outcome:
                case delta.Renewed(held, sectors, read_at) | delta.RenewalFailed(
                    held, _, bytes(sectors), read_at
                ):
                    self._look(sectors, read_at)
                    if isinstance(outcome, delta.Renewed):
                        self.expiry.step(now, Renewed(held.renewed_at))
                        self._arm_watchdog()
                case delta.RenewalFailed():
                    self.expiry.step(now, Ticked())
                case other:
                    self.expiry.step(now, Corrupted(type(other).__name__))
                    return
            good = isinstance(outcome, delta.Renewed)
            await self.host.clock.sleep(TIMING.renewal_s if good else 0.5)

    def _look(self, sectors: bytes, read_at: float) -> None:
        split = {HostId(n + 1): sectors[512 * n : 512 * n + 512] for n in range(NUM_HOSTS)}
        self.table.step(self.host.clock.now(), Sampled(read_at, split))  # type: ignore[arg-type]

    def _arm_watchdog(self) -> None:
        """Reset at the last permitted moment, counted from the latest fed renewal."""
        world = self.cluster.world
        fires_at = world.now + self.expiry.fails_at + TIMING.fire_timeout_s - self.host.clock.now()
        fed = self.expiry.fails_at
        world.at(fires_at, lambda: self.power_off() if self.expiry.fails_at <= fed and self.running else None)

    def power_off(self) -> None:
        self.running = False
        self.host.reset()
        self.cluster.checker.gave_up(self)
        if self.successor is not None:
            self.successor.power_off()

    def daemon_restarts_as_sanlocks(self) -> "Node":
        """Its daemon is killed, and the next one takes the id again at once, as sanlock does under the same name. What
        the virtual machines believe stands until the watchdog, which nobody feeds for them, resets the host.
        """
        self.host.reset()
        self.successor = Node(self.cluster, self.host_id, self.name)
        self.successor.host.spawn(self.successor.join())
        return self.successor

    def believes(self, lease: Lease) -> None:
        self.cluster.checker.believes(self, lease.mode)

    def gives_up(self) -> None:
        self.cluster.checker.gave_up(self)
