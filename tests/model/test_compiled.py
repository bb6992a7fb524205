"""Where compiled code is kept: in a folder of the user's own, unless it is set or cannot be had."""

import os
import stat

import pytest

from pneumo_ray.model.compiled import CACHE_VARIABLE, keep_compiled_code


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, "")  # so that it is as before after the test
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return monkeypatch


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_compiled_code_is_private_to_the_user(variable, unset, tmp_path):
    unset.setenv(variable, str(tmp_path))
    keep_compiled_code()
    folder = os.environ[CACHE_VARIABLE]
    assert folder.startswith(str(tmp_path))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_folder_that_is_set_is_kept(unset, tmp_path):
    unset.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    keep_compiled_code()
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "mine")


def test_without_a_home_the_default_stays(unset):
    unset.setenv("HOME", "/dev/null")
    keep_compiled_code()
    assert CACHE_VARIABLE not in os.environ
