"""How ``ckpt`` fails: exit codes, one message, no traces left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager, errors
from ckpt_lib.cli.errors import EXIT_CODES, ConfirmationError, exit_code
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store import open_store
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.folder_lock import FolderLock, open_lock
from ckpt_lib.store.local.probe import TEMPORARY_SUFFIX
from ckpt_lib.store.local.system import System
from ckpt_lib.stream import StreamDigest
from tests.cli.running import CKPT, on_posix, run, run_json, run_program, run_with_streams
from tests.helpers import flip_bit, run_python

INTENDED_CODES = {
    1: "IntegrityError CorruptCheckpointError CorruptManifestError NoValidCheckpointError",
    3: "StoreError StorageFullError StorePermissionError StoreUnavailableError NotDurableError VersionConflictError "
    "RunUnavailableError",
    4: "CheckpointExistsError ProtectedCheckpointError UnsafePayloadError ConfirmationError",
}
LOOKING = (
    ("list",),
    ("list", "--backups"),
    ("show", "latest"),
    ("compare", "latest", "best"),
    ("summary",),
    ("experiments",),
    ("find",),
    ("reindex",),
    ("validate", "--all"),
    ("cleanup", "--dry-run"),
)


def subclasses(kind: type[errors.CheckpointError]) -> set[type[errors.CheckpointError]]:
    return {kind}.union(*(subclasses(found) for found in kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(subclasses(errors.CheckpointError), key=str), ids=lambda kind: kind.__name__)
def test_each_error_has_its_exit_code(kind: type[errors.CheckpointError]) -> None:
    """Damage is 1, a failing store 3, a refusal 4, and all other errors on purpose are bad input, 2."""
    intended = next((code for code, names in INTENDED_CODES.items() if kind.__name__ in names.split()), 2)
    assert exit_code(kind("message")) == intended


def test_exit_codes_are_in_the_help() -> None:
    """`ckpt --help` lists every exit code with its meaning."""
    help_text = " ".join(run("--help").stdout.split())
    for code, meaning in EXIT_CODES.items():
        assert f"- {code}: {meaning}" in help_text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nosuch"], "nosuch"),
        (["--nosuch"], "--nosuch"),
        (["list", "--nosuch"], "ckpt list --help"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--min-epoch", "x"], "--min-epoch"),
        (["list", "--sort-by", "nosuch"], "accuracy, loss"),
        (["list", "--experiment", "digit"], "Did you mean 'digits'?"),
        (["list", "--experiment", "../digits"], "experiment name"),
        (["list", "--config", "nosuch.yaml"], "nosuch.yaml"),
        (["list", "--store", "s3://bucket"], "s3://"),
        (["init", "--store", "memory://x"], "ends with its process"),
        (["export", "latest", "memory://x"], "ends with its process"),
        (["import", "memory://x"], "ends with its process"),
        (["list", "--store", __file__], "a file or a link is where a folder should be"),
        (["list", "--store", str(Path(__file__).parent)], "no checkpoints are stored here"),
        (["show"], "ID"),
        (["show", "epoch-4"], "Did you mean"),
        (["show", "checkpoint_epoch_0009_step_000009_20200101_000000"], "ckpt list"),
        (["show", "../../etc/passwd"], "no checkpoint answers"),
        (["compare", "latest"], "at least two"),
        (["compare", "latest", "best", "--metric", "nosuch"], "nosuch"),
        (["validate", "latest", "--all"], "--all"),
        (["backup", "latest", "--all"], "--all"),
        (["scrub", "--rate", "fast"], "100MB"),
        (["scrub", "--rate", "0"], "more than 0"),
        (["repair", "checkpoint_epoch_0009_step_000009_20200101_000000"], "ckpt list"),
        (["restore", "checkpoint_epoch_0009_step_000009_20200101_000000"], "no backup"),
        (["import", "nosuch.pt"], "with its manifest"),
        (["export", "latest", __file__], "a file or a link is where a folder should be"),
        (["tag", "latest"], "--add"),
        (["tag", "latest", "--add", "two\nlines"], "visible characters"),
        (["cleanup", "--keep", "-1"], "--keep"),
        (["delete", "best", "nosuch", "--yes"], "nosuch"),
    ],
)
def test_bad_input_is_refused_in_one_message(store: Path, args: list[str], words: str) -> None:
    """Bad input exits with 2, says on stderr what is wrong, prints nothing else, and is an object with --json."""
    result = run(*args, store=store, code=2)
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    error = run_json(*args, store=store, code=2)["error"]
    assert list(error) == ["type", "message", "checkpoint_id", "path", "expected", "got", "hint", "damages"]
    assert words in " ".join(str(value) for value in error.values())
    assert len(run_json("list", store=store)["checkpoints"]) == 3


def test_wrong_settings_are_bad_input(store: Path, tmp_path: Path) -> None:
    """Every wrong option of a file is named at once, and so is a wrong variable."""
    file = tmp_path / "config.yaml"
    file.write_text("max_checkpoints: -1\nunknown: 1\n")
    message = run_json("list", "--config", file, store=store, code=2)["error"]["message"]
    assert "max_checkpoints=-1" in message
    assert "unknown=1" in message
    assert "save_interval" in run("list", store=store, env={"CKPT_SAVE_INTERVAL": "x"}, code=2).stderr


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_looking_creates_nothing(store: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A command that only looks leaves a store as it was, and a path that is none is an error and stays none."""

    def tree() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in [store, *store.rglob("*")]}

    before = tree()
    run(*command, store=store)
    assert tree() == before
    assert run_json(*command, store=tmp_path / "mistyped", code=2)["error"]["type"] == "NotAStoreError"
    assert not (tmp_path / "mistyped").exists()


