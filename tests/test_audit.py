"""The audit of the lock against a stand-in for the OSV service on loopback: three answers, three ends."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FINDING = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2099-1"],
    "summary": "runs what a stranger sends",
    "affected": [
        {
            "package": {"name": "pillow", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
        }
    ],
}


@pytest.fixture
def service():
    """OSV's /v1/query: pillow has a vulnerability; yields the address and the names that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(query["package"]["name"])
            body = json.dumps({"vulns": [FINDING]} if asked[-1] == "pillow" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/query", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def audit(tmp_path):
    def run(address: str, packages: str, project: str = "") -> tuple[int, str]:
        (tmp_path / "lock").write_text(packages)
        (tmp_path / "pyproject.toml").write_text(project)
        command = [sys.executable, ".ci/audit.py", str(tmp_path / "lock"), str(tmp_path / "pyproject.toml")]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {"PIP_AUDIT_OSV_URL": address, "no_proxy": "127.0.0.1"}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ended.stderr == ""
        return ended.returncode, ended.stdout

    return run


def test_a_vulnerable_package_fails_and_is_named(service, audit):
    code, said = audit(service[0], "numpy==2.0.0\npillow==11.0.0\n")
    assert code == 1
    assert "audit: pillow 11.0.0: CVE-2099-1, fixed in 99.0\n" in said  # pip-audit prefers the CVE among the names
    assert "looked up: 2; known vulnerabilities: 1\n" in said
    assert sorted(service[1]) == ["numpy", "pillow"]


def test_a_clean_audit_logs_how_many_were_asked(service, audit):
    assert audit(service[0], "numpy==2.0.0\n") == (0, "audit: locked packages looked up: 1; known vulnerabilities: 0\n")


@pytest.mark.parametrize("name", ["GHSA-aaaa-bbbb-cccc", "CVE-2099-1"])
def test_a_finding_is_ignored_only_with_a_reason(service, audit, name):
    table = "[tool.pneumo_ray.audit.ignore]\n"
    code, said = audit(service[0], "pillow==11.0.0\n", f'{table}"{name}" = "we never do that"\n')
    assert (code, said) == (0, "audit: locked packages looked up: 1; known vulnerabilities: 0\n")
    code, said = audit(service[0], "pillow==11.0.0\n", f'{table}"{name}" = " "\n')
    assert code == 1
    assert f"{name} is ignored without a reason" in said
    code, said = audit(service[0], "numpy==2.0.0\n", f'{table}"{name}" = "we never do that"\n')
    assert code == 0
    assert f"{name} is ignored but no longer found" in said


def test_an_unreachable_service_is_one_line(audit):
    code, said = audit("http://127.0.0.1:9/v1/query", "numpy==2.0.0\n")
    assert (code, said) == (0, "audit: the vulnerability service cannot be reached, so no package was looked up\n")


def test_a_lock_that_cannot_be_read_fails(audit):
    code, said = audit("http://127.0.0.1:9/v1/query", "numpy>=2\n")
    assert code == 1
    assert said.count("\n") == 1
