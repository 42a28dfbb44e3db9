"""What a restart finds of the daemon before it: one secret, whole, for nobody else's eyes."""

import stat

from router.config.quic_secret import FILE, load_secret


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