def test_damage_exits_with_1(store: Path, ids: list[str]) -> None:
    """A damaged payload is not exported, and a damaged manifest not shown: 1, and where the damage is."""
    flip_bit(store / "digits" / f"{ids[0]}.pt", 100)
    flip_bit(store / "digits" / f"{ids[1]}.json", 100)
    error = run_json("export", ids[0], store / "out", store=store, code=1)["error"]
    assert (error["checkpoint_id"], error["damages"][0]["kind"]) == (ids[0], "altered")
    assert "was altered" in run("compare", ids[2], ids[0], "--tensors", store=store, code=1).stderr
    assert "ckpt restore" in run("show", ids[1], store=store, code=1).stderr


def test_store_failure_exits_with_3(store: Path) -> None:
    """What the file system refuses is a store failure."""
    error = run_json("list", "--store", store / ("x" * 300), code=3)["error"]
    assert error["type"] == "StoreError"
    assert run("export", "latest", store / ("x" * 300), store=store, code=3).stderr.startswith(
        "Error: the store failed"
    )


def test_taken_name_exits_with_4(store: Path, ids: list[str], tmp_path: Path) -> None:
    """An export never replaces a file that it did not write."""
    taken = tmp_path / "out" / f"{ids[0]}.pt"
    taken.parent.mkdir()
    taken.write_bytes(b"mine")
    assert run_json("export", ids[0], taken.parent, store=store, code=4)["error"]["type"] == "CheckpointExistsError"
    assert taken.read_bytes() == b"mine"


def test_stored_code_exits_with_4(store: Path, ids: list[str], tmp_path: Path) -> None:
    """Comparing tensors runs no stored code: a payload that holds some is refused."""
    canary = tmp_path / "canary"
    manifest = Experiment(open_store(str(store)), "digits", "digits").get(ids[0])
    code = "import sys, torch\nclass Planted:\n    def __reduce__(self): return open, (sys.argv[2], 'w')\n"
    run_python(code + "torch.save({'model_state_dict': Planted()}, sys.argv[1])", tmp_path / "planted.pt", canary)
    data = (tmp_path / "planted.pt").read_bytes()
    digest = StreamDigest()
    digest.update(data)
    entry = FileEntry(name=manifest.payload.name, **digest.finish().__dict__)
    (store / "digits" / entry.name).write_bytes(data)
    (store / "digits" / f"{ids[0]}.json").write_bytes(manifest.changed(files=(entry,)).to_bytes())
    run("validate", ids[0], store=store, code=1)
    error = run_json("compare", ids[0], ids[1], "--tensors", store=store, code=4)["error"]
    assert error["type"] == "UnsafePayloadError"
    assert not canary.exists()


def test_bug_exits_with_70(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error nobody foresaw keeps its traceback, on stderr, and never looks like damage."""

    def fail(_: CheckpointManager) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(CheckpointManager, "list_unreadable", fail)
    assert "Traceback" in run("list", store=store, code=70).stderr
    assert run_json("list", store=store, code=70)["error"]["type"] == "ZeroDivisionError"


def test_confirmation_error_is_one_of_ours() -> None:
    """The command line's own error belongs to the tree, so that it is reported like the rest."""
    assert issubclass(ConfirmationError, errors.CheckpointError)


@on_posix
@pytest.mark.parametrize("as_json", [False, True])
def test_interrupt_exits_with_130(store: Path, ids: list[str], as_json: bool) -> None:
    """Ctrl-C in the middle of its work ends the program with one message, and changes nothing."""
    command = [CKPT, "tag", ids[2], "--add", "x", "--store", str(store), *(["--json"] if as_json else [])]
    own, system = store / "digits" / OWN_FOLDER, System()
    own.mkdir(exist_ok=True)
    with open_lock(own, system) as file, FolderLock(file, system, patience_seconds=60):
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not list(own.glob(f"*{TEMPORARY_SUFFIX}")) and program.poll() is None:
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)  # while it has a new manifest, and waits for the lock
        output, messages = program.communicate(timeout=60)
    assert program.returncode == 130
    assert ("interrupted" in output) == as_json
    assert ("interrupted" in messages) != as_json
    assert "Traceback" not in messages
    assert "x" not in run_json("show", ids[2], store=store)["tags"]


