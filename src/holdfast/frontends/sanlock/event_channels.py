"""Event channels: connections that get a lockspace's events and send nothing but their end (sanlock-socket.md 2.8)."""

from __future__ import annotations

from typing import Protocol

from holdfast.ondisk.padded_name import PaddedName
from holdfast.wire.sanlock.result import Result
from holdfast.wire.sanlock.structures import EventCallback

CHANNELS_MAX = 32
"""Of one lockspace, as sanlock's."""
END = (1).to_bytes(4, "little")
"""What a client writes before it closes its channel."""


class Channel(Protocol):
    """The connection of one."""

    def read_end(self) -> bool:
        """Whether the client has ended it, by `END` or an end of file."""

    def send_event(self, raw: bytes) -> bool:
        """Send without waiting; False if that failed, also in part: what follows could not be framed."""

    def close(self) -> None: ...


class EventChannels:
    """Those of all lockspaces, by name."""

    def __init__(self) -> None:
        self._channels: dict[str, list[Channel]] = {}

    def add(self, lockspace: PaddedName, channel: Channel) -> Result:
        channels = self._channels.setdefault(lockspace.text, [])
        if len(channels) >= CHANNELS_MAX:
            return Result.ENOCSI
        channels.append(channel)
        return Result.OK

    def remove(self, channel: Channel) -> None:
        """It was closed."""
        for name, channels in list(self._channels.items()):
            if channel in channels:
                channels.remove(channel)
                if not channels:
                    del self._channels[name]

    def publish(self, lockspace: str, event: EventCallback) -> None:
        """To every channel; one that doesn't take it is closed."""
        raw = event.encode()
        for channel in list(self._channels.get(lockspace, ())):
            if not channel.send_event(raw):
                channel.close()

    def close_ended(self, lockspace: PaddedName) -> None:
        """END_EVENT: close those whose clients have ended them."""
        for channel in list(self._channels.get(lockspace.text, ())):
            if channel.read_end():
                channel.close()

    def close_all(self, lockspace: str) -> None:
        """The lockspace is gone."""
        for channel in list(self._channels.get(lockspace, ())):
            channel.close()
