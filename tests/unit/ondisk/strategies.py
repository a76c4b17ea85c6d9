"""Hypothesis strategies for every record of the format, within the ranges that the records accept."""

from hypothesis import strategies as st

from holdfast.ondisk.delta import DeltaLease, Event
from holdfast.ondisk.geometry import GEOMETRIES, Geometry
from holdfast.ondisk.host_block import Dblock, HostBlock, ModeBlock
from holdfast.ondisk.leader import Leader
from holdfast.ondisk.padded_name import NAME_BYTES, PaddedName
from holdfast.ondisk.request import Request
from holdfast.ondisk.rindex import RindexEntry, RindexHeader

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
geometries = st.sampled_from(GEOMETRIES)
# Any 48 bytes may stand in a name field, tails behind the NUL and broken UTF-8 included.
names = st.binary(min_size=NAME_BYTES, max_size=NAME_BYTES).map(PaddedName)


@st.composite
def leaders(draw: st.DrawFn) -> Leader:
    geometry: Geometry = draw(geometries)
    max_hosts = draw(st.integers(1, geometry.hosts_max))
    return Leader(
        geometry=geometry,
        space_name=draw(names),
        resource_name=draw(names),
        num_hosts=draw(st.integers(1, max_hosts)),
        max_hosts=max_hosts,
        owner_id=draw(st.integers(1, geometry.hosts_max)),
        owner_generation=draw(u64),
        lver=draw(u64),
        timestamp=draw(u64),
        short_hold=draw(st.booleans()),
        io_timeout=draw(st.integers(0, 2**16 - 1)),
        write_id=draw(u64),
        write_generation=draw(u64),
        write_timestamp=draw(u64),
        unused=(draw(u64), draw(st.integers(0, 2**16 - 1))),
    )


@st.composite
def delta_leases(draw: st.DrawFn) -> DeltaLease:
    geometry: Geometry = draw(geometries)
    return DeltaLease(
        geometry=geometry,
        space_name=draw(names),
        owner_id=draw(st.integers(0, geometry.hosts_max)),
        generation=draw(u64),
        host_name=draw(names),
        timestamp=draw(u64),
        io_timeout_s=draw(st.integers(0, 255)),
        event=Event(draw(u64), draw(u64), draw(u64)),
    )


dblocks = st.builds(Dblock, mbal=u64, bal=u64, inp=u64, inp2=u64, inp3=u64, lver=u64, flags=u32)
mode_blocks = st.builds(ModeBlock, flags=u32, generation=u64)
host_blocks = st.builds(HostBlock, dblock=dblocks, mode=mode_blocks)
requests = st.builds(Request, lver=u64, force_mode=u32)
entries = st.builds(RindexEntry, offset_bytes=u64, name=names, flags=u32, unused=u32)


@st.composite
def rindex_headers(draw: st.DrawFn) -> RindexHeader:
    geometry: Geometry = draw(geometries)
    return RindexHeader(
        geometry=geometry,
        rindex_offset_bytes=draw(u64),
        space_name=draw(names),
        entries_max=draw(st.integers(1, geometry.rindex_entries_max)),
        unused=draw(u32),
    )
