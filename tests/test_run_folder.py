import json
import subprocess
import sys
import time

import pytest

from pneumo_ray.errors import ConfigError, StorageError
from pneumo_ray.run_folder import STALE_SECONDS, FolderInUseError, RunFolder, folder_lock, host_name


def other(tmp_path, **changes) -> str:
    lock = {"token": "other", "host": host_name(), "pid": 1, "time": time.time()} | changes
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    return str(tmp_path / "lock.json")


def test_a_second_job_is_refused_meanwhile_only(tmp_path):
    uri = str(tmp_path / "lock.json")
    with folder_lock(uri), pytest.raises(FolderInUseError, match="process"), folder_lock(uri):
        pass
    with folder_lock(uri):
        pass
    assert not (tmp_path / "lock.json").exists()


def test_a_dead_process_loses_its_lock_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with folder_lock(other(tmp_path, pid=gone.pid)):
        pass


def test_a_remote_lock_holds_while_its_heart_beats(tmp_path):
    with pytest.raises(FolderInUseError, match="elsewhere"), folder_lock(other(tmp_path, host="elsewhere")):
        pass
    with folder_lock(other(tmp_path, host="elsewhere", time=time.time() - 2 * STALE_SECONDS)):
        pass


def test_a_lock_with_a_reused_pid_expires(tmp_path):
    with folder_lock(other(tmp_path, time=time.time() - 2 * STALE_SECONDS)):
        pass


def test_a_lost_lock_is_left_to_its_holder(tmp_path):
    with folder_lock(str(tmp_path / "lock.json")):
        other(tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "other"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}'])
def test_a_damaged_lock_is_no_lock(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    with folder_lock(str(tmp_path / "lock.json")):
        pass


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"), "_job/job.json")


def test_one_job_holds_a_folder(folder, tmp_path):
    with folder.held():
        assert (tmp_path / "run" / "_job" / "lock.json").exists()
        with pytest.raises(FolderInUseError), folder.held():
            pass
    assert list((tmp_path / "run" / "_job").iterdir()) == []


def test_a_record_is_read_as_written(folder):
    assert folder.read() is None
    folder.write({"model": "a", "options": {"seed": 0}})
    assert folder.read(("model",)) == {"model": "a", "options": {"seed": 0}}


@pytest.mark.parametrize("text", ["", "[]", '{"other": 1}', "\x00"])
def test_a_damaged_record_is_refused(folder, tmp_path, text):
    (tmp_path / "run" / "_job").mkdir(parents=True)
    (tmp_path / "run" / "_job" / "job.json").write_text(text)
    with pytest.raises(StorageError, match=r"job\.json"):
        folder.read(("model",))


def test_only_options_that_differ_and_count_are_refused(folder):
    before = {"seed": 0, "optim.lr": 0.1, "scaling.num_workers": 1}
    folder.refuse_other_options(before, before | {"scaling.num_workers": 8, "new": 3}, free=("scaling",))
    with pytest.raises(ConfigError, match=r"optim\.lr 0\.1 and not 0\.2"):
        folder.refuse_other_options(before, before | {"optim.lr": 0.2}, free=("scaling",))


def test_results_of_something_else_are_refused(folder):
    folder.refuse_other("the scores of another model", "a", "a")
    with pytest.raises(ConfigError, match="another model"):
        folder.refuse_other("the scores of another model", "a", "b")
