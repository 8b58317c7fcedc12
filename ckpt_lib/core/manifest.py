"""The record of a checkpoint: the small JSON file that says in which state it is.

A :class:`Claim` reserves an id and names the files to be written, or says that they are going away. A :class:`Manifest`
describes a checkpoint that was committed; turning ``live`` *is* the commit. Each record holds a digest of its own
content, so a reader notices any altered byte. docs/FORMAT.md specifies the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NoReturn, Self, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.metadata import LIMIT_64_BITS, MAX_METRICS, CheckpointFields, CheckpointMetadata
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import MAX_TAGS, id_or_placeholder, is_checkpoint_id
from ckpt_lib.core.owners import Owner
from ckpt_lib.core.plain import config_excess, is_deeper
from ckpt_lib.errors import ConfigError, CorruptManifestError, UnsupportedSchemaError

SCHEMA_VERSION = 1
_DIGEST_FIELD = "manifest_sha256"
_DIGEST_LINE = re.compile(rb'\n  "manifest_sha256": "([0-9a-f]{64})"(,?)(?=\n)')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # where each backslash begins an escape
_MAX_LEVELS = 200  # newer versions may nest deeper than this one; pydantic's serializer stops at 255
_MAX_LINES = 1_000_000  # each value takes at least one line
_SMALL_CHUNK_BYTES, _MAX_SMALL_CHUNKS = 2**16, 1024  # a chunk costs more than hashing so few bytes
_MAX_REASON_LENGTH = 1_000
MAX_FILES = 10_000
MAX_OBSOLETE = 16
_MOST = {
    "tags": MAX_TAGS,
    "metrics": MAX_METRICS,
    "added_metrics": MAX_METRICS,
    "libraries": MAX_METRICS,
    "files": MAX_FILES,
}
_PAYLOAD_SUFFIX = re.compile(r"(\.[0-9a-f]{16})?(\.[A-Za-z0-9][A-Za-z0-9.]{0,31}|/)")
_PART_BELOW = r"(?!\.ckpt-)\.?[A-Za-z0-9_][A-Za-z0-9._=+,@-]{0,199}"
_FILE_BELOW = re.compile(rf"{_PART_BELOW}(/{_PART_BELOW}){{0,7}}")
_OWN_NAME = re.compile(r"\.ckpt-.*|checkpoint_metadata\.json|(backups|keys|refs|uids)(/.*)?", re.DOTALL)
_NO_NAME = re.compile(r"[\\\x00-\x1f]")
_RANDOM = r"^[0-9a-f]{16}$"

State = Literal["live", "leaving", "deleted", "purging"]
ClaimState = Literal["saving", "abandoned", "gone"]


def new_token() -> str:
    """Return a random text that no other claim or revision has."""
    return secrets.token_hex(8)


class Compression(BaseModel):
    """What a compressed file holds, and how long it took to write."""

    model_config = ConfigDict(frozen=True, extra="allow")

    codec: str
    plain_size_bytes: int = Field(ge=0, lt=LIMIT_64_BITS)
    seconds: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="How long writing it took; None when not known."
    )


class Decompressed(BaseModel):
    """The compressed file that a plain one was made from: its name in the payload's folder, and its digest."""

    model_config = ConfigDict(frozen=True, extra="allow")

    part: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FileEntry(BaseModel):
    """One payload file: its name beside the manifest, its size and its digests."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    size_bytes: int = Field(ge=0, lt=LIMIT_64_BITS)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    chunk_size_bytes: int = Field(gt=0, lt=LIMIT_64_BITS)
    chunk_xxh3_128: tuple[str, ...]
    compression: Compression | None = Field(default=None, description="Of a file that is compressed.")
    decompressed: Decompressed | None = Field(default=None, description="Of an export of a file that was compressed.")

    @property
    def plain_size_bytes(self) -> int:
        """The size of what the file holds."""
        return self.compression.plain_size_bytes if self.compression else self.size_bytes

    @property
    def part(self) -> str:
        """The name that the format gave the file in the payload's folder; empty for the one file of a payload."""
        return self.name.partition("/")[2]


class Foreign(BaseModel):
    """What reading the files of another program takes beside the files; see :mod:`ckpt_lib.foreign.format`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    title: str = Field(description="The name that the file or folder had, which may say what it is.")
    key_map: dict[str, str] | None = Field(default=None, description="What its parts are, as the import was told.")


class Quarantine(BaseModel):
    """Why a checkpoint is set aside, and since when."""

    model_config = ConfigDict(frozen=True, extra="allow")

    report: dict[str, Any]
    at: AwareDatetime


class Thinned(BaseModel):
    """Since when a checkpoint holds only its weights, and the digest of the payload that held all of its state."""

    model_config = ConfigDict(frozen=True, extra="allow")

    at: AwareDatetime
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class NextPayload(BaseModel):
    """The payload that is being written to take the place of a checkpoint's: a claim beside a live manifest."""

    model_config = ConfigDict(frozen=True, extra="allow")

    claim: str = Field(pattern=_RANDOM)
    owner: Owner
    files: tuple[str, ...] = Field(min_length=1, max_length=MAX_FILES, description="As those of a claim.")
    abandoned: bool = Field(default=False, description="Nothing comes of it; its files are going.")


