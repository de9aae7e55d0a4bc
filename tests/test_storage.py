"""Files behind one set of functions, on disk and on S3."""

import errno
import os

import pytest

from caft.errors import ConfigError, StorageError
from pipelines import storage, user_paths


def test_files_are_written_listed_read_and_deleted(place):
    assert storage.list_files(place) == []
    storage.write_bytes(storage.join(place, "b.bin"), b"two")
    storage.write_json(storage.join(place, "a.json"), {"x": 1})
    assert storage.list_files(place) == ["a.json", "b.bin"]
    assert storage.list_files(place, ".json") == ["a.json"]
    assert storage.read_json(storage.join(place, "a.json")) == {"x": 1}
    assert storage.read_bytes(storage.join(place, "b.bin")) == b"two"
    with storage.opened(place) as copy:
        assert sorted(os.listdir(copy)) == ["a.json", "b.bin"]
    with storage.opened(storage.join(place, "b.bin")) as file:
        assert file.read_bytes() == b"two"


def test_a_missing_file_is_named(place):
    with pytest.raises(StorageError, match=r"nothing\.json: no such file"):
        storage.read_json(storage.join(place, "nothing.json"))


def test_relative_paths_are_refused_inside_a_ray_job(monkeypatch):
    assert os.path.isabs(user_paths.usable_path("runs/x", "output"))
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    with pytest.raises(ConfigError, match="output: 'runs/x' is relative"):
        user_paths.usable_path("runs/x", "output")
    assert user_paths.usable_path("s3://b/x", "output") == "s3://b/x"


def test_work_that_cannot_fit_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"MiB free, about .* MiB needed"):
        user_paths.check_space(str(tmp_path / "new" / "folder"), 2**60)


class Stumbles:
    """A filesystem whose first writes fail as S3 answers."""

    def __init__(self, fs, words: str, times: int) -> None:
        self.fs, self.words, self.left = fs, words, times

    def open_output_stream(self, *args, **options):
        if self.left:
            self.left -= 1
            raise OSError(self.words)
        return self.fs.open_output_stream(*args, **options)

    def __getattr__(self, name):
        return getattr(self.fs, name)


@pytest.mark.parametrize(
    "words",
    [
        "AWS Error UNKNOWN (HTTP status 429) during PutObject operation: slow down",
        "AWS Error UNKNOWN (HTTP status 408) during UploadPart operation: No response body.",
        "AWS Error REQUEST_TIMEOUT during PutObject operation: RequestTimeout",
        "AWS Error SLOW_DOWN during CompleteMultipartUpload operation: reduce your rate",
    ],
)
def test_a_write_that_a_store_puts_off_is_tried_again(words, bucket, monkeypatch):
    monkeypatch.setattr(storage, "S3_WAITS_S", (0.01, 0.01, 0.01))
    whole = storage.filesystem
    fs = Stumbles(whole(bucket)[0], words, 2)
    monkeypatch.setattr(storage, "filesystem", lambda path: (fs, whole(path)[1]))
    storage.write_bytes(f"{bucket}/a.json", b"{}")
    assert fs.left == 0
    assert storage.read_bytes(f"{bucket}/a.json") == b"{}"
    fs.left, fs.words = 9, "AWS Error ACCESS_DENIED during PutObject operation: no"
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        storage.write_bytes(f"{bucket}/a.json", b"{}")
    assert fs.left == 8


def test_a_disk_that_can_only_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"a\.json: the disk can only be read; name another"):
        storage.write_bytes(str(tmp_path / "a.json"), b"{}")
    assert list(tmp_path.iterdir()) == []
