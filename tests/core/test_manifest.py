"""Manifests: they come back as they were written, and no alteration of one goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.manifest import SCHEMA_VERSION, Manifest
from ckpt_lib.core.metadata import CheckpointMetadata, check_metrics
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import ConfigError, CorruptManifestError, UnsupportedSchemaError
from tests.core.examples import ID, bits, example, json_values, manifests, read


def sealed(fields: Mapping[str, Any]) -> bytes:
    """A manifest file with a right digest over whatever is in it, as docs/FORMAT.md specifies it."""
    body = _dumped({key: value for key, value in fields.items() if key != "manifest_sha256"})
    return _dumped({**fields, "manifest_sha256": hashlib.sha256(body).hexdigest()}) + b"\n"


def _dumped(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")


def plain_fields() -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(example().to_bytes())
    return fields


# --- round trips ---


@given(manifests())
def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest) -> None:
    """Every field, NaN and infinite metrics among them, survives; and the same facts make the same bytes."""
    data = manifest.to_bytes()
    found = read(data)
    assert found.to_bytes() == data
    assert {name: bits(value) for name, value in found.metrics.items()} == {
        name: bits(value) for name, value in manifest.metrics.items()
    }
    for name in set(Manifest.model_fields) - {"metrics"}:
        assert getattr(found, name) == getattr(manifest, name), name


def test_the_file_is_strict_json_for_everyone_else() -> None:
    """No NaN or Infinity literal that another JSON reader would refuse is ever written."""
    metrics = check_metrics({"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    stored = json.loads(example(metrics=metrics).to_bytes(), parse_constant=refuse)
    assert stored["metrics"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity"}


@given(
    st.dictionaries(st.text(min_size=1, max_size=8).map("x_".__add__), json_values, min_size=1, max_size=3), json_values
)
def test_fields_of_a_newer_version_survive_a_rewrite(unknown: dict[str, Any], inner: Any) -> None:
    """What this version does not know, in the manifest or in a part of it, is still there after an edit."""
    fields = plain_fields() | unknown
    fields["files"][0]["x_new"] = inner
    fields["monitor"]["x_new"] = inner
    edited = json.loads(read(sealed(fields)).changed(tags=("kept",)).to_bytes())
    assert {name: edited[name] for name in unknown} == unknown
    assert edited["files"][0]["x_new"] == inner
    assert edited["monitor"]["x_new"] == inner
    assert edited["tags"] == ["kept"]


@pytest.mark.parametrize("name", ["payload", "to_bytes", "model_config", "MAX_BYTES", "_private", "__class__", "uid "])
def test_an_unknown_field_shadows_nothing(name: str) -> None:
    """A field named like a method of ours stays data."""
    manifest = read(sealed(plain_fields() | {name: {"a": 1}}))
    assert json.loads(manifest.to_bytes())[name] == {"a": 1}
    assert manifest.payload.name == f"{ID}.pt"


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99, 10**30])
def test_a_newer_schema_is_refused_by_number(version: int) -> None:
    """Also when that version spells the rest in a way this one cannot know."""
    for fields in ({"schema_version": version}, plain_fields() | {"schema_version": version, "files": "elsewhere"}):
        with pytest.raises(UnsupportedSchemaError, match=str(version)) as refused:
            read(sealed(fields))
        assert refused.value.got == version


@pytest.mark.parametrize("version", [0, -1, 1.0, 2.0, "1", "2", None, True, [1], math.nan])
def test_a_schema_version_is_a_positive_whole_number(version: object) -> None:
    """2.0 and "2" must not pass for schema 2 and be read as schema 1; ``None`` is what a missing version reads as."""
    with pytest.raises(CorruptManifestError):
        read(sealed(plain_fields() | {"schema_version": version}))


def test_describe_shows_the_facts_and_nothing_that_could_go_stale() -> None:
    """The public view takes size and checksum from the payload; best and latest are told, not stored."""
    described = example(pinned=True).describe(is_best=True)
    assert isinstance(described, CheckpointMetadata)
    assert (described.file_size, described.checksum, described.pinned) == (3, "a" * 64, True)
    assert (described.is_best, described.is_latest) == (True, False)
    assert not {"is_best", "is_latest", "is_complete"} & plain_fields().keys()


# --- alterations ---


def _is_noticed(data: bytes) -> bool:
    try:
        read(data)
    except (CorruptManifestError, UnsupportedSchemaError):
        return True
    return False


def test_every_flipped_byte_is_noticed() -> None:
    """Exhaustive: each byte of a manifest, changed by each single bit and to each of some telling characters."""
    data = example().to_bytes()
    missed = [
        (at, bytes([new]))
        for at, old in enumerate(data)
        for new in {*(old ^ (1 << bit) for bit in range(8)), *b' \t\n\r0123456789eE+-.,:"\\{}[]anNf\x00\xff'} - {old}
        if not _is_noticed(data[:at] + bytes([new]) + data[at + 1 :])
    ]
    assert missed == []


def test_every_inserted_byte_is_noticed() -> None:
    """Exhaustive: white space, digits, quotes and others, put in at each place."""
    data = example().to_bytes()
    missed = [
        (at, piece)
        for at in range(len(data) + 1)
        for piece in (*(bytes([byte]) for byte in b' \n\t01.e"\\,\0'), b"\xef\xbb\xbf", b"\xc3\xa9")
        if not _is_noticed(data[:at] + piece + data[at:])
    ]
    assert missed == []


def test_every_deleted_byte_and_every_truncation_is_noticed() -> None:
    """Exhaustive: one byte less at each place, and the file cut off at each place, to nothing."""
    data = example().to_bytes()
    assert [at for at in range(len(data)) if not _is_noticed(data[:at] + data[at + 1 :])] == []
    assert [at for at in range(len(data)) if not _is_noticed(data[:at])] == []
    assert [at for at in range(1, len(data)) if not _is_noticed(data[at:])] == []


@given(st.data())
def test_a_block_of_other_bytes_is_noticed(data: st.DataObject) -> None:
    """Zeroed, repeated, swapped or random ranges: what a disk or a network does to a file."""
    original = example().to_bytes()
    start = data.draw(st.integers(0, len(original) - 1))
    stop = data.draw(st.integers(start + 1, len(original)))
    piece = original[start:stop]
    other = data.draw(st.one_of(st.just(bytes(len(piece))), st.just(piece * 2), st.just(piece[::-1]), st.binary()))
    altered = original[:start] + other + original[stop:]
    assert altered == original or _is_noticed(altered)


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"])
def test_the_same_text_in_another_encoding_is_noticed(codec: str) -> None:
    """JSON readers guess encodings; the digest is of the bytes."""
    assert _is_noticed(example().to_bytes().decode().encode(codec))


@pytest.mark.parametrize("text", ["C:\\ud800", "\\\\ud800", "\\u0041"])
def test_a_text_that_looks_like_an_escape_is_none(text: str) -> None:
    """Only a character that no text can hold is refused."""
    manifest = example(description=text)
    assert read(manifest.to_bytes()) == manifest


def test_a_digest_that_was_moved_is_noticed() -> None:
    """Inside of a mapping of the user's it would be a value of it."""
    manifest = example(config={"a": 1})
    lines = manifest.to_bytes().splitlines(keepends=True)
    (digest,) = (line for line in lines if b"manifest_sha256" in line)
    lines.remove(digest)
    at = next(number for number, line in enumerate(lines) if line.startswith(b'  "config": {'))
    assert _is_noticed(b"".join([*lines[: at + 1], digest, *lines[at + 1 :]]))


