"""Selections as SQL, over the records of all experiments of a store."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)

from ckpt_lib.core.metadata import Metric
from ckpt_lib.index.conditions import OPERATORS, Condition, Operator
from ckpt_lib.index.places import SORTABLE, Place, microseconds_of
from ckpt_lib.index.selection import Selection, not_there
from ckpt_lib.index.tables import folders, records
from ckpt_lib.policies.ranking import is_rankable

TAG_SEPARATOR = "\n"
"""Stands before and after each tag: no tag holds one."""

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_NUMBER, _TEXT, _OTHER = "n", "t", "-"
_COLUMNS: Mapping[str, Any] = {
    "sequence": records.c.sequence,
    "timestamp": records.c.timestamp_microseconds,
    "epoch": records.c.epoch,
    "step": records.c.step,
    "checkpoint_id": records.c.checkpoint_id,
    "file_size": records.c.size_bytes,
    "pinned": records.c.pinned,
    "healthy": records.c.healthy,
    "model_name": records.c.model_name,
    "run_id": records.c.run_id,
}


def metric_key(name: str) -> str:
    """Return the name of a metric as letters and digits: databases differ in how a path spells others."""
    return f"m{name.encode().hex()}"


def metric_text(value: Metric) -> str:
    """Return the value of a metric as text whose order is that of the numbers, as floats of 64 bits."""
    if isinstance(value, str):
        return f"{_TEXT}{value}"
    if not is_rankable(value):
        return _OTHER
    (bits,) = struct.unpack(">Q", struct.pack(">d", float(value) + 0.0))  # both zeros become one
    return f"{_NUMBER}{bits ^ (2**64 - 1 if bits >> 63 else 2**63):016x}"


def find(
    connection: Connection, store: str, selection: Selection, *, path: str | None = None
) -> list[Mapping[str, Any]]:
    """Return the rows that are meant, in their order, each with the ``overview`` of its folder: of all experiments, or
    of the folder ``path`` alone.

    ``selection.after`` is an experiment and an id, with a slash between them; of one folder, an id will do. Raises
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when that is not among what was asked for, unless it is a place.
    """
    sql = _Dialect(connection.dialect.name)
    order = sql.order(selection, with_path=path is None)
    chosen = (
        select(records.c.folder_id, records.c.checkpoint_id)
        .join(folders)
        .where(*_in_store(store, path), *(sql.holds(condition) for condition in selection.where))
        .where(*(sql.contains(records.c.tags, f"{TAG_SEPARATOR}{tag}{TAG_SEPARATOR}") for tag in selection.tags))
    )
    if selection.search:
        chosen = chosen.where(sql.contains(records.c.searched, selection.search))
    if selection.after is not None:
        chosen = chosen.where(_follows(connection, chosen, order, selection, path))
    # Only the rows of the page are read whole: sorting all of them with their records takes ten times longer.
    wanted = chosen.order_by(*order.columns).limit(selection.limit).subquery()
    is_wanted = and_(records.c.folder_id == wanted.c.folder_id, records.c.checkpoint_id == wanted.c.checkpoint_id)
    rows = select(records, folders.c.path, folders.c.overview).join(folders).join(wanted, is_wanted)
    return [dict(row) for row in connection.execute(rows.order_by(*order.columns)).mappings()]


def _follows(
    connection: Connection, chosen: Select[Any], order: _Order, selection: Selection, path: str | None
) -> ColumnElement[bool]:
    """Return the condition for what comes after ``selection.after`` in the order."""
    after = selection.after
    name = after.name if isinstance(after, Place) else str(after)
    experiment, _, checkpoint_id = name.rpartition("/")
    is_there = (folders.c.path == (experiment or path or ""), records.c.checkpoint_id == checkpoint_id)
    found = connection.execute(chosen.with_only_columns(order.last, *order.values).where(*is_there)).one_or_none()
    place = _values_of(after, with_path=path is None) if isinstance(after, Place) else None
    if found is not None:
        last, *values = found
        if place in (None, (last, values[:-1])):  # it may have another value by now
            return order.is_after(last, values)
    if place is None:
        raise not_there(name)
    return order.is_after(*place)


def _values_of(place: Place, *, with_path: bool) -> tuple[int, list[Any]]:
    """Return what a place has of an order: all but the last value, by which nothing but copies differs."""
    last = 0
    values: list[Any] = []
    if place.sort_by not in SORTABLE:
        last, values = int(place.value is None), ["" if place.value is None else metric_text(place.value)]
    elif place.sort_by != "sequence":
        values = [place.value]
    path = [place.experiment] if with_path else []
    return last, [*values, *path, place.sequence, place.microseconds]


def is_recorded(connection: Connection, store: str, metric: str, *, path: str | None = None) -> bool:
    """Tell whether any checkpoint of a store or folder has recorded a metric; true where there is none to ask."""
    listed = select(records.c.checkpoint_id).join(folders).where(*_in_store(store, path)).limit(1)
    value = _Dialect(connection.dialect.name).metric(metric)
    is_known = connection.execute(listed.where(value.is_not(None))).first() is not None
    return is_known or connection.execute(listed).first() is None


def recorded_metrics(connection: Connection, store: str, *, path: str | None = None) -> set[str]:
    """Return the names of all metrics that checkpoints of a store or folder have recorded. Reads them all."""
    metrics = connection.execute(select(records.c.metrics).join(folders).where(*_in_store(store, path)).distinct())
    keys = {key for (text,) in metrics for key in json.loads(text)}
    return {bytes.fromhex(key[1:]).decode() for key in keys}


def _in_store(store: str, path: str | None) -> list[ColumnElement[bool]]:
    """Return the conditions for checkpoints that readers are shown; backups lie in a folder of the experiment's."""
    place = ~folders.c.path.contains("/") if path is None else folders.c.path == path
    return [folders.c.store == store, place, records.c.is_listed.is_(True)]


