"""Every block of the READMEs runs, in order, in a folder that holds nothing but configs/."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.(?:py|toml))\n")
CONTINUED = re.compile(r"# \w+\.py, continued\n")


def blocks(document: Path, heading: str = "") -> list[tuple[str, str]]:
    """(language, text) of each fenced block from `heading` on; those of one file are joined."""
    found: list[tuple[str, str]] = []
    text = document.read_text()
    for match in BLOCK.finditer(text, text.index(f"{heading}\n")):
        language, text = match[1], match[2]
        if part := CONTINUED.match(text):
            language, begun = found.pop()
            text = f"{begun}\n{text[part.end() :]}"
        found.append((language, text))
    return found


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def run(command: list[str], folder: Path) -> str:
    scripts = str(Path(sys.executable).parent)
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_lines(text: str, folder: Path) -> None:
    for line in text.splitlines():
        command = line.partition(" #")[0].strip()
        if command.startswith("make "):
            assert command.removeprefix("make ") in make_targets(), f"no such target: {command}"
        elif command:
            run(["bash", "-c", command], folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("document", "heading", "languages"),
    [
        ("README.md", "# rollout", {"sh", "python", "toml"}),
        ("README.md", "### An algorithm of your own", {"python", "toml"}),
        ("envs/README.md", "", {"sh", "python", "toml"}),
        ("learners/README.md", "", {"python"}),
    ],
)
def test_every_block_of_a_readme_runs(document, heading, languages, tmp_path):
    """From a heading on."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    seen = set()
    for language, text in blocks(ROOT / document, heading):
        seen.add(language)
        if language == "sh":
            run_lines(text, tmp_path)
        elif named := FILE_NAME.match(text):
            (tmp_path / named[1]).write_text(text)
            if language == "python":
                run([sys.executable, named[1]], tmp_path)
        elif language == "python":
            run([sys.executable, "-c", text], tmp_path)
        elif language == "toml":
            (tmp_path / "experiment.toml").write_text(text)
            run(["rollout", "train", "experiment.toml", "--quiet"], tmp_path)
    assert seen >= languages


def test_readme_has_no_gap_left_to_fill():
    text = (ROOT / "README.md").read_text()
    assert not re.findall(r"\b[A-Z]{3,}_[A-Z_]{3,}\b", text.replace("SAME_STEP", ""))
    for link in re.findall(r"\]\(([\w./]+)\)", text):
        assert (ROOT / link).exists(), link


def test_files_that_the_readme_names_exist():
    for name in re.findall(
        r"`((?:rollout|envs|learners)/[\w/]+\.py)`", (ROOT / "README.md").read_text()
    ):
        assert (ROOT / name).is_file(), name
