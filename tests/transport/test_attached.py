"""Names of replicas that dial, and the sockets that lead to them."""

import os
import socket
import stat
from pathlib import Path

import pytest

from router.transport.attached import NOWHERE, AttachedSockets, is_name, name_of


@pytest.fixture
def sockets(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("s")))  # a socket's path is short
    return AttachedSockets(b"secret")


@pytest.mark.parametrize("name", ["a", "gpu-7", "0", "a" * 63])
def test_names(name):
    assert is_name(name)
    assert name_of(f"{name}.attached.alt") == name
    assert name_of(f"{name}.Attached.ALT") == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a.b", "A", "a" * 64, "..", "a/b", "a\0", "ä", "a_b", "a\n"])
def test_what_is_no_name(name):
    assert not is_name(name)
    assert name_of(f"{name}.attached.alt") in ("", name.lower() if name == "A" else "")


def test_other_hosts_are_dialled(sockets):
    for host in ("127.0.0.1", "gpu-7", "attached.alt", "gpu-7.attached.alt.example.com", "x.y.attached.alt"):
        assert sockets.path_of(host) == ""


def shut(made):
    made.sock.close()
    made.questions.close()


def test_the_newest_of_a_name_is_connected_to(sockets):
    first = sockets.listen("gpu-7")
    second = sockets.listen("gpu-7")
    path = sockets.path_of("gpu-7.attached.alt")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        accepted, _ = second.sock.accept()
        accepted.close()
    first.close()
    assert Path(path).exists()  # it is not the first one's any more
    second.close()
    assert not Path(path).exists()
    assert not Path(path).parent.exists()
    for one in (first, second):
        shut(one)


def test_nobody_else_may_connect(sockets):
    made = sockets.listen("gpu-7")
    folder = Path(sockets.path_of("gpu-7.attached.alt")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    made.close()
    shut(made)


def test_a_folder_that_others_can_enter_is_not_used(sockets):
    folder = Path(sockets.path_of("gpu-7.attached.alt")).parent
    folder.mkdir(mode=0o755)
    os.chmod(folder, 0o755)  # noqa: PTH101 - whatever the umask
    with pytest.raises(PermissionError):
        sockets.listen("gpu-7")


def test_a_link_is_not_followed(sockets, tmp_path):
    folder = Path(sockets.path_of("gpu-7.attached.alt")).parent
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "private" / "gpu-7").write_text("not to be replaced")
    folder.symlink_to(tmp_path / "private")
    with pytest.raises(PermissionError):
        sockets.listen("gpu-7")
    sockets.clear()
    assert (tmp_path / "private" / "gpu-7").read_text() == "not to be replaced"


def test_a_daemon_with_another_secret_has_others(sockets):
    assert AttachedSockets(b"other").path_of("a.attached.alt") != sockets.path_of("a.attached.alt")
    assert AttachedSockets(b"secret").path_of("a.attached.alt") == sockets.path_of("a.attached.alt")


def test_what_killed_workers_left_goes_with_the_daemon(sockets):
    made = sockets.listen("gpu-7")
    for sock in (made.sock, made.questions):
        sock.close()
    sockets.clear()
    assert not Path(sockets.path_of("gpu-7.attached.alt")).parent.exists()
    sockets.clear()
    NOWHERE.clear()


def test_without_quic_there_is_none():
    assert not Path(NOWHERE.path_of("a.attached.alt")).exists()
    with pytest.raises(OSError, match="not listened on"):
        NOWHERE.listen("a")


def test_a_name_has_two_sockets_and_both_are_the_newest_ones(sockets):
    first = sockets.listen("gpu-7")
    second = sockets.listen("gpu-7")
    assert (first.is_ours, second.is_ours) == (False, True)
    path = sockets.path_of("gpu-7.attached.alt") + ".punch"
    first.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        accepted, _ = second.questions.accept()
        accepted.close()
    shut(second)
    second.close()
    assert not Path(path).exists()
    third = sockets.listen("gpu-7")  # whose files may have the numbers of those that are gone
    shut(first)
    for one in (first, second):
        one.close()
    assert third.is_ours and third.is_there and Path(path).exists()
    third.close()
    assert not third.is_there
    shut(third)
