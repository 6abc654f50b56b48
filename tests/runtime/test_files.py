"""Files and directories are written atomically, whoever else writes and whenever a run is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime import SettingsError
from runtime.files import atomic as files_module
from runtime.files.atomic import atomic_directory, atomic_file
from runtime.files.outputs import Kind, check_directory, check_target
from runtime.files.unfinished import exclusive, sweep

THINGS = Kind("things", lambda folder: {"thing"} if (folder / "thing").is_file() else None)
DEAD = ".things.0123abcd.var-edge"  # left by a killed run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with atomic_directory(path, THINGS) as folder:
        (folder / "thing").write_text(text)


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs `code` with atomic_directory etc. at hand; it prints "ready" and waits for a kill."""
    head = """
import signal, sys, time
from pathlib import Path
from runtime.cli import reports_errors
from runtime.files import atomic as files_module
from runtime.files.atomic import atomic_directory, atomic_file, scratch_directory
from runtime.files.unfinished import exclusive
from tests.runtime.test_files import THINGS
"""
    wait = "def wait():\n    print('ready', flush=True); time.sleep(60)\n"
    command = [sys.executable, "-c", head + wait + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "ready\n", process.stderr.read()


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_directory_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "things"
    write(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_directory(path, THINGS) as folder:
        (folder / "thing").write_text("half")
        raise ZeroDivisionError
    assert (path / "thing").read_text() == "old"
    write(path, "new")
    assert (path / "thing").read_text() == "new"
    assert names(tmp_path) == ["things"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_another_put_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files_module, "_exchange", lambda *paths: False)
    path = tmp_path / "things"
    write(path, "old")
    (path / "engines" / "gpu").mkdir(parents=True)
    (path / "engines" / "gpu" / "plan").write_text("hours")
    (path / "engines" / DEAD).mkdir()
    (path / "notes").symlink_to("/nowhere")
    inode = (path / "engines" / "gpu" / "plan").stat().st_ino
    write(path, "new")
    assert names(path) == ["engines", "notes", "thing"]
    assert names(path / "engines") == ["gpu"]
    assert (path / "engines" / "gpu" / "plan").read_text() == "hours"
    assert (path / "engines" / "gpu" / "plan").stat().st_ino == inode  # not copied
    assert (path / "thing").read_text() == "new"
    assert names(tmp_path) == ["things"]


def test_a_file_that_would_replace_the_users_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "things"
    write(path, "old")
    (path / "notes").write_text("mine")
    with (
        pytest.raises(SettingsError, match="notes: a file of yours, which things would overwrite"),
        atomic_directory(path, THINGS) as new,
    ):
        (new / "notes").write_text("ours")
    assert (path / "notes").read_text() == "mine"
    assert (path / "thing").read_text() == "old"


def test_without_an_exchange_a_kill_between_the_renames_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "things"
    write(path, "old")
    code = """
files_module._exchange = lambda *paths: False
rename = Path.rename
def stop(source, target):
    if Path(target).name == "things":
        wait()
    return rename(source, target)
with atomic_directory(Path(sys.argv[1]), THINGS) as folder:
    (folder / "thing").write_text("new")
    Path.rename = lambda source, target: (
        (_ for _ in ()).throw(OSError(39, "not empty")) if Path(target).exists() else stop(source, target)
    )
"""
    process = run(code, path)
    ready(process)
    assert not path.exists()
    with pytest.raises(SettingsError, match="another run is writing it"):
        write(path, "of another")  # which leaves to the live one what it put aside
    process.kill()
    process.wait()
    check_directory(path, THINGS)
    assert (path / "thing").read_text() == "old"
    assert names(tmp_path) == ["things"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path / "things", "old")
    code = """
@reports_errors
def command():
    here = Path(sys.argv[1])
    with atomic_directory(here / "things", THINGS), atomic_file(here / "file"), scratch_directory(here / "a"):
        with exclusive(here / "b", ""):
            wait()
command()
"""
    process = run(code, tmp_path)
    ready(process)
    assert len(names(tmp_path)) == 5
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.strip() in ("interrupted", "terminated", "terminal closed")
    assert names(tmp_path) == ["things"]
    assert (tmp_path / "things" / "thing").read_text() == "old"


def test_nohup_is_obeyed() -> None:
    code = "@reports_errors\ndef command():\n    print(signal.getsignal(signal.SIGHUP) == 1)\ncommand()"
    process = run("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + code)
    assert process.communicate(timeout=60)[0] == "True\n"


def test_only_what_dead_runs_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / DEAD).mkdir()
    (tmp_path / DEAD / "half").touch()
    (tmp_path / ".picture.png.0123abcd.var-edge").touch()
    (tmp_path / ".mine.0123abcd").touch()
    (tmp_path / ".var-edge").mkdir()
    code = "with atomic_directory(Path(sys.argv[1]), THINGS) as folder, exclusive(Path(sys.argv[1]), ''):\n    wait()"
    process = run(code, tmp_path / "things")
    ready(process)
    sweep(tmp_path)
    assert len(names(tmp_path)) == 4  # two of the user, two of the live run
    process.kill()
    process.wait()
    sweep(tmp_path)
    assert names(tmp_path) == [".mine.0123abcd", ".var-edge"]


def test_two_runs_do_not_write_one_directory(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "things", THINGS) as folder:
        (folder / "thing").write_text("first")
        with pytest.raises(SettingsError, match="things: another run is writing it"):
            write(tmp_path / "things", "second")
    assert (tmp_path / "things" / "thing").read_text() == "first"
    assert names(tmp_path) == ["things"]


def test_an_exclusive_path(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with exclusive(path, "wait"), pytest.raises(SettingsError, match="file: another run is writing it; wait"):
        exclusive(path, "wait").__enter__()
    with exclusive(path, "wait"):
        pass
    assert not names(tmp_path)


def test_threads_write_one_path(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def work(text: bytes) -> None:
        try:
            for _ in range(50):
                with atomic_file(tmp_path / "file") as file:
                    file.write(text)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(bytes([65 + i]) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(set((tmp_path / "file").read_bytes())) == 1
    assert names(tmp_path) == ["file"]


def test_links_are_followed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    write(disk / "real", "old")
    (disk / "picture").write_text("old")
    (tmp_path / "things").symlink_to(disk / "real")
    (tmp_path / "picture.png").symlink_to(disk / "picture")
    write(tmp_path / "things", "new")
    with atomic_file(tmp_path / "picture.png") as file:
        file.write(b"new")
    assert (tmp_path / "things").is_symlink()
    assert (tmp_path / "picture.png").is_symlink()
    assert (disk / "real" / "thing").read_text() == (disk / "picture").read_text() == "new"
    assert names(disk) == ["picture", "real"]


def test_a_full_disk_is_said_with_the_file(tmp_path: Path) -> None:
    for context in (atomic_file(tmp_path / "a"), atomic_directory(tmp_path / "a", THINGS)):
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a'"), context:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "current directory"),
        (".", "current directory"),
        ("..", "current directory"),
        ("/", "current directory"),
        ("photos", "expected a new or empty folder or things, found 'holiday.jpg'"),
        ("file", "expected a folder, found a file"),
        ("file/out", "cannot be written: Not a directory"),
        ("dangling", "a broken link to nowhere"),
        ("loop", "a broken link to loop"),
        ("n" * 300, "cannot be written: File name too long"),
        ("n" * 250, "cannot be written: File name too long"),
        ("new/" + "n" * 300 + "/out", "cannot be written: File name too long"),
        ("nul\0", "cannot be written: "),
        ("source", "is or holds"),
        ("linked", "is or holds"),
        ("holder", "is or holds"),
        ("/proc/out", "cannot be written"),
    ],
)
def test_directories_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("photos", "source", "holder/inner"):
        Path(name).mkdir(parents=True)
        Path(name, "holiday.jpg").touch()
    for name in ("source", "holder"):
        Path(name, "thing").touch()
    Path("file").touch()
    for name, target in (("dangling", "nowhere"), ("loop", "loop"), ("linked", "source")):
        Path(name).symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SettingsError, match=message):
        check_directory(Path(path), THINGS, Path("source"), Path("holder/inner"))
    assert sorted(tmp_path.rglob("*")) == before


def test_targets_are_refused_before_the_work(tmp_path: Path) -> None:
    check_target(tmp_path / "picture.PNG", ".png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "fifo.png")
    for path, message in [
        (tmp_path / "picture.jpg", "ends in .png"),
        (tmp_path / "missing" / "picture.png", "there is no folder"),
        (tmp_path / "folder.png", "cannot be written: it is a folder"),
        (tmp_path / "fifo.png", "cannot be written: it is a device"),
        (tmp_path / "dangling.png", "a broken link to"),
        (tmp_path / ("n" * 300 + ".png"), "cannot be written: File name too long"),
        (tmp_path / "source.png", "the command reads this file"),
    ]:
        with pytest.raises(SettingsError, match=message):
            check_target(path, ".png", sources=(tmp_path / "source.png",))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """This kills only the mechanism, many times; python -m tests.kill_test kills the commands themselves."""
    path, draw = tmp_path / "things", random.Random(0)
    write(path, "0" * 1000)
    (path / "mine").mkdir()
    (path / "mine" / "notes").write_text("mine")
    for i in range(60):
        child = os.fork()
        if not child:
            try:
                for k in range(1000):
                    write(path, str(k % 10) * 1000)
                    with atomic_file(tmp_path / "file") as file:
                        file.write(b"%d" % (k % 10) * 1000)
            finally:
                os._exit(1)
        time.sleep(draw.random() / 50)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, i
        assert len(set((path / "thing").read_text())) == 1
        assert len((path / "thing").read_text()) == 1000
        assert (path / "mine" / "notes").read_text() == "mine"
        if (tmp_path / "file").exists():
            assert len(set((tmp_path / "file").read_bytes())) == 1
    write(path, "new")
    assert [name for name in names(tmp_path) if name != "file"] == ["things"]
    assert names(path) == ["mine", "thing"]
