"""What is known about a checkpoint: ``CheckpointMetadata`` for people, ``Manifest`` for the disk.

The manifest is the commit: a checkpoint exists when its manifest does. Its bytes carry their own digest, so that an
altered manifest is told from a written one. docs/FORMAT.md specifies the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import operator
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, NoReturn, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import MAX_TAG_LENGTH, MAX_TAGS, check_description, check_tag, is_checkpoint_id
from ckpt_lib.core.plain import MAX_LEVELS, MAX_VALUES, plain_mapping
from ckpt_lib.core.wording import briefly
from ckpt_lib.errors import (
    ConfigError,
    CorruptManifestError,
    InvalidMetricError,
    UnsupportedSchemaError,
)

SCHEMA_VERSION = 1
MAX_CONFIG_BYTES = 2**20
MAX_METRICS = 10_000
_MAX_MANIFEST_LEVELS = 200  # of what a newer version may add too; the serializer's own limit is 255
_MAX_MANIFEST_LINES = 1_000_000  # each value has at least one
_SMALL_CHUNK_BYTES, _MAX_SMALL_CHUNKS = 2**16, 1024  # each chunk costs more than the hashing of so few bytes
_LIMIT_64 = 2**63
_MAX_REASON_LENGTH = 1_000
MAX_COUNT = 10**18
"""Epochs and steps stay below: an id has room for 18 digits."""
_DIGEST_FIELD = "manifest_sha256"
_PAYLOAD_SUFFIX = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9.]{0,31}")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Metric = float | int | str | None


def _metric_from_json(value: Any) -> Any:
    if isinstance(value, str):
        if not value.isprintable():
            raise InvalidMetricError("a metric is text with hidden characters", got=ascii(value)[:120])
        return _NON_FINITE.get(value, value)
    if isinstance(value, int) and abs(value) >= _LIMIT_64:
        raise InvalidMetricError("a metric is too large for a whole number", expected="one of 64 bits, or a float")
    return value


def _metric_to_json(value: Metric) -> Metric:
    # JSON has no NaN and no Infinity; these three texts stand for them.
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


StoredMetric = Annotated[
    Metric, BeforeValidator(_metric_from_json), PlainSerializer(_metric_to_json, return_type=Metric, when_used="json")
]


def check_count(name: str, value: Any, *, below: int | None = None) -> int:
    """Return ``value`` as an ``int`` if it is a whole number from 0 and under the limit.

    NumPy integers and integer tensors of one element are whole numbers too. Raises :class:`ConfigError`.
    """
    count = _whole_number(value)
    if count is None or count < 0 or (below is not None and count >= below):
        bound = "" if below is None else f" to {below - 1:,}"
        raise ConfigError(f"{name} must be a whole number from 0{bound}", got=briefly(value))
    return count


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last is what a tensor without data raises
        return None


def check_metrics(metrics: Mapping[str, Any] | None) -> dict[str, Metric]:
    """Turn metrics into plain numbers, text or ``None``; 0-d tensors and NumPy scalars become Python numbers.

    NaN and infinities are kept: they are facts about a run, though never the best. Raises
    :class:`InvalidMetricError` for anything else.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidMetricError("metrics must be a mapping", expected="{'val_loss': 0.1}", got=type(metrics).__name__)
    if len(metrics) > MAX_METRICS:
        raise InvalidMetricError("there are too many metrics", expected=f"at most {MAX_METRICS}", got=len(metrics))
    return {_metric_name(name): _plain_metric(name, value) for name, value in metrics.items()}


def _metric_name(name: Any) -> str:
    if not isinstance(name, str) or not name or len(name) > MAX_TAG_LENGTH or not name.isprintable():
        raise InvalidMetricError(
            "a metric's name cannot be stored", expected=f"1 to {MAX_TAG_LENGTH} visible characters", got=ascii(name)
        )
    return name


