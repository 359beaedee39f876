"""The report: everything on one page that asks for nothing from outside."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import Command
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """Collects the elements, and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[np.ndarray]:
        """The embedded images, (H, W, 3)."""
        found = []
        for tag, attributes in self.elements:
            if tag == "img":
                kind, content = (attributes["src"] or "").split(",", 1)
                assert kind == "data:image/png;base64"
                with Image.open(io.BytesIO(base64.b64decode(content))) as image:
                    found.append(np.asarray(image.convert("RGB")))
        return found


def read(path: str) -> Page:
    return Page(Path(path).read_text(encoding="utf-8"))


def test_a_measured_run(trained: Path, command: Command, with_weights: Path) -> None:
    command("evaluate", trained, "--count", "4")
    outcome = command("report", trained, "--out", "pages/run.html")
    assert (outcome.code, outcome.out, outcome.err) == (0, "pages/run.html\n", "")
    page = read("pages/run.html")
    pictures = page.pictures()
    assert len(pictures) == 1 + 16 * 2  # the photo; each sample and its nearest
    assert {picture.shape for picture in pictures} == {(32, 40, 3)}
    for entry in json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["figures"]:
        assert entry["name"] in page.text
        assert f"{entry['value']:.4f}" in page.text
    for name in ("loss_G", "loss_D", "diversity"):
        assert name in page.text
    assert sum(tag == "polyline" for tag, _ in page.elements) == 3
    assert "augment_probability" in page.text
    assert "seed 15" in page.text


def test_the_nearest_image_of_a_copy_is_the_photo(
    trained: Path, command: Command, with_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneshotgan.run import Run
    from oneshotgan.sampling import OneShotGAN

    photo = Run.open(trained).frames()
    learned_by_heart = np.concatenate([photo, photo[:, :, ::-1]] * 8)
    monkeypatch.setattr(OneShotGAN, "sample", lambda self, seeds: learned_by_heart)
    command("report", trained, "--out", "run.html")
    page = read("run.html")
    for sample, nearest in zip(page.pictures()[1::2], page.pictures()[2::2], strict=True):
        assert np.array_equal(sample, nearest)
    assert Path("run.html").read_text(encoding="utf-8").count("<b>0.000</b>") == 16
    assert page.text.count("as it is") == page.text.count("mirrored") - 1 == 8


def test_several_runs_side_by_side_and_figure_curves(
    photo: Path, trained: Path, command: Command, train: Command, with_weights: Path
) -> None:
    train(photo, "--out", "other", "--steps", "4", "--log-every", "1", "--evaluate-every", "2", "--seed", "1")
    command("evaluate", "other", "--count", "3")
    assert command("report", trained, "other", "--out", "both.html").code == 0
    page = read("both.html")
    assert sum(tag == "section" for tag, _ in page.elements) == 2
    assert "Not measured yet: oneshotgan evaluate run" in page.text
    assert "_small" in page.text
    assert sum(tag == "polyline" for tag, _ in page.elements) == 3 + 5


def test_without_weights_the_samples_are_shown_all_the_same(
    trained: Path, command: Command, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(workdir))
    outcome = command("report", trained)
    assert (outcome.code, outcome.out) == (0, "report.html\n")
    assert outcome.err.count("\n") == 1
    assert "nearest training images left out" in outcome.err
    assert len(read("report.html").pictures()) == 1 + 16


def test_names_are_no_markup(photo: Path, train: Command, command: Command, with_weights: Path) -> None:
    name = "<img src=x>&{{ 7 * 7 }}"
    train(photo, "--out", name, "--steps", "1")
    command("report", name, "--out", "run.html")
    assert name in read("run.html").text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "one run directory or more"),
        (("none",), "no run directory"),
        (("run", "none"), "no run directory"),
        (("run", "--out", "page.png"), "name it .html"),
        (("run", "--out", "scene.png/page.html"), "scene.png"),
    ],
)
def test_bad_input(
    trained: Path, command: Command, with_weights: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in command("report", *arguments).error
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    "content", ["{", '{"step": null, "figures": []}', '{"step": 1, "figures": [{"name": "x"}]}']
)
def test_a_damaged_file_of_figures_is_named(
    trained: Path, command: Command, with_weights: Path, content: str
) -> None:
    (trained / "metrics.json").write_text(content)
    assert "metrics.json is damaged" in command("report", trained).error


def test_lines_of_no_use_are_passed_over(trained: Path, command: Command, with_weights: Path) -> None:
    with open(trained / "stats.jsonl", "a", encoding="utf-8") as file:
        file.write('[]\n{"step": 9, "loss_G": null}\n{"step": 10, "loss_')
    assert command("report", trained).code == 0


def test_nothing_is_asked_for_from_outside(trained: Path, command: Command, with_weights: Path) -> None:
    command("report", trained, "--out", "run.html")
    text = Path("run.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert not re.search(r"https?:|url\(|@import", text)
    policy = next(a["content"] for tag, a in read("run.html").elements if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_it_and_asks_for_nothing(
    trained: Path, command: Command, with_weights: Path, tmp_path: Path
) -> None:
    command("report", trained, "--out", "run.html")
    text = Path("run.html").read_text(encoding="utf-8")
    Path("bare.html").write_text(re.sub(r'src="data:[^"]*"', 'src="data:,"', text), encoding="utf-8")
    drawn, bare = (screenshot(tmp_path, name) for name in ("run.html", "bare.html"))
    assert colours(drawn) > 5 * colours(bare)  # the pictures are there
    assert colours(bare) > 10  # and so is the text
    log = json.loads((tmp_path / "run.html.netlog").read_text(encoding="utf-8"))
    asked = set(re.findall(r"\"url\": ?\"([^\"]+)\"", json.dumps(log["events"])))
    outside = {url for url in asked if not url.startswith(("file:", "data:", "chrome", "about:", "blob:"))}
    own = (
        "clients2.google.com",
        "accounts.google.com",
        "update.googleapis.com",
        "android.clients.google.com",
    )
    hosts = {urlsplit(url).hostname for url in outside}
    assert hosts <= {*own, "optimizationguide-pa.googleapis.com", "content-autofill.googleapis.com"}


def screenshot(folder: Path, name: str) -> np.ndarray:
    """The page as Chromium draws it, (H, W, 3); its log of the network lies beside."""
    image = folder / f"{name}.screen.png"
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
        "--window-size=1000,1400", f"--user-data-dir={folder / 'profile'}", f"--screenshot={image}",
        f"--log-net-log={folder / name}.netlog",
    )  # fmt: skip
    words = [str(CHROMIUM), *flags, Path(name).resolve().as_uri()]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    with Image.open(image) as opened:
        return np.asarray(opened.convert("RGB"))


def colours(image: np.ndarray) -> int:
    """How many different colours an image has."""
    return len(np.unique(image.reshape(-1, 3), axis=0))