class ObsoletePayload(BaseModel):
    """A payload in whose place another one came, with what the manifest said of it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=MAX_FILES)
    since: AwareDatetime = Field(description="By the store's clock.")
    thinned: Thinned | None = None
    removing: bool = Field(default=False, description="Its files are going; it never comes back.")

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Record(BaseModel):
    """The fields of every record. A rewrite keeps the fields of newer versions."""

    model_config = ConfigDict(frozen=True, extra="allow")

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    checkpoint_id: str
    uid: str = Field(pattern=r"^[0-9a-f]{32}$", description="Random; a copy elsewhere has the same.")
    claim: str = Field(pattern=_RANDOM, description="Random; the save or copy that brought the checkpoint here.")
    revision: str = Field(
        default_factory=new_token, pattern=_RANDOM, description="New with each write, so no two texts are equal."
    )

    MAX_BYTES: ClassVar[int] = 16 * 2**20

    def changed(self, **facts: Any) -> Self:
        """Return a copy with some fields replaced and a new revision."""
        return self.model_copy(update={"revision": new_token(), **facts})

    def to_bytes(self) -> bytes:
        """Return the file: canonical JSON that includes the digest of its other fields.

        Raises :class:`ConfigError` for a record that could not be read again.
        """
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


class Claim(Record):
    """An id that is being saved to (``saving``), was given up (``abandoned``) or has no files any more (``gone``)."""

    state: ClaimState
    owner: Owner
    files: tuple[str, ...] = Field(description="What may have been written; a name that ends with / means all below.")


class Manifest(CheckpointFields, Record):
    """The facts of one checkpoint as its manifest file holds them."""

    state: State
    deleted_at: AwareDatetime | None = Field(default=None, description="By the store's clock.")
    quarantined: Quarantine | None = Field(default=None, description="Damage was found; readers pass over it.")
    in_use_until: AwareDatetime | None = Field(
        default=None, description="A run has resumed from it: no deletion before, by the store's clock."
    )
    kinds: dict[str, str] = Field(default={}, description="The class of each object whose state was saved.")
    parameter_names: tuple[tuple[str, ...], ...] | dict[str, tuple[tuple[str, ...], ...]] | None = Field(
        default=None,
        description="The optimizer's parameters, group by group, or each optimizer's by its name; None when not known "
        "or too many.",
    )
    format: str
    foreign: Foreign | None = Field(default=None, description="Of the files of another program, imported in place.")
    files: tuple[FileEntry, ...] = Field(min_length=1, max_length=MAX_FILES)
    monitor: Monitor = Field(default=Monitor(), description="What the run took for its measure of the best.")
    libraries: dict[str, str] = Field(default={})
    home_uid: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{32}$",
        description="In a fallback folder: the store that the checkpoint belongs to, if that had an identity.",
    )
    idempotency_key: str | None = None
    thinned: Thinned | None = Field(default=None, description="Only the weights are left; no run can go on from it.")
    next: NextPayload | None = Field(default=None, description="What is being written to take the payload's place.")
    obsolete: tuple[ObsoletePayload, ...] = Field(
        default=(), max_length=MAX_OBSOLETE, description="Payloads in whose place another one came."
    )

    @property
    def is_visible(self) -> bool:
        """True when readers see it: one that is leaving may still stay."""
        return self.state in ("live", "leaving")

    @property
    def is_valid(self) -> bool:
        """True when others may rely on it: live, not leaving, not in quarantine."""
        return self.state == "live" and self.quarantined is None

    @property
    def payload(self) -> FileEntry:
        """The first payload file, for formats that write one."""
        return self.files[0]

    @property
    def payload_name(self) -> str:
        """The name of the payload: its one file, or the folder that holds its files."""
        return self.files[0].name.partition("/")[0]

    @property
    def is_in_place(self) -> bool:
        """True when its files lie where another program wrote them: they are that program's, and never changed here."""
        return self.foreign is not None and not self.files[0].name.startswith(self.checkpoint_id)

    def has_files_of(self, earlier: Manifest) -> bool:
        """Tell whether the files are those of another reading of the same record: by their names, given only once."""
        return self.claim == earlier.claim and [file.name for file in self.files] == [
            file.name for file in earlier.files
        ]

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all files that are this checkpoint's, of its next and its obsolete payloads too.

        Of the next payload they are those of a claim: a name that ends with ``/`` means all below.
        """
        stored = (file.name for files in (self.files, *(item.files for item in self.obsolete)) for file in files)
        return (*stored, *(self.next.files if self.next else ()))

    @property
    def removable_names(self) -> tuple[str, ...]:
        """The names of all files that go with this checkpoint: not those that belong to the program that wrote them."""
        return self.all_names[len(self.files) :] if self.is_in_place else self.all_names

    @property
    def removable_bytes(self) -> int:
        """The size of its payload, as far as that goes with it."""
        return 0 if self.is_in_place else self.size_bytes

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def file_size(self) -> int:
        """What lists call ``size_bytes``."""
        return self.size_bytes

    @property
    def plain_size_bytes(self) -> int:
        """The size of all files before compression."""
        return sum(file.plain_size_bytes for file in self.files)

    @property
    def sha256(self) -> str:
        """The digest of the payload; see :func:`payload_sha256`."""
        return payload_sha256({file.part: file.sha256 for file in self.files})

    @property
    def content_sha256(self) -> str:
        """The digest of the payload, of an export that was decompressed as well: copies that hold the same agree."""
        kept = (file.decompressed or file for file in self.files)
        return payload_sha256({file.part: file.sha256 for file in kept})

    @property
    def saved_sha256(self) -> str:
        """The digest of the payload as it was saved, of one that was thinned as well: all copies have the same."""
        return self.thinned.sha256 if self.thinned else self.content_sha256

    def describe(
        self, *, is_best: bool = False, is_latest: bool = False, is_complete: bool = True
    ) -> CheckpointMetadata:
        """Return the public view of this manifest."""
        shared = {name: getattr(self, name) for name in CheckpointFields.model_fields}
        return CheckpointMetadata.model_construct(  # all of it was validated, which takes long for many
            **{**shared, "metrics": dict(self.metrics), "config": dict(self.config)},
            file_size=self.size_bytes,
            uncompressed_size=self.plain_size_bytes,
            checksum=self.sha256,
            is_best=is_best,
            is_latest=is_latest,
            is_complete=is_complete,
            is_thinned=self.thinned is not None,
            original=self.payload_name if self.is_in_place else None,
        )


def payload_sha256(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 of a payload, given those of its files by name.

    Of a single file it is the file's own. Of a folder it is that of the lines that ``sha256sum`` prints for the files
    in the order of their names.
    """
    if digests.keys() == {""}:
        return digests[""]
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()


