"""A file appears whole or not at all."""

import os

import pytest

from lpd_ext.files import write_atomically


def test_new_and_replaced(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"first")
    write_atomically(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_readable_as_the_umask_says(tmp_path):
    # Temporary files are private by default; the result must not stay so.
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.bin", b"x")
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["missing/a.bin", "file/a.bin"])
def test_no_folder(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"a\.bin"):
        write_atomically(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_target_is_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        write_atomically(tmp_path / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(source, target):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
