"""What a restart finds of the daemon before it: one secret, whole, for nobody else's eyes."""

import stat

from router.config.quic_secret import FILE, INCARNATION, keep_incarnation, load_secret, next_incarnation


def test_with_a_directory_it_stays(tmp_path):
    folder = tmp_path / "new" / "state"
    first = load_secret(str(folder))
    assert len(first) == 32 and load_secret(str(folder)) == first
    found = (folder / FILE).stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [FILE], "nothing half-written is left"


def test_without_one_it_is_new_each_time():
    assert load_secret("") != load_secret("")


def test_one_that_is_cut_off_is_made_anew(tmp_path, caplog):
    (tmp_path / FILE).write_bytes(b"short")
    made = load_secret(str(tmp_path))
    assert len(made) == 32 and load_secret(str(tmp_path)) == made
    assert "5 bytes instead of 32" in caplog.text


def test_a_directory_that_cannot_be_written_is_no_reason_not_to_start(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    assert len(load_secret(str(tmp_path / "file" / "below"))) == 32
    assert "cannot end this one's QUIC connections" in caplog.text


def test_an_incarnation_is_followed_by_the_next(tmp_path):
    keep_incarnation(str(tmp_path), 41)
    assert next_incarnation(str(tmp_path)) == 42
    keep_incarnation(str(tmp_path), 255)
    assert next_incarnation(str(tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == [INCARNATION], "nothing half-written is left"


def test_where_none_is_known_it_is_any(tmp_path):
    (tmp_path / INCARNATION).write_bytes(b"\xffno number")
    for folder in ("", str(tmp_path / "nowhere"), str(tmp_path)):
        found = {next_incarnation(folder) for _ in range(40)}
        assert len(found) > 5 and found <= set(range(256))


def test_one_that_cannot_be_kept_is_no_reason_not_to_start(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    keep_incarnation(str(tmp_path / "file"), 7)
    keep_incarnation("", 7)
    assert caplog.text.count("may not end this one's QUIC connections") == 1
