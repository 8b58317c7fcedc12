"""``Idempotency-Key``: the same request again starts nothing twice (draft-ietf-httpapi-idempotency-key-header).

A key is part of the job that it has started: it is stored and forgotten with it, and needs no list of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Header

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError, IdempotencyKeyError
from ckpt_lib.web.job import Job
from ckpt_lib.web.operations import AnyWork
from ckpt_lib.web.settings import PREFIX

KEPT = timedelta(days=1)
"""How long a key stands for its job, unless that is forgotten before."""
_MOST_CHARACTERS = 255
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
"""A text as headers spell it (RFC 9651)."""
_PLAIN = re.compile(r"[!#-+\--:<-~]+")
"""What many clients send instead: the key without quotes."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=2 * _MOST_CHARACTERS + 2,
        description='A text that is new for each job, in quotes, such as "8e03978e-40d5-43dd-bc93-6894a57f9324". The '
        "same request with the same key is answered with the same job for a day.",
    ),
]


def key_in(header: str | None) -> str | None:
    """Return the key of a header; ``None`` without one. Raises :class:`~ckpt_lib.errors.ConfigError`."""
    if header is None:
        return None
    text = header.strip()
    quoted = _STRING.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if not 0 < len(key) <= _MOST_CHARACTERS or not (quoted or _PLAIN.fullmatch(key)):
        raise ConfigError(
            "the Idempotency-Key cannot be used",
            expected=f"up to {_MOST_CHARACTERS} visible characters of ASCII in quotes",
            got=shown(header),
        )
    return key


def job_of_key(jobs: Iterable[Job], key: str | None, who: str, experiment_name: str, work: AnyWork) -> Job | None:
    """Return the job that the same request has started before; ``None`` for a new one.

    Keys of other tokens count for nothing. Raises :class:`~ckpt_lib.errors.IdempotencyKeyError` for the key of another
    request.
    """
    if key is None:
        return None
    since = datetime.now(UTC) - KEPT
    same = (job for job in jobs if job.idempotency_key == key and job.who == who and job.created_at > since)
    found = next(same, None)
    if found is not None and (found.experiment_name, found.work.model_dump()) != (experiment_name, work.model_dump()):
        raise IdempotencyKeyError(
            "the Idempotency-Key belongs to another request",
            expected="the request that it was sent with before, or a new key",
            got=shown(key),
            hint=f"`GET {PREFIX}/jobs/{found.job_id}` shows the job that it has started.",
        )
    return found