def test_duplicate_keys_are_noticed() -> None:
    """JSON keeps the last of two; a reader that keeps the first would see another checkpoint."""
    data = example().to_bytes()
    assert _is_noticed(data.replace(b'{\n  "', b'{\n  "epoch": 7,\n  "', 1))


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_garbage_is_refused_with_the_right_error(data: bytes) -> None:
    """Whatever lies there under a manifest's name, reading it raises nothing else."""
    with pytest.raises(CorruptManifestError) as refused:
        read(data)
    assert refused.value.path == "somewhere.json"


mutants = st.one_of(
    json_values,
    st.sampled_from(
        [10**400, -(10**400), math.nan, math.inf, "", "\ud800", "/", "..", "0" * 32, [], {}, [[]], True, -1, 2**63, ID]
    ),
)


@given(st.sampled_from(sorted(plain_fields())), st.sampled_from(sorted(plain_fields()["files"][0])), st.data())
def test_a_forged_manifest_is_refused_or_usable(field: str, file_field: str, data: st.DataObject) -> None:
    """Any field replaced by anything, with a digest to match: the right error, or a manifest that can be rewritten."""
    fields = plain_fields()
    what = data.draw(st.sampled_from(["field", "file", "drop", "drop file field", "add"]))
    if what == "field":
        fields[field] = data.draw(mutants)
    elif what == "file":
        fields["files"][0][file_field] = data.draw(mutants)
    elif what == "drop":
        del fields[field]
    elif what == "drop file field":
        del fields["files"][0][file_field]
    else:
        fields[data.draw(st.text(max_size=6))] = data.draw(mutants)
    try:
        manifest = read(sealed(fields))
    except (CorruptManifestError, UnsupportedSchemaError):
        return
    assert read(manifest.to_bytes()).to_bytes() == manifest.to_bytes()
    assert manifest.payload.name.startswith(f"{manifest.checkpoint_id}.")
    manifest.describe(is_best=True)


