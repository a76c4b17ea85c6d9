"""How a boot ended, by notes that were written before."""

from __future__ import annotations

import pytest

from holdfast.flight.last_end import UNFED_MAX_S, Cause, last_end, paragraph
from holdfast.flight.notes import ALIVE, LOG, START, Note
from holdfast.ondisk.host_record import END_BYTES_MAX

AT = 1_700_000_000.0


def notes(*kinds: str | tuple[str, str]) -> list[Note]:
    """A second apart; "BOOT>" begins a daemon of that boot."""
    found = []
    for n, each in enumerate(kinds):
        kind, text = each if isinstance(each, tuple) else (each, "")
        boot = ""
        if kind.endswith(">"):
            kind, boot = START, kind[:-1]
        found.append(Note(at=AT + n, kind=kind, text=text, boot=boot))
    return found


UNFED = ("watchdog-unfed", "lockspace S may not be relied on")
LOST = ("lockspace-lost", "S: storage is silent")
JOINED = ("lockspace-joined", "S")


@pytest.mark.parametrize(
    ("kinds", "cause"),
    [
        pytest.param(("a>", "daemon-stopping"), Cause.ORDERLY, id="stopped"),
        pytest.param(("a>", "daemon-stopping", "a>", ALIVE), Cause.UNEXPLAINED, id="started again"),
        pytest.param(("a>", JOINED, ALIVE), Cause.UNEXPLAINED, id="no word"),
        pytest.param(("a>", JOINED, UNFED, LOST), Cause.WATCHDOG, id="unfed"),
        pytest.param(("a>", UNFED, "watchdog-fed", ALIVE), Cause.UNEXPLAINED, id="fed again"),
        pytest.param(
            ("a>", UNFED, "watchdog-fed", "daemon-stopping"), Cause.ORDERLY, id="fed again and stopped"
        ),
        pytest.param(("a>", UNFED, "daemon-stopping"), Cause.WATCHDOG, id="a stop feeds nothing"),
        pytest.param(
            ("a>", UNFED, "a>", ALIVE), Cause.WATCHDOG, id="the next daemon does not feed it either"
        ),
        pytest.param(
            ("a>", UNFED, "b>", "daemon-stopping", "now>"), Cause.ORDERLY, id="the last boot counts"
        ),
    ],
)
def test_cause(kinds: tuple[str | tuple[str, str], ...], cause: Cause) -> None:
    found = last_end(notes(*kinds, "now>", UNFED, LOST), "now")
    assert found is not None
    assert found.cause is cause


@pytest.mark.parametrize("kinds", [(), (UNFED,), ("now>", UNFED, LOST), (UNFED, "now>")])
def test_no_earlier_boot(kinds: tuple[str | tuple[str, str], ...]) -> None:
    assert last_end(notes(*kinds), "now") is None


def test_watchdog_that_would_have_fired_long_ago_is_no_cause() -> None:
    """The next daemon of that boot fed it, and had nothing to say of that."""
    kept = notes("a>", UNFED, "a>", ALIVE, "now>")
    assert (found := last_end(kept, "now")) is not None and found.cause is Cause.WATCHDOG
    late = [*kept[:3], Note(at=AT + UNFED_MAX_S + 10, kind=ALIVE), kept[4]]
    assert (found := last_end(late, "now")) is not None and found.cause is Cause.UNEXPLAINED


DEVICE = "/dev/watchdog0"


@pytest.mark.parametrize(
    ("kinds", "cause", "said"),
    [
        pytest.param(("a>", JOINED, ALIVE), Cause.WATCHDOG, "The whole host hung", id="frozen"),
        pytest.param(
            ("a>", UNFED, LOST), Cause.WATCHDOG, "so it reset this host (/dev/watchdog0", id="unfed"
        ),
        pytest.param(("a>", "daemon-stopping"), Cause.ORDERLY, "stopped in good order", id="stopped"),
    ],
)
def test_what_the_device_says_counts_unless_the_daemon_was_stopped(
    kinds: tuple[str | tuple[str, str], ...], cause: Cause, said: str
) -> None:
    found = last_end(notes(*kinds, "now>"), "now", DEVICE)
    assert found is not None and found.cause is cause
    assert said in paragraph(found)


def test_only_losses_that_were_not_mended_are_named() -> None:
    found = last_end(
        notes("a>", LOST, JOINED, ("lockspace-lost", "T: somebody else's record"), UNFED, ALIVE, "now>"),
        "now",
    )
    assert found is not None
    text = paragraph(found)
    assert "T: somebody else's record" in text
    assert "S: storage" not in text
    assert "2023-11-14 22:13:24 UTC" in text  # since when it was unfed
    assert found.last == AT + 5
    assert [note.kind for note in found.tail] == [
        "lockspace-lost",
        "lockspace-joined",
        "lockspace-lost",
        "watchdog-unfed",
    ]


def test_paragraph_is_bounded_and_whole_utf8() -> None:
    found = last_end(
        notes("a>", *((("lockspace-lost", f"S{n}: {'é' * 400}")) for n in range(9)), "now>"), "now"
    )
    assert found is not None
    assert len(paragraph(found).encode()) <= END_BYTES_MAX


def test_lines_of_the_log_are_in_the_tail_and_signs_of_life_are_not() -> None:
    found = last_end(notes("a>", (LOG, "x"), ALIVE, "acquired", "released", "refused"), "now")
    assert found is not None
    assert [note.kind for note in found.tail] == [LOG, "refused"]
