"""A file appears whole or not at all."""

import os

import pytest

from lpd_ext.files import write_atomically, write_together


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


def test_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    # Renamed first, the file could be empty after a crash.
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (calls.append(n), f(*a)))
    write_atomically(tmp_path / "a.bin", b"x")
    assert calls == ["fsync", "replace"]


class TestFunctions:
    """A file too large to hold as bytes is written by a function."""

    @pytest.mark.parametrize("anew", [False, True], ids=["into the file", "another in its place"])
    def test_writes(self, tmp_path, anew):
        def write(partial):
            if anew:
                partial.unlink()
            partial.write_bytes(b"written")

        write_together({tmp_path / "a": write, tmp_path / "b": b"bytes"})
        assert (tmp_path / "a").read_bytes() == b"written"
        assert (tmp_path / "b").read_bytes() == b"bytes"
        assert len(list(tmp_path.iterdir())) == 2

    def test_fails(self, tmp_path):
        def write(partial):
            partial.write_bytes(b"half")
            raise ValueError("does not fit")

        (tmp_path / "b").write_bytes(b"old")
        with pytest.raises(ValueError, match="does not fit"):
            write_together({tmp_path / "a": b"first", tmp_path / "b": write})
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
        assert (tmp_path / "b").read_bytes() == b"old"


class TestTogether:
    def fail_at(self, monkeypatch, call, error):
        """Let `os.replace` fail once, at its n-th call."""
        calls, replace = [], os.replace

        def fail(source, target):
            calls.append(target)
            if len(calls) == call:
                raise error
            replace(source, target)

        monkeypatch.setattr(os, "replace", fail)

    @pytest.mark.parametrize("call", [1, 2, 3])
    @pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
    def test_all_or_none(self, tmp_path, monkeypatch, call, error):
        old, new, last = (tmp_path / name for name in ("old", "new", "last"))
        old.write_bytes(b"1")
        old.chmod(0o600)
        last.write_bytes(b"2")
        self.fail_at(monkeypatch, call, error)
        with pytest.raises(type(error)):
            write_together({old: b"x", new: b"y", last: b"z"})
        assert sorted(tmp_path.iterdir()) == [last, old]
        assert (old.read_bytes(), last.read_bytes()) == (b"1", b"2")
        assert old.stat().st_mode & 0o777 == 0o600

    def test_without_hard_links(self, tmp_path, monkeypatch):
        def no_links(*args, **kwargs):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", no_links)
        a, b = tmp_path / "a", tmp_path / "b"
        write_together({a: b"1", b: b"2"})
        self.fail_at(monkeypatch, 2, OSError(28, "No space left"))
        with pytest.raises(OSError, match="No space"):
            write_together({a: b"x", b: b"y"})
        assert (a.read_bytes(), b.read_bytes()) == (b"1", b"2")
        assert sorted(tmp_path.iterdir()) == [a, b]

    def test_a_folder_missing_for_the_second(self, tmp_path):
        with pytest.raises(OSError, match="missing"):
            write_together({tmp_path / "a": b"1", tmp_path / "missing" / "b": b"2"})
        assert list(tmp_path.iterdir()) == []