def parse_record(data: bytes, *, path: str) -> Manifest | Claim:
    """Read the record of a key.

    Raises :class:`UnsupportedSchemaError` for the file of a newer version, and :class:`CorruptManifestError` when a
    byte was altered or a field is invalid.
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
    if not _is_intact(data, recorded):
        raise _corrupt(path, "its bytes differ from what was written", expected=recorded)
    if reason := _excess(fields):
        raise _corrupt(path, reason)
    kind = Claim if fields.get("state") in get_args(ClaimState) else Manifest
    try:
        record = kind.model_validate(fields)
    except ValidationError as error:
        raise _corrupt(path, f"a field is not as specified: {_shortened(str(error))}") from error
    _check_names(record, path)
    return record


def _excess(fields: Mapping[str, Any]) -> str | None:
    """Name what a manifest has more of than any writer stores. The counts are cheap, validating each value is not."""
    for name, most in _MOST.items():
        if isinstance(found := fields.get(name), list | dict) and len(found) > most:
            return f"it has {len(found)} {name}, more than {most}"
    config = fields.get("config")
    if not isinstance(config, dict):
        return None
    reason = config_excess(config, len(json.dumps(config, ensure_ascii=False)))
    return reason and f"of its config, {reason}"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_REASON_LENGTH else f"{text[:_MAX_REASON_LENGTH]} …"


def _check_names(record: Manifest | Claim, path: str) -> None:
    """Refuse a record whose file names lead anywhere but to its own payload."""
    if not is_checkpoint_id(record.checkpoint_id):
        raise _corrupt(path, f"it is of {record.checkpoint_id!r}", expected="a checkpoint id")
    names = record.files if isinstance(record, Claim) else record.all_names
    if isinstance(record, Manifest) and record.is_in_place and can_be_in_place([file.name for file in record.files]):
        names = names[len(record.files) :]
    claimed = record.files if isinstance(record, Claim) else record.next.files if record.next else ()
    for name in names:
        if not is_payload_name(name, record.checkpoint_id, is_file=name not in claimed):
            raise _corrupt(path, f"it names the payload {name!r}", expected=f"{record.checkpoint_id}.<format suffix>")
    if len(set(names)) != len(names):
        raise _corrupt(path, "it names a payload file twice")
    for files in (record.files, *(item.files for item in record.obsolete)) if isinstance(record, Manifest) else ():
        for file in files:
            _check_chunks(file, path)


def is_payload_name(name: str, checkpoint_id: str, *, is_file: bool = True) -> bool:
    """Tell whether a save of ``checkpoint_id`` may have written ``name``; a folder ends with ``/`` and is no file."""
    if not name.startswith(checkpoint_id) or not (match := _PAYLOAD_SUFFIX.match(name, len(checkpoint_id))):
        return False
    rest = name[match.end() :]
    if match[2] != "/":
        return not rest and match[2].lower() != ".json"  # the manifest itself
    return bool(_FILE_BELOW.fullmatch(rest)) if rest else not is_file


def can_be_in_place(names: Sequence[str]) -> bool:
    """Tell whether these may be the files of a checkpoint that was imported where it lies: one file, or one folder.

    They lie in the experiment's folder, and none of them has a name that this library gives.
    """
    start = names[0].partition("/")[0]
    if start in ("", ".", "..") or _NO_NAME.search(start) or is_own_name(start):
        return False
    if len(names) == 1 and "/" not in names[0]:
        return True
    return all(name.startswith(f"{start}/") and _FILE_BELOW.fullmatch(name[len(start) + 1 :]) for name in names)


def is_own_name(name: str) -> bool:
    """Tell whether a file or folder in an experiment's folder has a name that this library gives, to whatever."""
    return bool(_OWN_NAME.fullmatch(name)) or is_checkpoint_id(name.partition("/")[0].partition(".")[0])