def _plain_metric(name: str, value: Any) -> Metric:
    if value is None:
        return None
    if isinstance(value, bool):
        return int(value)
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:
            raise InvalidMetricError(f"metric {name!r} is not a single number: {error}") from error
    if isinstance(value, str):
        if not value.isprintable():
            raise InvalidMetricError(f"metric {name!r} is text with hidden characters", got=ascii(value)[:120])
        return _NON_FINITE.get(value, str.__str__(value))  # subclasses, such as enumerations, become plain
    if isinstance(value, numbers.Real):
        if isinstance(value, numbers.Integral):
            if abs(int(value)) >= _LIMIT_64:
                raise InvalidMetricError(
                    f"metric {name!r} is too large for a whole number", expected="one of 64 bits, or a float"
                )
            return int(value)
        try:
            return float(value)
        except OverflowError as error:
            raise InvalidMetricError(f"metric {name!r} is too large", expected="a number up to 1.8e308") from error
    raise InvalidMetricError(
        f"metric {name!r} cannot be stored", expected="a number, a text or None", got=type(value).__name__
    )


def check_run_config(config: Any) -> dict[str, Any]:
    """Return a run's configuration as JSON holds it (:mod:`ckpt_lib.core.plain`), or raise :class:`ConfigError`."""
    if config is None:
        return {}
    plain = plain_mapping(config, "config")
    try:
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the run's config cannot be stored as JSON: {error}", expected="text in Unicode") from error
    if reason := _config_excess(plain, len(text)):
        raise ConfigError(f"the run's config cannot be stored: {reason}", hint="Large values belong in extra_state.")
    return plain


def _config_excess(config: Any, size_bytes: int) -> str | None:
    """What is too much about a run's configuration, for writers and readers alike."""
    if size_bytes > MAX_CONFIG_BYTES:
        return f"it takes {size_bytes} bytes, more than {MAX_CONFIG_BYTES}"
    if _is_deeper(config, MAX_LEVELS):
        return f"it is nested too deeply, more than {MAX_LEVELS} levels"
    if _is_deeper(config, MAX_LEVELS, most_values=MAX_VALUES):
        return f"it has more than {MAX_VALUES} values"
    return None


def _is_deeper(value: Any, levels: int, *, most_values: int | None = None) -> bool:
    """Whether JSON containers nest more than ``levels`` deep, or hold more values; found without recursion."""
    layer, count = [value], 0
    for _ in range(levels + 1):
        containers = [item for item in layer if isinstance(item, dict | list)]
        count += sum(map(len, containers))
        if most_values is not None and count > most_values:
            return True
        layer = [item for found in containers for item in (found.values() if isinstance(found, dict) else found)]
    return bool(layer)


class FileEntry(BaseModel):
    """One payload file: its name beside the manifest, its size and its digests."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    size_bytes: int = Field(ge=0, lt=_LIMIT_64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    chunk_size_bytes: int = Field(gt=0, lt=_LIMIT_64)
    chunk_xxh3_128: tuple[str, ...]


def _in_utc_range(moment: datetime) -> datetime:
    """Refuse a moment that another zone's calendar cannot hold: of the year 0 or 10000 there."""
    try:
        moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("it lies outside of the years 1 to 9999 of UTC") from error
    return moment


class _Facts(BaseModel):
    """What metadata and manifest share: the facts of one checkpoint."""

    checkpoint_id: str
    timestamp: Annotated[AwareDatetime, AfterValidator(_in_utc_range)]
    epoch: int = Field(ge=0, lt=MAX_COUNT)
    step: int = Field(ge=0, lt=MAX_COUNT)
    model_name: str
    experiment_name: str
    metrics: dict[Annotated[str, BeforeValidator(_metric_name)], StoredMetric] = {}
    config: dict[str, Any] = {}
    tags: tuple[Annotated[str, BeforeValidator(check_tag)], ...] = ()
    description: Annotated[str, BeforeValidator(check_description)] = ""
    sequence: int = Field(ge=1, lt=_LIMIT_64, description="Order within the experiment: later saves have larger ones.")
    parent_id: str | None = Field(default=None, description="The checkpoint this one was trained on from.")
    epoch_finished: bool = Field(default=True, description="Whether the epoch was trained to its end.")
    run_id: str | None = Field(default=None, description="Random; the checkpoints of one run of a training share it.")
    pinned: bool = Field(default=False, description="Retention never removes a pinned checkpoint.")
    unhealthy: str | None = Field(
        default=None, description="What a health check found wrong with the numbers; None when nothing, or not asked."
    )

    @property
    def healthy(self) -> bool:
        """Whether it may be the best, and training may go on from it."""
        return self.unhealthy is None


