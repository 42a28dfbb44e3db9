"""The pid file and systemd's notifications."""

import os
import socket
import subprocess
import sys

import pytest

from router.service import PidFile, is_running, notify


def test_the_pid_file_is_of_who_serves(tmp_path):
    path = tmp_path / "pid"
    file = PidFile(str(path))
    assert file.read() is None
    file.write()
    assert file.read() == os.getpid()
    assert os.listdir(tmp_path) == ["pid"]
    path.write_text("4000000\n")
    file.remove()
    assert file.read() == 4_000_000, "a successor wrote it"
    file.write()
    file.remove()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "nonsense", "-5", "0", "1"])
def test_a_file_that_names_nobody(tmp_path, text):
    (tmp_path / "pid").write_text(text)
    assert PidFile(str(tmp_path / "pid")).read() is None


def test_without_one_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = PidFile("")
    file.write()
    file.remove()
    assert file.read() is None and os.listdir(tmp_path) == []


def test_one_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    PidFile(str(tmp_path / "none" / "pid")).write()
    assert "could not be written" in caplog.text


@pytest.mark.parametrize("is_abstract", [True, False])
def test_systemd_is_told(tmp_path, monkeypatch, is_abstract):
    name = f"\0router-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        notify("MAINPID=7")
        assert systemd.recv(100) == b"MAINPID=7"


def test_nobody_wants_to_be_told(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    assert not caplog.text
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert "could not be told READY=1" in caplog.text


def test_who_runs():
    assert is_running(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()
    process.stdout.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(process.pid), "it waits for its parent"
    process.wait()
    assert not is_running(process.pid)
