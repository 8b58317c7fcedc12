"""Rows 31 to 37 and 39: input by somebody who means harm, and stores that others wrote or copied."""

from tests.torture import archives, copies, links, manifest_fuzz, names, pickles, resource_limits
from tests.torture.rows import Row

ROWS: list[Row] = sorted(
    (
        row
        for module in (archives, copies, links, manifest_fuzz, names, pickles, resource_limits)
        for row in module.ROWS
    ),
    key=lambda row: row.number,
)