@on_posix
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_closed_pipe_is_no_damage(store: Path, options: list[str]) -> None:
    """When the reader of the output goes away, the program ends quietly, with another code than damage."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [CKPT, "list", "--store", str(store), *options]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ended.returncode == 141
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_full_output_is_reported(store: Path, options: list[str]) -> None:
    """An answer that cannot be written is an error, not a success without an answer."""
    with Path("/dev/full").open("w") as full:
        command = [CKPT, "list", "--store", str(store), *options]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 3
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


STREAMS: dict[str, dict[int, str | None]] = {
    "closed stdout": {1: None},
    "closed stderr": {2: None},
    "all closed": {0: None, 1: None, 2: None},
    "full stdout": {1: "/dev/full"},
    "full stderr": {2: "/dev/full"},
    "full stdout and stderr": {1: "/dev/full", 2: "/dev/full"},
}
ANSWERING = ("--version", "--help", "list", "show latest --json", "summary", "validate --all", "doctor", "backup --all")
REFUSED = {"show nosuch": 2, "nosuch --json": 2, "delete baseline": 4}
has_full = pytest.mark.skipif(
    not Path("/dev/full").exists() or not shutil.which("bash"), reason="needs /dev/full, bash"
)


@has_full
@pytest.mark.parametrize("streams", STREAMS)
def test_streams_that_cannot_be_written(store: Path, streams: str) -> None:
    """An answer or a remark that could not be printed is no success, an error keeps its code, and neither is a bug."""
    for command in ANSWERING:
        code, output = run_with_streams(*command.split(), bent=STREAMS[streams], CKPT_CHECKPOINT_DIR=str(store))
        assert code in (0, 3), (command, output)
        assert code == 3 or output, command
        assert "Traceback" not in output
        assert "Exception" not in output
    for command, intended in REFUSED.items():
        code, output = run_with_streams(*command.split(), bent=STREAMS[streams], CKPT_CHECKPOINT_DIR=str(store))
        assert code == intended, (command, output)
        assert "Traceback" not in output


@has_full
@pytest.mark.parametrize("streams", STREAMS)
def test_the_program_meets_such_streams_as_its_fork_does(streams: str) -> None:
    """Started by a shell, the installed program ends and prints as what the test above runs in its place."""
    redirections = [f"{number}>{path or '&-'}" for number, path in STREAMS[streams].items()]
    ended = subprocess.run(
        ["bash", "-c", f'"$0" --version {" ".join(redirections)}', CKPT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    forked = run_with_streams("--version", bent=STREAMS[streams])
    assert (ended.returncode, ended.stdout) == forked


@on_posix
def test_a_closed_stream_is_no_place_for_files(store: Path, tmp_path: Path) -> None:
    """The number of a closed stream goes to no file: what a library prints must not land in a checkpoint."""
    script = (
        "import os; from ckpt_lib.cli.streams import open_streams; open_streams();"
        "file = os.open('payload', os.O_CREAT | os.O_WRONLY); os.write(file, b'payload');"
        "print('printed'); raise SystemExit(0 if file > 2 else 1)"
    )
    command = ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, script]
    subprocess.run(command, cwd=tmp_path, check=False, timeout=60)
    assert (tmp_path / "payload").read_bytes() == b"payload"


def test_program_passes_on_the_exit_code(store: Path, ids: list[str]) -> None:
    """The installed program ends with the code that the command ends with."""
    flip_bit(store / "digits" / f"{ids[0]}.pt", 100)
    assert run_program("validate", "--all", CKPT_CHECKPOINT_DIR=str(store)).returncode == 1
    assert run_program("show", "nosuch", CKPT_CHECKPOINT_DIR=str(store)).returncode == 2
    assert run_program("--version").stdout.startswith("ckpt ")
    assert run_program().returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        ("list", "--backups"),
        ("quarantine", "--backups"),
        ("cleanup", "--backups", "--dry-run"),
        ("delete", "--backups", "--yes", "latest"),
        ("backup", "--all"),
        ("restore", "latest"),
    ],
    ids=" ".join,
)
def test_backup_location_that_cannot_be_read(store: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Commands about backups then end as with a store that does not answer; those about checkpoints go on."""
    location = tmp_path / "backups"
    location.write_text("a file")
    elsewhere = {"CKPT_BACKUP_DIR": str(location)}
    error = run_json(*command, store=store, code=3, env=elsewhere)["error"]
    assert error["type"] == "StoreUnavailableError"
    assert str(location) in error["path"]
    assert "backup_dir" in error["hint"]
    run("list", store=store, env=elsewhere)


def test_a_unique_beginning_is_what_was_meant(store: Path, ids: list[str]) -> None:
    """It wins over a name that only looks alike."""
    hint = run_json("show", ids[1][:30], store=store, code=2)["error"]["hint"]
    assert ids[1] in hint
