"""The documentation runs: code blocks are executed, shell lines are real, links lead somewhere.

Fences of a page: `python` blocks run one after the other in one process, in an empty folder;
`console` blocks run their `$` lines there too and, where output follows, find it (`…` stands for
anything); `sh` blocks hold only what this test can't do (make, git, pip) and their make targets
must exist.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.M | re.S)
RUN_BLOCKS = """
import sys
space = {"__name__": "__main__"}
for source in sys.stdin.read().split("\\0"):
    line, _, text = source.partition(":")
    exec(compile("\\n" * int(line) + text, sys.argv[1], "exec"), space)
"""


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of a page's fences in one language."""
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        if match[1] == language:
            found.append((text[: match.start(2)].count("\n"), match[2]))
    return found


def pages_with(language: str) -> list[Path]:
    return [p for p in PAGES if p.exists() and blocks(p, language)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def environment(folder: Path) -> dict[str, str]:
    """Finds this checkout's package and a `tactician` command wherever the tests run."""
    tools = folder / "bin"
    tools.mkdir()
    for tool, module in (("tactician", "-m tactician"), ("python", "")):
        script = tools / tool
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    return dict(os.environ, PYTHONPATH=str(ROOT), PATH=path, COLUMNS="100", NO_COLOR="1")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder to run in, with the shipped model as the pages' model.onnx."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(ROOT / "tactician" / "data" / "lenet_digits.onnx", folder / "model.onnx")
    return folder


@pytest.mark.parametrize("page", pages_with("python"), ids=name)
def test_python_blocks(page: Path, tmp_path: Path, work: Path) -> None:
    sources = "\0".join(f"{line}:{text}" for line, text in blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS, str(page)],
        input=sources, capture_output=True, text=True, cwd=work, env=environment(tmp_path),
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", pages_with("console"), ids=name)
def test_console_blocks(page: Path, tmp_path: Path, work: Path) -> None:
    env = environment(tmp_path)
    for line, text in blocks(page, "console"):
        for command, expected in commands(text):
            done = subprocess.run(
                command, shell=True, capture_output=True, text=True, cwd=work, env=env, timeout=120
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{name(page)}:{line}: $ {command}\n{said}"
            pattern = ".*".join(re.escape(part) for part in expected.strip().split("…"))
            found = re.search(pattern, said, re.S)
            assert found, f"{name(page)}:{line}: $ {command}\nprinted\n{said}\nnot\n{expected}"


def commands(text: str) -> list[tuple[str, str]]:
    """(command, expected output) of a console block."""
    out: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            out.append((line[2:], ""))
        elif out:
            out[-1] = (out[-1][0], f"{out[-1][1]}{line}\n")
    return out


@pytest.mark.parametrize("page", pages_with("sh"), ids=name)
def test_sh_blocks_use_targets_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for line, text in blocks(page, "sh"):
        for words in filter(None, (shlex.split(s, comments=True) for s in text.splitlines())):
            command = shlex.join(words)
            assert words[0] in ("make", "git", "pip", "cd"), f"{name(page)}:{line}: {command}"
            if words[0] == "make":
                made = [w for w in words[1:] if "=" not in w]
                assert set(made) <= targets, f"{name(page)}:{line}: {command}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.exists()], ids=name)
def test_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        relative = page.relative_to(ROOT / "docs").as_posix()
        assert relative == "index.md" or f"({relative})" in index, f"index.md lacks {relative}"


def test_commands_and_expected_output_are_told_apart() -> None:
    assert commands("$ a b\nx\ny\n$ c\n") == [("a b", "x\ny\n"), ("c", "")]
