import json
import subprocess
import sys
import time

import pytest

from pneumo_ray.run_folder import STALE_SECONDS, FolderInUseError, _host, folder_lock


def other(tmp_path, **changes) -> str:
    lock = {"token": "other", "host": _host(), "pid": 1, "time": time.time()} | changes
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    return str(tmp_path / "lock.json")


def test_a_second_job_is_refused_while_the_first_runs_and_not_after(tmp_path):
    uri = str(tmp_path / "lock.json")
    with folder_lock(uri), pytest.raises(FolderInUseError, match="process"), folder_lock(uri):
        pass
    with folder_lock(uri):
        pass
    assert not (tmp_path / "lock.json").exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with folder_lock(other(tmp_path, pid=gone.pid)):
        pass


def test_the_lock_of_another_machine_holds_until_its_heartbeat_is_old(tmp_path):
    with pytest.raises(FolderInUseError, match="elsewhere"), folder_lock(other(tmp_path, host="elsewhere")):
        pass
    with folder_lock(other(tmp_path, host="elsewhere", time=time.time() - 2 * STALE_SECONDS)):
        pass


def test_the_lock_of_a_process_that_has_its_number_again_grows_old_too(tmp_path):
    with folder_lock(other(tmp_path, time=time.time() - 2 * STALE_SECONDS)):
        pass


def test_a_lock_that_was_taken_over_is_left_to_its_holder(tmp_path):
    with folder_lock(str(tmp_path / "lock.json")):
        other(tmp_path)
    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "other"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3}'])
def test_a_damaged_lock_is_no_lock(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    with folder_lock(str(tmp_path / "lock.json")):
        pass
