"""Clusters of several nodes on this machine, made as users make them, whose nodes can be killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Job:
    """A command of jobs/ that runs beside the test."""

    def __init__(self, words: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with open(log, "ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Wait for something that the job should bring about."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def ends(self, code: int = 0, seconds: float = 300) -> str:
        """Wait for its end and hold it to an exit code; return what it said."""
        try:
            assert self.process.wait(timeout=seconds) == code, self.said
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job did not end\n{self.said}")
        return self.said

    def kill(self) -> None:
        """Kill the driver, and any Ray that is its own."""
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        kill_all(family)


def kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


class Nodes:
    """A head and nodes that `ray start` made; each is a tree of processes, and is killed whole."""

    def __init__(self, folder: Path) -> None:
        self.temporary = tempfile.mkdtemp(dir="/tmp", prefix="pr-")  # sockets want a short path
        self.port, self.logs, self.jobs, self.nodes = free_port(), folder, [], []
        self.address = f"127.0.0.1:{self.port}"

    def start_head(self, cpus: int, *options: str) -> psutil.Process:
        return self._start(
            "--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.temporary}",
            f"--num-cpus={cpus}", *options,
        )  # fmt: skip

    def add_node(self, cpus: int) -> psutil.Process:
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--temp-dir={self.temporary}")

    def _start(self, *options: str) -> psutil.Process:
        number = len(self.nodes)
        words = [*RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=200000000"]
        ports = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
        with open(self.logs / f"node{number}.log", "wb") as sink:
            node = psutil.Popen([*words, *options, *ports], stdout=sink, stderr=sink)
        self.nodes.append(node)
        self._wait(node, number)
        return node

    def _wait(self, node: psutil.Process, number: int) -> None:
        log = self.logs / f"node{number}.log"
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def kill_node(self, node: psutil.Process) -> None:
        self.kill([*node.children(recursive=True), node])

    @staticmethod
    def kill(processes: list[psutil.Process]) -> None:
        kill_all(processes)

    def workers(self, name: str) -> list[psutil.Process]:
        """Return the worker processes of all nodes whose title holds a word, such as RayTrainWorker."""
        found = []
        for node in self.nodes:
            if node.is_running():
                for process in node.children(recursive=True):
                    try:
                        if name in " ".join(process.cmdline()):
                            found.append(process)
                    except psutil.NoSuchProcess:
                        continue
        return found

    def job(self, *words: str) -> Job:
        environment = os.environ | {"RAY_ADDRESS": self.address, "RAY_TMPDIR": self.temporary}
        job = Job(words, environment, self.logs / f"job{len(self.jobs)}.log")
        self.jobs.append(job)
        return job

    def end(self) -> None:
        for job in self.jobs:
            job.kill()
        for node in self.nodes:
            if node.is_running():
                self.kill_node(node)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture(scope="session")
def under_many_names(phantom_archive) -> Callable[[Path, int], Path]:
    """What fills a folder with the 80 phantoms, each under so many names."""

    def fill(folder: Path, names: int) -> Path:
        for number in range(names):
            (folder / str(number)).mkdir(parents=True)
            for path in phantom_archive.rglob("*.jpeg"):
                (folder / str(number) / path.name).symlink_to(path)
        return folder

    return fill


@pytest.fixture
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    """No nodes yet; all that the test starts is ended with it."""
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    yield made
    made.end()