def _check_chunks(file: FileEntry, path: str) -> None:
    chunks = -(-file.size_bytes // file.chunk_size_bytes)
    if len(file.chunk_xxh3_128) != chunks:
        raise _corrupt(path, "its chunk table has the wrong length", expected=chunks)
    if file.chunk_size_bytes < _SMALL_CHUNK_BYTES and chunks > _MAX_SMALL_CHUNKS:
        raise _corrupt(path, f"it has {chunks} chunks", expected=f"at most {_MAX_SMALL_CHUNKS} of so few bytes")


def _too_large(data: bytes) -> str | None:
    """Name the reason why parsing ``data`` would take long or much memory, found by counting bytes."""
    if len(data) > Record.MAX_BYTES:
        return f"it is too large for a manifest, with {len(data)} bytes and not {Record.MAX_BYTES} at most"
    if max(data.count(b"\n"), data.count(b"["), data.count(b"{")) > _MAX_LINES:
        return f"it is too large for a manifest, with more than {_MAX_LINES} lines or brackets"
    return None


def _parse(data: bytes, path: str) -> dict[str, Any]:
    if reason := _too_large(data):
        raise _corrupt(path, reason)
    try:
        fields = json.loads(data.decode(), parse_constant=_refuse_constant)  # which would take surrogates, too
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _corrupt(path, "it is not a JSON object")
    if is_deeper(fields, _MAX_LEVELS, most_values=_MAX_LINES):
        raise _corrupt(path, "it is nested too deeply, or has too many values, for a manifest")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _canonical(fields: dict[str, Any]) -> bytes:
    """Spell a manifest in the one canonical way. Equal bytes mean equal content; the digest covers all other fields."""
    body = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8")
    digest = f'\n  "{_DIGEST_FIELD}": "{hashlib.sha256(body).hexdigest()}"'.encode()
    following = min((name for name in fields if name > _DIGEST_FIELD), default=None)
    if following is None:
        before, after = body.removesuffix(b"\n}") + b",", b"\n}"
    else:  # a newline and two spaces stand before the names of fields alone
        position = body.index(f"\n  {json.dumps(following, ensure_ascii=False)}: ".encode())
        before, after = body[:position], b"," + body[position:]
    return before + digest + after + b"\n"


def _is_intact(data: bytes, recorded: object) -> bool:
    """Tell whether the digest is that of all other bytes, as :func:`_canonical` writes them."""
    parts = _DIGEST_LINE.split(data)
    unescaped = data.replace(rb"\\", b"")
    if len(parts) != 4 or _SURROGATE.search(unescaped):  # this library writes neither two digests nor such a character
        return False
    before, digest, comma, after = parts
    if digest.decode() != recorded:  # what looks like its line stands elsewhere
        return False
    body = before + after if comma else before.removesuffix(b",") + after
    return body.endswith(b"}\n") and hashlib.sha256(body[:-1]).hexdigest().encode() == digest


def _corrupt(path: str, reason: str, expected: object = None) -> CorruptManifestError:
    return CorruptManifestError(
        f"the manifest is damaged: {reason}",
        path=path,
        expected=expected,
        hint=f"Restore it from a backup: `ckpt restore {id_or_placeholder(path)}`.",
    )
