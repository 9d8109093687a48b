"""The Dockerfile, without building it: what it copies and installs exists, and the docs match it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCS = (ROOT / "docs/export.md").read_text()


def arguments_of(instruction: str) -> list[str]:
    """The arguments of each line with this instruction."""
    return [line.removeprefix(instruction).strip() for line in LINES if line.startswith(f"{instruction} ")]


def copied_paths() -> set[str]:
    """Files and folders that are copied into the image."""
    return {source for line in arguments_of("COPY") for source in line.split()[:-1]}


def test_everything_needed_to_build_the_package_is_copied_and_not_ignored():
    hatch = PROJECT["tool"]["hatch"]
    readme_parts = [part["path"] for part in hatch["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]]
    built_from = {"pyproject.toml", *readme_parts, *PROJECT["project"]["license-files"]}
    wheel = hatch["build"]["targets"]["wheel"]
    built_from |= {*wheel["packages"], *wheel["force-include"]}
    assert copied_paths() == built_from
    not_ignored = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert not_ignored == built_from
    assert all((ROOT / name).exists() for name in built_from)


def test_the_extras_exist():
    (extras,) = (value for name, _, value in (line.partition("=") for line in arguments_of("ARG")) if name == "EXTRAS")
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_base_is_an_argument_and_the_command_does_not_run_as_root():
    assert arguments_of("FROM") == ["${BASE}"]
    assert arguments_of("USER")[-1].isdigit() and arguments_of("USER")[-1] != "0"
    assert f"--uid {arguments_of('USER')[-1]}" in " ".join(arguments_of("RUN"))
    assert arguments_of("ENTRYPOINT") == ['["dino"]']


def test_build_arguments_of_the_docs_are_those_of_the_dockerfile():
    arguments = {line.partition("=")[0] for line in arguments_of("ARG")}
    used = set(re.findall(r"--build-arg (\w+)=", DOCS))
    assert {"BASE"} <= used <= arguments


def test_the_docs_show_how_to_run_the_commands_of_the_readme_in_a_container():
    (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if "&& dino predict" in line)
    commands = re.findall(r"dino (?:sample-data|predict)[^&]+", line)
    assert len(commands) == 2
    assert all(re.search(rf"docker run .* {re.escape(command.strip())}$", DOCS, re.M) for command in commands)
