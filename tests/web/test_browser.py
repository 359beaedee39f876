"""The pages in a real browser, through Chromium's DevTools protocol: as a person would use them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import png_bytes, scene
from websockets.sync.client import connect

from web.conftest import Serve, Server, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

PIXELS = """(() => { const image = document.getElementById(%s) ?? document.querySelector(%s);
  if (!image.complete || !image.naturalWidth) return "";
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data.join(); })()"""


class Browser:
    """One page of a headless Chromium, and all that it asked for and complained of."""

    def __init__(self, profile: Path) -> None:
        flags = (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
        )  # fmt: skip
        self.process = subprocess.Popen([str(CHROMIUM), *flags], stderr=subprocess.DEVNULL)
        port = profile / "DevToolsActivePort"
        wait_for(lambda: port.exists() and port.read_text().strip())
        self.address = f"http://127.0.0.1:{port.read_text().split()[0]}"
        self.events: list[dict[str, Any]] = []
        self.number = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within this context it is connected to its only page."""
        with urlopen(f"{self.address}/json", timeout=30) as answer:
            pages = [target for target in json.load(answer) if target["type"] == "page"]
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as self.connection:
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
            yield

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol."""
        self.number += 1
        self.connection.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.connection.recv(timeout=60))
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script: str, seconds: float = 40) -> Any:
        return wait_for(
            lambda: self.run(f"(() => {{ try {{ return {script}; }} catch {{ return false; }} }})()"), seconds
        )

    def focus(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")

    def press(self, key: str, times: int = 1) -> None:
        """A key of the keyboard, as the browser itself would get it."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "Tab": 9, "Enter": 13, " ": 32, "Escape": 27}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                extra = {"text": text} if text and kind == "keyDown" else {}
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code=key,
                    windowsVirtualKeyCode=codes[key],
                    **extra,
                )

    def pixels(self, image: str) -> str:
        """The pixels of an image, by its id or a selector, once it has loaded."""
        name = json.dumps(image)
        return str(wait_for(lambda: self.run(PIXELS % (name, name))))

    def complaints(self) -> list[str]:
        """What stood in the console."""
        found = []
        for event in self.events:
            entry = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(entry))
            elif event["method"] == "Runtime.consoleAPICalled" and entry["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(json.dumps(entry["args"]))
            elif event["method"] == "Log.entryAdded" and entry["entry"]["level"] in ("error", "warning"):
                found.append(json.dumps(entry["entry"]))
        return found

    def asked(self) -> set[str]:
        """Every address that a request went to."""
        requests = [
            event["params"]["request"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {request["url"] for request in requests}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    started = Browser(tmp_path / "profile")
    try:
        with started.open():
            yield started
    finally:
        started.process.kill()
        started.process.wait()


@pytest.fixture
def page(serve: Serve, trained_once: Path, random_weights: Path) -> Server:
    server = serve(ONESHOTGAN_WEIGHTS=str(random_weights))
    for name in ("one", "two"):
        shutil.copytree(trained_once, server.root / name)
    return server


def fits(browser: Browser) -> bool:
    """Whether nothing stands out to the side."""
    return bool(browser.run("document.documentElement.scrollWidth <= innerWidth"))


UNLABELLED = """[...document.querySelectorAll(
  "input:not([type=hidden]), select, button, a[href], progress"
)].filter(
  (control) => !(control.getAttribute("aria-label") || control.labels?.length || control.textContent.trim())
).map((control) => control.outerHTML)"""
UNDESCRIBED = "[...document.querySelectorAll('img:not([alt])')].map((image) => image.outerHTML)"


def test_a_visit(page: Server, browser: Browser, tmp_path: Path) -> None:
    """Open, explore, move both sliders, keep favourites, download them; then a training by upload."""
    downloads = tmp_path / "downloads"
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    # Open the list, and a run from it by keyboard.
    browser.go(page.address)
    assert browser.run("document.querySelectorAll('.card').length") == 2
    browser.focus("#cards a[href='/runs/one/']")
    browser.press("Enter")
    browser.until("location.pathname === '/runs/one/' && document.getElementById('sheet').complete")
    browser.until("document.querySelectorAll('#pairs img[src*=copy]').length === 12")
    assert "LPIPS" in browser.run("document.getElementById('nearest-said').textContent")
    newest = browser.pixels("sheet")
    browser.focus("#sheet-step")
    browser.press("Home")
    browser.until("document.getElementById('sheet').src.endsWith('/sheet/0')")
    assert browser.pixels("sheet") != newest

    # Explore: the tiles come one by one; both sliders change the picture.
    browser.go(f"{page.address}explore?run=one")
    browser.until("[...document.querySelectorAll('#grid-0 img')].filter((i) => i.naturalWidth).length === 16")
    shown = browser.pixels("#grid-0 img")
    browser.focus("#truncation")
    browser.press("ArrowLeft", 12)
    browser.until("document.querySelector('#grid-0 img').src.includes('truncation=0.40')")
    truncated = browser.pixels("#grid-0 img")
    assert truncated != shown
    browser.focus("#step-0")
    browser.press("Home")
    browser.until("document.querySelector('#grid-0 img').src.includes('step=2')")
    assert browser.pixels("#grid-0 img") not in (shown, truncated)
    assert "step0=2" in browser.until("location.search.includes('step0=2') && location.search")

    # The way between two seeds.
    browser.run(
        "((to) => { to.value = 9; to.dispatchEvent(new Event('input')); })(document.getElementById('to'))"
    )
    browser.until("document.getElementById('between-0').src.includes('toward=9')")
    middle = browser.pixels("between-0")
    browser.focus("#at")
    browser.press("ArrowRight", 30)
    browser.until("document.getElementById('between-0').src.includes('at=0.80')")
    assert browser.pixels("between-0") != middle

    # A closer look, by keyboard, with the nearest training image; Escape closes it.
    browser.focus("#grid-0 .picture")
    browser.press("Enter")
    browser.until(
        "document.getElementById('closer').open && !document.getElementById('closer-nearest').hidden"
    )
    assert browser.pixels("closer-nearest")
    browser.press("Escape")
    browser.until("!document.getElementById('closer').open")

    # Favourites: kept over a reload, and downloaded.
    browser.focus("#grid-0 .star")
    browser.press(" ")
    browser.run("document.querySelectorAll('#grid-0 .star')[3].click()")
    browser.run("document.getElementById('keep-between').click()")
    browser.until("document.querySelectorAll('#kept li').length === 3")
    browser.call("Page.reload")
    browser.until("document.querySelectorAll('#kept li').length === 3 && document.readyState === 'complete'")
    assert (
        browser.until("document.getElementById('truncation').value") == "0.4"
    )  # the address keeps the controls
    browser.until("document.querySelectorAll('#grid-0 .star[aria-pressed=true]').length === 2")
    browser.run("document.getElementById('download').click()")
    browser.until("document.getElementById('kept-said').textContent.startsWith('favourites.zip')")
    wait_for((downloads / "favourites.zip").exists)
    with zipfile.ZipFile(io.BytesIO((downloads / "favourites.zip").read_bytes())) as archive:
        images = json.loads(archive.read("manifest.json"))["images"]
        assert [(image["seed"], image["step"], image["truncation"]) for image in images] == [
            (0, 2, 0.4),
            (3, 2, 0.4),
            (0, 2, 0.4),
        ]
        assert (images[2]["toward"], images[2]["position"]) == (9, 0.8)
        assert all(image["file"] in archive.namelist() for image in images)

    # Compare: two runs under the same controls.
    browser.go(f"{page.address}compare?a=one&b=two")
    browser.until("[...document.querySelectorAll('.grid img')].filter((i) => i.naturalWidth).length === 32")
    browser.focus("#step-1")
    browser.press("Home")
    browser.until("document.querySelector('#grid-1 img').src.includes('step=2')")
    assert browser.pixels("#grid-0 img") != browser.pixels("#grid-1 img")

    # A training by upload, from the first page to its end.
    photo = tmp_path / "garden.png"
    photo.write_bytes(png_bytes(scene(32, 40)))
    browser.go(page.address)
    browser.run("document.getElementById('begin').open = true")
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", files=[str(photo)], nodeId=node)
    browser.run("document.getElementById('steps').value = 2")
    browser.focus("#upload button")
    browser.press("Enter")
    browser.until("location.pathname === '/runs/garden-oneshot/'")
    browser.until(
        "document.querySelector('#status .finished') && document.getElementById('sheet')?.naturalWidth", 90
    )
    browser.until("[...document.querySelectorAll('#pairs img')].filter((i) => i.naturalWidth).length === 24")

    # What was opened stays open when the part that it stands in comes again.
    browser.run("document.querySelector('#status details').open = true")
    browser.run("document.getElementById('status').dataset.old = 'yes'")
    with open(page.root / "garden-oneshot" / "stats.jsonl", "a") as file:
        file.write(json.dumps({"step": 2, "loss_G": 1.0, "seconds": 4000.0}) + "\n")
    browser.until("document.getElementById('status').dataset.old !== 'yes'")
    assert "1 h 06 min" in browser.run("document.getElementById('status').textContent")
    browser.until("document.querySelector('#status details').open")

    # Nothing was asked of anyone else, and nothing stood in the console.
    assert browser.complaints() == []
    outside = {
        url for url in browser.asked() if not url.startswith((page.address, "data:", "blob:", "about:"))
    }
    assert outside == set()


@pytest.mark.parametrize("width", [360, 1200])
def test_pages_fit_and_every_control_has_a_name(page: Server, browser: Browser, width: int) -> None:
    shutil.copytree(page.root / "one", page.root / ("a-very-long-name-without-any-space-in-it-" * 3)[:100])
    (page.root / "broken" / "input").mkdir(parents=True)
    (page.root / "broken" / "config.json").write_text("{")
    time.sleep(2.1)  # until the list is read anew
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False
    )
    for path in ("", "runs/one/", "runs/broken/", "explore?run=one", "compare?a=one&b=two", "nothing"):
        browser.go(page.address + path)
        browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert fits(browser), path
        assert browser.run(UNLABELLED) == [], path
        assert browser.run(UNDESCRIBED) == [], path
        assert browser.run("document.querySelectorAll('h1').length") == 1, path
        # The keyboard comes to something that can be seen to have it.
        browser.press("Tab", 3)
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", path
        assert browser.run("document.activeElement !== document.body"), path
    missing = [complaint for complaint in browser.complaints() if "404" not in complaint]
    assert missing == []
