"""Ask the OSV service whether a locked package has a known vulnerability; `make lint` runs it.

Exit code 1 names the packages. Where the service cannot be reached, one line reports it and the code is 0, because a
machine without a network must be able to lint. pip-audit alone does not suffice: it ends with 1 in both cases, and
with 0 and "No known vulnerabilities found" where it looked up nothing.

A finding that does not apply is ignored by its ID, with the reason, in pyproject.toml:

    [tool.pneumo_ray.audit.ignore]
    "GHSA-xxxx-xxxx-xxxx" = "only Windows, which is not supported"
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_UNREACHABLE = re.compile(
    r"Could ?not connect|ConnectionError|ConnectTimeout|ReadTimeout|ServiceError|SSLError|ProxyError|JSONDecodeError"
)


def main(lock: str = str(ROOT / "requirements.lock"), project: str = str(ROOT / "pyproject.toml")) -> int:
    """Audit a lock file; return the exit code."""
    tool = tomllib.loads(Path(project).read_text()).get("tool", {})
    ignored: dict[str, str] = tool.get("pneumo_ray", {}).get("audit", {}).get("ignore", {})
    if unexplained := sorted(name for name, reason in ignored.items() if not str(reason).strip()):
        print(f"audit: {', '.join(unexplained)} is ignored without a reason; give one in {project}")
        return 1
    options = ["--no-deps", "--disable-pip", "--vulnerability-service=osv", "--format=json", "--timeout=10"]
    command = [sys.executable, "-m", "pip_audit", f"--requirement={lock}", *options, "--progress-spinner=off"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        dependencies = json.loads(run.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        if _UNREACHABLE.search(run.stderr):
            print("audit: the vulnerability service cannot be reached, so no package was looked up")
            return 0
        print(f"audit: pip-audit failed: {last}")
        return 1
    found, used = [], set()
    for dependency in dependencies:
        for finding in dependency.get("vulns", []):
            names = {finding["id"], *finding.get("aliases", [])}
            used |= names
            if not names & set(ignored):
                fixed = ", ".join(finding.get("fix_versions", [])) or "no version"
                found.append(f"{dependency['name']} {dependency['version']}: {finding['id']}, fixed in {fixed}")
    skipped = [dependency["name"] for dependency in dependencies if "version" not in dependency]
    looked_up = len(dependencies) - len(skipped)
    for line in found:
        print(f"audit: {line}")
    for name in sorted(set(ignored) - used):
        print(f"audit: {name} is ignored but no longer found; remove it from {project}")
    without = f"; not known to the service: {', '.join(skipped)}" if skipped else ""
    print(f"audit: locked packages looked up: {looked_up}; known vulnerabilities: {len(found)}{without}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