class _Order(NamedTuple):
    """An order: first by ``last``, of which the larger is last either way, and then by ``values``."""

    last: ColumnElement[Any]
    values: list[ColumnElement[Any]]
    descending: bool

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        """What to order by in SQL."""
        return [self.last, *(item.desc() if self.descending else item.asc() for item in self.values)]

    def is_after(self, last: int, values: list[Any]) -> ColumnElement[bool]:
        """Return the condition for what comes after these values, the first ones or all."""
        here, there = tuple_(*self.values[: len(values)]), tuple_(*values)
        comes_later = here < there if self.descending else here > there
        return or_(self.last > last, and_(self.last == last, comes_later))


class _Dialect:
    """What SQLite and PostgreSQL spell differently."""

    def __init__(self, name: str) -> None:
        self._is_sqlite = name == "sqlite"

    def contains(self, column: ColumnElement[Any], text: str) -> ColumnElement[bool]:
        return (func.instr if self._is_sqlite else func.strpos)(column, text) > 0

    def metric(self, name: str) -> ColumnElement[str]:
        """Return the value of a metric as :func:`metric_text` spells it; null where it was not recorded."""
        if self._is_sqlite:
            return func.json_extract(records.c.metrics, f"$.{metric_key(name)}")
        return cast(records.c.metrics, JSON).op("->>")(metric_key(name)).collate("C")

    def holds(self, condition: Condition) -> ColumnElement[bool]:
        """Return the condition in SQL."""
        value = condition.value
        if condition.metric is not None:
            found, text = self.metric(condition.metric), metric_text(value)  # type: ignore[arg-type]
            return and_(func.substr(found, 1, 1) == text[:1], _compared(found, condition.operator, text))
        column = _COLUMNS[condition.name]
        if isinstance(value, bool | str):
            return _compared(column, condition.operator, value)
        number = microseconds_of(value) if isinstance(value, datetime) else value
        return _compared_whole(column, condition.operator, number)

    def order(self, selection: Selection, *, with_path: bool) -> _Order:
        """Return what to order by: the value, and then the order of saving. What cannot be compared comes last."""
        saving = [records.c.sequence, records.c.timestamp_microseconds, records.c.uid]
        last: ColumnElement[Any] = literal(0)
        value: list[ColumnElement[Any]] = []
        if selection.sort_by not in SORTABLE:
            found = self.metric(selection.sort_by)
            is_number = func.substr(found, 1, 1) == _NUMBER
            last, value = case((is_number, 0), else_=1), [case((is_number, found), else_="")]
        elif selection.sort_by != "sequence":  # which says nothing across experiments
            value = [_COLUMNS[selection.sort_by]]
        path = [folders.c.path] if with_path else []
        return _Order(last, [*value, *path, *saving], selection.descending)


def _compared(column: ColumnElement[Any], operator: Operator, value: Any) -> ColumnElement[bool]:
    compared: ColumnElement[bool] = OPERATORS[operator](column, value)  # type: ignore[assignment]
    return compared


def _compared_whole(column: ColumnElement[int], operator: Operator, number: float) -> ColumnElement[bool]:
    """Compare whole numbers of 64 bits with any number, of which databases know fewer."""
    floor, ceiling = math.floor(number), math.ceil(number)
    match operator:
        case "<" | "<=":
            most = floor if operator == "<=" else ceiling - 1
            return true() if most >= _LARGEST else column <= max(most, _SMALLEST)
        case ">" | ">=":
            least = ceiling if operator == ">=" else floor + 1
            return true() if least <= _SMALLEST else column >= min(least, _LARGEST)
        case _:
            is_possible = floor == ceiling and _SMALLEST <= floor <= _LARGEST
            if operator == "==":
                return column == floor if is_possible else false()
            return column != floor if is_possible else true()