OTHER_PLACES = ["../../etc/passwd", "/etc/passwd", "..", "", ".", f"./{ID}.pt", f"backups/{ID}.pt"]
NO_SUFFIXES = ["", ".", ".json", ".JSON", "./../../x.pt", ".pt/../../../x", ".\\..\\x.pt", "x.pt", "_2.pt"]
HIDDEN_SUFFIXES = [".pt\0.x", ".pt:stream", ".pt\n", ".p\u202et", f".{'x' * 300}"]


@pytest.mark.parametrize(
    "name",
    [*OTHER_PLACES, *(ID + suffix for suffix in (*NO_SUFFIXES, *HIDDEN_SUFFIXES)), f"{ID.upper()}.pt"],
    ids=ascii,
)
def test_a_manifest_names_its_own_payload_and_nothing_else(name: str) -> None:
    """A forged manifest cannot make a deletion or a load reach another file."""
    fields = plain_fields()
    fields["files"][0]["name"] = name
    with pytest.raises(CorruptManifestError):
        read(sealed(fields))


@pytest.mark.parametrize("checkpoint_id", ["latest", "../x", "", ID.replace("0001", "00001")])
def test_a_manifest_is_of_a_checkpoint(checkpoint_id: str) -> None:
    """An id outside the grammar is refused even when payload and digest agree with it."""
    fields = plain_fields() | {"checkpoint_id": checkpoint_id}
    fields["files"][0]["name"] = f"{checkpoint_id}.pt"
    with pytest.raises(CorruptManifestError):
        read(sealed(fields))


@pytest.mark.parametrize(("size", "chunks"), [(0, 1), (1, 0), (8, 2), (9, 1), (10**400, 1), (17, 2)])
def test_a_chunk_table_of_the_wrong_length_is_refused(size: int, chunks: int) -> None:
    """A missing chunk digest would leave bytes that damage could not be located in."""
    fields = plain_fields()
    fields["files"][0] |= {"size_bytes": size, "chunk_xxh3_128": ["b" * 32] * chunks, "chunk_size_bytes": 8}
    with pytest.raises(CorruptManifestError):
        read(sealed(fields))


@pytest.mark.parametrize(
    "facts",
    [
        {"idempotency_key": "\ud800"},
        {"monitor": Monitor(metric="\ud800")},
        {"model_name": "\udfff"},
        {"config": {"a": "\ud800"}},
        {"config": {"a": 10**5000}},
    ],
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(facts: dict[str, Any]) -> None:
    """Better no checkpoint and an error than one that was acknowledged and has an unreadable manifest."""
    with pytest.raises(ConfigError):
        example(**facts).to_bytes()
