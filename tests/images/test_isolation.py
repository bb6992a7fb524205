"""What hangs or dies while it decodes: which image it was is known, and the next is decoded."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from pneumo_ray.images.decode import TruncatedImageError, decode_image
from pneumo_ray.images.isolation import DecoderDiedError, DecodeTimeoutError, guarded


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64).astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def test_a_lost_call_is_named_and_replaced():
    data = jpeg()
    with guarded(1.0, careful=True) as call:
        assert np.array_equal(call(decode_image, data), decode_image(data))
        with pytest.raises(DecodeTimeoutError, match="longer than 1 s"):
            call(time.sleep, 30)
        with pytest.raises(DecoderDiedError, match="SIGABRT"):
            call(os.abort)
        with pytest.raises(TruncatedImageError):
            call(decode_image, data[: len(data) // 2])
        assert np.array_equal(call(decode_image, data, min_size=32), decode_image(data, min_size=32))
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_starting_a_child_takes_no_time_limit():
    with guarded(0.2, careful=True) as call:
        assert call(os.getpid) == call(os.getpid)


def test_an_image_beyond_the_memory_is_refused():
    with guarded(30.0, careful=True) as call, pytest.raises(RuntimeError, match="MemoryError"):
        call(np.ones, 10**9)


def test_a_bug_keeps_its_place_without_message():
    with guarded(30.0, careful=True) as call, pytest.raises(RuntimeError) as raised:
        call(int, "DOE^JANE")
    assert "ValueError at" in str(raised.value)
    assert "JANE" not in str(raised.value)


@pytest.mark.parametrize("hang", ["time.sleep(60)", "holds_the_lock()"])
def test_the_watchdog_ends_a_locked_python(hang):
    """Somebody starts it again; here nobody does. A regular expression backtracks without ever giving up the lock."""
    code = f"""
        import re, time
        from pneumo_ray.images.isolation import guarded
        def holds_the_lock():
            re.match("(a*)*b", "a" * 64)
        with guarded(0.5, careful=False) as call:
            call(time.sleep, 0.1)
            print("fine", flush=True)
            call(lambda: {hang})
    """
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1
    assert result.stdout == "fine\n"
    assert "Timeout" in result.stderr
    assert time.monotonic() - started < 30


def test_time_between_two_calls_does_not_count():
    with guarded(0.3, careful=False) as call:
        call(time.sleep, 0)
        time.sleep(0.6)
        call(time.sleep, 0)


def test_a_child_whose_parent_is_gone_ends():
    code = """
        import os, time
        from pneumo_ray.images.isolation import guarded
        if __name__ == "__main__":
            with guarded(1.0, careful=True) as call:
                call(os.getpid)
                print(call._process.pid, flush=True)
                call(time.sleep, 0.9)
                os.kill(os.getpid(), 9)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL
    child = psutil.Process(int(result.stdout)) if psutil.pid_exists(int(result.stdout)) else None
    if child is not None:
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
