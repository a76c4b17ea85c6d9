"""What a daemon does on each news of a lockspace (`supervision.lockspace_news`): the one function that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from holdfast.daemon.lockspaces import HostLockspaces
from holdfast.lease_admin.garbage_collection import LeaseCollector
from holdfast.lease_admin.lockspace_loss import LockspaceLoss, Loss
from holdfast.manager.identity_locks import IdentityLocks
from holdfast.manager.lock_manager import LockManager
from holdfast.manager.moved_disks import MovedDisks
from holdfast.supervision.host_identity import Incarnation, encode_term
from holdfast.supervision.lockspace_news import (
    Changed,
    Joined,
    Leaving,
    LockspaceNews,
    Lost,
    Notified,
    Over,
    UsersGone,
)

Observer = Callable[[LockspaceNews], None]
"""An observer such as the simulator's checkers: it gets each news before the daemon reacts to it."""


class LockspaceReactions:
    """Hands each news to the observer, then to the parts of the daemon that it concerns."""

    def __init__(
        self,
        *,
        leases: HostLockspaces,
        manager: LockManager,
        collector: LeaseCollector,
        loss: LockspaceLoss,
        moved: MovedDisks,
        identities: IdentityLocks,
        observe: Observer,
    ) -> None:
        self._leases = leases
        self._manager = manager
        self._collector = collector
        self._loss = loss
        self._moved = moved
        self._identities = identities
        self._observe = observe
        self.on_notified: Callable[[Notified], None] = lambda _: None
        """Of the frontend whose clients have events and requests."""
        self.on_incarnation: Callable[[Incarnation], None] = lambda _: None
        """Of what remembers the lockspaces that clients have added: what this host is there now."""

    def react(self, news: LockspaceNews) -> None:
        """Called on the event loop, in order; returns when the first step of each reaction is done."""
        self._observe(news)
        match news:
            case Joined(lockspace, incarnation, resumed):
                self._remember(lockspace, incarnation)
                if resumed:
                    self._collector.resumed(self._leases.backends_of(lockspace))
                self._loss.joined(lockspace)
                self._moved.joined()
                self._identities.joined()
            case Changed(lockspace, incarnation):
                self._remember(lockspace, incarnation)
            case Lost(lockspace):
                self._loss.lost(Loss(news, self._leases.backends_of(lockspace)))
            case UsersGone(lockspace):
                self._leases.users_gone(lockspace)
            case Over(lockspace):
                for backend in self._leases.backends_of(lockspace):
                    self._manager.unknown.drop_place(backend)
            case Leaving():
                pass
            case Notified():
                self.on_notified(news)
            case _:
                assert_never(news)

    def _remember(self, lockspace: str, incarnation: Incarnation) -> None:
        self._manager.remember_incarnation(lockspace, encode_term(incarnation))
        self.on_incarnation(incarnation)
