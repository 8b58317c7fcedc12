"""What tests of archives share: how their properties are run, and where the data of a record begins."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, settings

ALIGNMENT_BYTES = 64
PROPERTY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def data_start(file: Any, header_offset: int) -> int:
    file.seek(header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<2H", file.read(4))
    return int(header_offset + 30 + name_bytes + extra_bytes)
