"""What must always hold, whatever the explored actors did, in whichever order, and wherever they were stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_lib.core.manifest import Manifest
from tests.experiment.contents import X
from tests.experiment.explorer import records


def live(content: dict[str, bytes], folder: str = "e/") -> dict[str, Manifest]:
    found = records(content, folder).items()
    return {checkpoint_id: item for checkpoint_id, item in found if isinstance(item, Manifest) and item.is_visible}


def whole(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that what is live has its files, what was acknowledged is live, and what was refused is not."""
    seen = live(content)
    for checkpoint_id, item in seen.items():
        for file in item.files:
            if content.get(f"e/{file.name}") != item.uid.encode():
                return f"{checkpoint_id} is live, {file.name} is {content.get(f'e/{file.name}')!r}"
    if ("CORRUPT",) in results:
        return "a reader was told that it is corrupt"
    for number, result in enumerate(results):
        if result and result[0] == "error" and any(item.claim[:4] == f"{number:04x}" for item in seen.values()):
            return "refused, but live"
    return None


def acknowledged(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check :func:`whole`, and that each checkpoint is there that was acknowledged, and has an id of its own."""
    seen = live(content)
    given: dict[str, str] = {}
    for result in results:
        if result and result[0] == "saved":
            _, checkpoint_id, uid = result
            if checkpoint_id not in seen or seen[checkpoint_id].uid != uid:
                return f"{checkpoint_id} was acknowledged and is not there"
            if given.setdefault(checkpoint_id, uid) != uid:
                return f"{checkpoint_id} was given twice"
    return whole(content, results)


def something_live(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    return whole(content, results) or (None if live(content) else "nothing is live")


def something_left(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    states = [item.state for item in records(content).values()]
    return whole(content, results) or (None if {"live", "leaving", "deleted"} & {*states} else "all are gone for good")


def something_valid(content: dict[str, bytes], _: Sequence[Any]) -> str | None:
    return None if any(item.quarantined is None for item in live(content).values()) else "nothing valid is live"


def none_forgotten(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that the sweep knows each payload file: its id has a record.

    A save that slept for a day writes its file after its key has ended. If it then dies, or its deletion is not done,
    the file stays without a record, and the sweep leaves it as it is.
    """
    known = records(content)
    files = [key.removeprefix("e/") for key in content if key.startswith("e/checkpoint") and not key.endswith(".json")]
    lost = [name for name in files if name.partition("/")[0].partition(".")[0] not in known]
    return f"no record of {lost}" if lost and results[0] != "crashed" else None


def once(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that one key, or one uid, has one checkpoint, and that it is the answer."""
    seen = live(content)
    if len(seen) > 1:
        return "two for one"
    for result in results:
        if result and result[0] in ("saved", "earlier") and result[2] not in {item.uid for item in seen.values()}:
            return f"the answer {result} is not live"
    return whole(content, results)


def pin_holds(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    pinned = records(content).get(X)
    if results[0] != ("edited",) or (isinstance(pinned, Manifest) and pinned.is_visible and pinned.pinned):
        return None
    return "it was pinned, and is not there pinned"


def tags_hold(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    wanted = {result[1] for result in results if result and result[0] == "edited"}
    return None if wanted <= {*live(content)[X].tags} else "an edit is lost"


def both_done(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    """Check that two who want the same both have it, whoever of them was killed: one waits for the other."""
    lacking = [result for result in results if result != "crashed" and result[0] != "saved"]
    return f"one was refused: {lacking}" if lacking else acknowledged(content, results)


def stays_away(content: dict[str, bytes], results: Sequence[Any]) -> str | None:
    return "purged at home, and came back" if results[1] == ("purged", 1) and live(content) else None
