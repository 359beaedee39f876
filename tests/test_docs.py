"""What README and docs tell people to type works, and the links between the pages lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Command, scene, write_suite

from oneshotgan import media

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")])


def commands(page: Path) -> list[list[str]]:
    """The `oneshotgan` commands in the page's shell blocks, without the program's folder."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "oneshotgan" and ">" not in words:
                    found.append(words[1:])
    return found


def shortened(words: list[str]) -> list[str]:
    """The command at a size that a test can run; a benchmark is that of ``tiny.toml``."""
    if words[0] == "benchmark":
        return ["benchmark", "tiny.toml", "--out", words[words.index("--out") + 1]]
    if words[0] == "evaluate":
        return [*words, "--count", "3"]
    if words[0] == "sample" and "--count" in words:
        at = words.index("--count") + 1
        return [*words[:at], "3", *words[at + 1 :]]
    if words[0] == "serve":  # until Ctrl-C: tests/web does it
        return ["serve", "--help"]
    if words[0] != "train":
        return words
    for flag in ("--steps", "--threads", "--precision", "--preset"):
        if flag in words:
            at = words.index(flag)
            words = words[:at] + words[at + 2 :]
    return [*words, "--steps", "2", "--preset", "preview", *TINY]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, workdir: Path, command: Command, with_weights: Path) -> None:
    for path in ("balloons.png", "examples/hens.webp"):
        Path(path).parent.mkdir(exist_ok=True)
        media.write_png(path, scene())
    for path in ("kite-surf", "clip.mp4"):
        images = media.read_frames("balloons.png", lambda size: size).images.repeat(8, axis=0)
        if path.endswith(".mp4"):
            media.write_animation(path, images)
        else:
            Path(path).mkdir()
            for index, image in enumerate(images):
                media.write_png(Path(path) / f"{index:05d}.png", image)
    write_suite(Path("tiny.toml"), steps=2)
    for words in commands(page):
        if "--step" in words and "best" not in words:  # a snapshot of the documented step
            run, step = Path(words[1]), int(words[words.index("--step") + 1])
            shutil.copy(run / "model/model.safetensors", run / f"snapshots/step-{step:06d}.safetensors")
        outcome = command(*shortened(words))
        assert outcome.code == 0, (words, outcome.err)


def test_the_readmes_python_works(workdir: Path, command: Command) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert blocks
    media.write_png("balloons.png", scene())
    command(*shortened(["train", "balloons.png"]))
    for block in blocks:
        names: dict[str, object] = {}
        exec(block, names)
        assert names["images"].shape[0] == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target