class CheckpointMetadata(_Facts):
    """One checkpoint as people see it. ``is_best`` and ``is_latest`` were computed when it was asked for."""

    model_config = ConfigDict(frozen=True)

    file_size: int = Field(ge=0, description="Bytes of all payload files.")
    checksum: str = Field(description="SHA-256 of the payload: what `sha256sum` prints.")
    is_best: bool = False
    is_latest: bool = False


class Manifest(_Facts):
    """The file that makes a payload a checkpoint. Fields a newer version added survive a rewrite."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    uid: str = Field(pattern=r"^[0-9a-f]{32}$", description="Random; a copy elsewhere has the same.")
    kinds: dict[str, str] = Field(default={}, description="Classes of model, optimizer and scheduler.")
    parameter_names: tuple[tuple[str, ...], ...] | None = Field(
        default=None, description="The optimizer's parameters, group by group; None when not known or too many."
    )
    format: str
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=1)
    monitor: Monitor = Field(default=Monitor(), description="What the run took for its measure of the best.")
    libraries: dict[str, str] = {}
    idempotency_key: str | None = None

    MAX_BYTES: ClassVar[int] = 16 * 2**20

    @property
    def payload(self) -> FileEntry:
        """The payload file: formats of this schema version write exactly one."""
        return self.files[0]

    def describe(self, *, is_best: bool = False, is_latest: bool = False) -> CheckpointMetadata:
        """The public view of this manifest."""
        shared = {name: getattr(self, name) for name in _Facts.model_fields}
        return CheckpointMetadata(
            **shared,
            file_size=self.payload.size_bytes,
            checksum=self.payload.sha256,
            is_best=is_best,
            is_latest=is_latest,
        )

    def changed(self, **facts: Any) -> Self:
        """A copy with some facts replaced."""
        return self.model_copy(update=facts)

    def to_bytes(self) -> bytes:
        """The manifest file: canonical JSON that holds the digest of the rest of it."""
        try:
            data = _canonical(self.model_dump(mode="json"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"a fact of the checkpoint cannot be written to its manifest: {error}", checkpoint_id=self.checkpoint_id
            ) from error
        if reason := _too_large(data):
            raise ConfigError(
                f"the manifest could not be read again: {reason}",
                checkpoint_id=self.checkpoint_id,
                hint="Pass a smaller config; large values belong in extra_state.",
            )
        return data

    @classmethod
    def from_bytes(cls, data: bytes, *, path: str) -> Self:
        """Read a manifest file.

        Raises :class:`UnsupportedSchemaError` when it was written by a newer version and
        :class:`CorruptManifestError` when a byte of it is not as it was written.
        """
        fields = _parse(data, path)
        version = fields.get("schema_version")
        if type(version) is not int:
            raise _corrupt(path, "its schema version is not a whole number", expected=SCHEMA_VERSION)
        if version > SCHEMA_VERSION:
            raise UnsupportedSchemaError(
                "the manifest was written by a newer version of this library",
                path=path,
                expected=f"schema version {SCHEMA_VERSION} or older",
                got=version,
                hint="Upgrade prefect-checkpoints to read it.",
            )
        recorded = fields.pop(_DIGEST_FIELD, None)
        if not _is_canonical(fields, data):
            raise _corrupt(path, "its bytes differ from what was written", expected=recorded)
        if reason := _excess(fields):
            raise _corrupt(path, reason)
        try:
            manifest = cls.model_validate(fields)
        except ValidationError as error:
            raise _corrupt(path, f"a field is not as specified: {_shortened(str(error))}") from error
        _check_names(manifest, path)
        return manifest


def _excess(fields: Mapping[str, Any]) -> str | None:
    """What a manifest has more of than any writer stores, found before each of its values is looked at."""
    for name, most in (("tags", MAX_TAGS), ("metrics", MAX_METRICS), ("libraries", MAX_METRICS), ("files", 1)):
        if isinstance(found := fields.get(name), list | dict) and len(found) > most:
            return f"it has {len(found)} {name}, more than {most}"
    config = fields.get("config")
    if isinstance(config, dict):
        text = json.dumps(config, ensure_ascii=False)
        return (reason := _config_excess(config, len(text))) and f"of its config, {reason}"
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_REASON_LENGTH else f"{text[:_MAX_REASON_LENGTH]} …"


def _check_names(manifest: Manifest, path: str) -> None:
    """A manifest names files: none of them may lead anywhere but to the manifest's own payload."""
    name = manifest.payload.name
    suffix = name.removeprefix(manifest.checkpoint_id)
    if (
        not is_checkpoint_id(manifest.checkpoint_id)
        or not name.startswith(manifest.checkpoint_id)
        or not _PAYLOAD_SUFFIX.fullmatch(suffix)
        or suffix.lower() == ".json"  # the manifest itself
    ):
        raise _corrupt(path, f"it names the payload {name!r}", expected=f"{manifest.checkpoint_id}.<format suffix>")
    chunks = -(-manifest.payload.size_bytes // manifest.payload.chunk_size_bytes)
    if len(manifest.payload.chunk_xxh3_128) != chunks:
        raise _corrupt(path, "its chunk table has the wrong length", expected=chunks)
    if manifest.payload.chunk_size_bytes < _SMALL_CHUNK_BYTES and chunks > _MAX_SMALL_CHUNKS:
        raise _corrupt(path, f"it has {chunks} chunks", expected=f"at most {_MAX_SMALL_CHUNKS} of so few bytes")


def _too_large(data: bytes) -> str | None:
    """Why parsing would take long, or much memory; counted in the bytes, before there is anything else."""
    if len(data) > Manifest.MAX_BYTES:
        return f"it is too large for a manifest, with {len(data)} bytes and not {Manifest.MAX_BYTES} at most"
    if max(data.count(b"\n"), data.count(b"["), data.count(b"{")) > _MAX_MANIFEST_LINES:
        return f"it is too large for a manifest, with more than {_MAX_MANIFEST_LINES} lines or brackets"
    return None


def _parse(data: bytes, path: str) -> dict[str, Any]:
    if reason := _too_large(data):
        raise _corrupt(path, reason)
    try:
        fields = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _corrupt(path, "it is not a JSON object")
    if _is_deeper(fields, _MAX_MANIFEST_LEVELS, most_values=_MAX_MANIFEST_LINES):
        raise _corrupt(path, "it is nested too deeply, or has too many values, for a manifest")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _canonical(fields: dict[str, Any]) -> bytes:
    """One spelling for each manifest, so that comparing bytes compares meaning; the digest covers all but itself."""
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8")
    signed = {**fields, _DIGEST_FIELD: hashlib.sha256(body).hexdigest()}
    return json.dumps(signed, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"


def _is_canonical(fields: dict[str, Any], data: bytes) -> bool:
    try:
        return _canonical(fields) == data
    except UnicodeEncodeError:  # a lone surrogate, which no writer of ours produces
        return False


def _corrupt(path: str, reason: str, expected: object = None) -> CorruptManifestError:
    return CorruptManifestError(
        f"the manifest is damaged: {reason}",
        path=path,
        expected=expected,
        hint="Restore it from a backup: `ckpt restore`.",
    )
