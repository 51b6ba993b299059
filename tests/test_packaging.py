"""What is installed, and what importing it costs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("envs", "learners")


def files_under(folder: Path) -> set[str]:
    """Files of a folder, without what links lead to and without bytecode."""
    found = set()
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {(Path(place) / name).relative_to(folder).as_posix() for name in files}
    return found


def run_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_wheel_holds_exactly_the_three_folders(tmp_path):
    built = run_python(
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(tmp_path), str(ROOT)),
        cwd=tmp_path,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"rollout/{name}" for name in files_under(ROOT / "rollout")}
    for name in LINKED:
        expected |= {f"rollout/{name}/{file}" for file in files_under(ROOT / name)}
    assert packed == expected
    assert {"rollout/py.typed", "rollout/envs/__init__.py", "rollout/learners/__init__.py"} < packed


@pytest.mark.parametrize("name", LINKED)
def test_folder_is_reached_through_a_relative_link(name):
    link = ROOT / "rollout" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_importing_the_packages_imports_neither_torch_nor_pydantic():
    heavy = "torch pydantic typer rich"
    code = (
        "import sys, rollout, rollout.envs, rollout.learners;"
        f"print(*(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = run_python("-c", code, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_importing_rollout_alone_imports_nothing_from_elsewhere():
    code = (
        "import sys; before = set(sys.modules); import rollout;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*(new - {'rollout'} - sys.stdlib_module_names))"
    )
    done = run_python("-c", code, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_checkout_without_its_links_says_how_to_mend_them(tmp_path):
    shutil.copytree(
        ROOT / "rollout",
        tmp_path / "rollout",
        ignore=lambda folder, names: {*LINKED, "__pycache__"} & set(names),
    )
    (tmp_path / "rollout" / "envs").write_text("../envs")  # what Python's zipfile makes of a link
    done = run_python("-c", "import rollout", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    error = done.stderr.splitlines()[-1]
    assert "lost its links rollout/envs, rollout/learners" in error
    assert "ln -sfn ../envs rollout/envs; ln -sfn ../learners rollout/learners" in error


def test_unknown_name_of_the_package_is_an_attribute_error():
    import rollout

    assert not hasattr(rollout, "no_such_name")


def test_other_systems_are_told_at_use_that_rollout_runs_on_linux(monkeypatch):
    import rollout
    from rollout.errors import OperatorError

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OperatorError, match="runs on Linux, this is darwin"):
        _ = rollout.train
