"""The pages and JSON: what they say of runs, good, broken and large; how quick they are; without PyTorch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import scene

from oneshotgan import media
from web.conftest import Serve, Server, wait_for

QUICK = 0.2  # seconds


def measured(run: Path, **values: tuple[float, str]) -> None:
    """Write a metrics.json with these values and directions."""
    figures = [
        {"name": name, "value": value, "standard_error": None, "direction": direction, "count": 3}
        for name, (value, direction) in values.items()
    ]
    (run / "metrics.json").write_text(json.dumps({"step": 8, "figures": figures}))


def shown(text: str) -> list[str]:
    """The runs on a list of cards, in their order."""
    return re.findall(r'<span class="name">([^<]*)</span>', text)


# --- starting ---


def test_the_server_never_imports_torch(trained_once: Path, tmp_path: Path) -> None:
    """Nor anything that imports it, while it answers all that needs no drawing."""
    shutil.copytree(trained_once, tmp_path / "runs" / "one")
    program = f"""
import sys, threading, urllib.request
from pathlib import Path
from oneshotgan.web.server import serve
paths = ["", "cards", "runs.json", "runs/one/", "runs/one/state", "runs/one/model?step=2", "runs/one/reals",
         "runs/one/part/charts", "explore?run=one", "compare?a=one&b=one", "static/explore.js"]
def look(address):
    for path in paths:
        urllib.request.urlopen(address + path).read()
    print("LOADED", [name for name in ("torch", "numpy", "av", "PIL") if name in sys.modules], flush=True)
    import os, signal
    os.kill(os.getpid(), signal.SIGINT)
ready = lambda address: threading.Thread(target=look, args=(address,)).start()
serve(Path({str(tmp_path / "runs")!r}), port=0, ready=ready)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("LOADED []"), (done.stdout, done.stderr)


def test_it_is_up_within_a_second(tmp_path: Path, trained_once: Path) -> None:
    from web.conftest import ended, started

    times = []
    shutil.copytree(trained_once, tmp_path / "runs" / "one")
    for _ in range(3):
        start = time.perf_counter()
        server = started(tmp_path / "runs")
        assert server("/").status == 200
        times.append(time.perf_counter() - start)
        ended(server)
    assert min(times) < 1.0, times


# --- the list ---


def test_the_cards_say_what_is_known(serve: Serve, trained_once: Path) -> None:
    server = serve()
    assert "No run lies here yet" in server("/").text
    shutil.copytree(trained_once, server.root / "a" / "photo & clip")
    measured(server.root / "a" / "photo & clip", sifid64_torchvision=(0.1234, "↓"))
    wait_for(lambda: shown(server("/cards").text) == ["a/photo &amp; clip"])
    text = server("/").text
    assert "step 8 of 8" in text
    assert "sifid64_torchvision ↓" in text
    assert "0.123" in text
    assert "finished" in text
    assert 'src="/runs/a/photo%20%26%20clip/sheet/8"' in text
    assert server("/runs/a/photo%20%26%20clip/sheet/8").headers["content-type"] == "image/png"


def test_they_are_sorted_by_figure_in_its_direction(serve: Serve, trained_once: Path) -> None:
    server = serve()
    for name, sifid, lpips in (("a", 0.3, 0.1), ("b", 0.1, 0.3), ("c", 0.2, 0.2)):
        shutil.copytree(trained_once, server.root / name)
        measured(server.root / name, sifid64_x=(sifid, "↓"), lpips_alex=(lpips, "↑"))
    shutil.copytree(trained_once, server.root / "d")
    os.utime(server.root / "c" / "config.json", (2**32, 2**32))
    wait_for(lambda: len(shown(server("/cards").text)) == 4)
    assert shown(server("/?sort=sifid64_x").text) == ["b", "c", "a", "d"]
    assert shown(server("/cards?sort=lpips_alex").text) == ["b", "c", "a", "d"]
    assert shown(server("/cards?sort=name").text) == ["a", "b", "c", "d"]
    assert shown(server("/cards").text)[0] == "c"


def test_a_part_comes_again_only_when_it_has_changed(serve: Serve, trained_once: Path) -> None:
    server = serve()
    shutil.copytree(trained_once, server.root / "one")
    wait_for(lambda: shown(server("/cards").text))
    for step, part in enumerate(("/cards?sort=newest", "/runs/one/part/status", "/runs/one/part/charts"), 9):
        again = re.search(r'hx-get="([^"]+)"', server(part).text)
        assert again is not None
        address = again[1].replace("&amp;", "&")
        assert server(address).status == 204, address
        with open(server.root / "one" / "stats.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "loss_G": 2.5, "seconds": 7000.0}) + "\n")
        assert server(address).status == 200
    assert "1 h 56 min" in server("/runs/one/part/status").text


# --- a run ---


def test_a_runs_page(shared: Server) -> None:
    text = shared("/runs/one/").text
    for said in ("loss_G", "augment_probability", "one image of “scene”", "40×32", "cpu, fp32", "more/two"):
        assert said in text
    assert text.count("<polyline") == 3
    state = shared("/runs/one/state").json
    assert (state["sheets"], state["snapshots"], state["state"]) == ([0, 4, 8], [2, 4, 6, 8], "finished")
    model = shared("/runs/one/model?step=4").json
    assert model["step"] == 4
    assert len(model["checksum"]) == 64
    assert shared("/runs/one/model").json == state["model"]


def test_a_picture_is_asked_for_once(shared: Server) -> None:
    first = shared("/runs/one/sheet/4")
    again = shared("/runs/one/sheet/4", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert first.body == (shared.root / "one" / "samples" / "step-000004.png").read_bytes()


def break_it(run: Path, how: str) -> None:
    """Damage a run in one of many ways."""
    config = json.loads((run / "config.json").read_text())
    if how == "no config":
        (run / "config.json").unlink()
    elif how == "no json":
        (run / "config.json").write_bytes(b"\xff{")
    elif how == "deep json":
        (run / "config.json").write_text("[" * 100_000)
    elif how == "a list":
        (run / "config.json").write_text("[]")
    elif how == "other types":
        config["run"]["frames"]["size"] = ["64", None]
        (run / "config.json").write_text(json.dumps(config))
    elif how == "strange settings":
        config["model"]["base_width"] = {"a": 1}
        (run / "config.json").write_text(json.dumps(config))
    elif how == "figures":
        (run / "metrics.json").write_text('{"step": 1, "figures": [{"name": "x"}]}')
    elif how == "figures of a list":
        (run / "metrics.json").write_text("[1]")
    elif how == "stats":
        (run / "stats.jsonl").write_bytes(b'\xff\x00\n{"step": 3, "loss_G": {}, "figures": 4}\n{"st')
    elif how == "folders are files":
        for name in ("samples", "snapshots", "checkpoints"):
            shutil.rmtree(run / name)
            (run / name).write_text("x")
    elif how == "files are folders":
        for name in ("stats.jsonl", "reals.png"):
            (run / name).unlink()
            (run / name).mkdir()
    elif how == "weights":
        (run / "model" / "model.safetensors").write_bytes(b"\xff" * 100)
    elif how == "model settings":
        (run / "model" / "config.json").write_text("{}")
    elif how == "no text, no numbers":
        measured(run, **{"sifid\ud800": (float("nan"), "↓"), "lpips": (float("inf"), "↑")})
        line = {"step": 10**400, "loss_\ud800": 2.0, "loss_G": 10**400, "seconds": float("inf")}
        (run / "stats.jsonl").write_text(
            json.dumps(line) + "\n" + json.dumps({"step": 3, "loss_G": 1}) + "\n"
        )
        config["run"]["machines"] = [{"processor": "\ud800"}]
        (run / "config.json").write_text(json.dumps(config))
    elif how == "markup":
        config["run"]["source"]["name"] = "<script>alert(1)</script>{{ 7 * 7 }}"
        config["run"]["machines"] = [{"processor": "<b>x", "device": None}]
        (run / "config.json").write_text(json.dumps(config))


BROKEN = ("no config", "no json", "deep json", "a list", "other types", "strange settings", "figures",
          "figures of a list")  # fmt: skip
HARMLESS = (
    "no text, no numbers",
    "stats",
    "folders are files",
    "files are folders",
    "weights",
    "model settings",
    "markup",
)


def test_broken_runs_are_shown_as_broken_and_harm_nothing(serve: Serve, trained_once: Path) -> None:
    server = serve()
    for how in ("good", *BROKEN, *HARMLESS):
        shutil.copytree(trained_once, server.root / how)
        break_it(server.root / how, how)
    wait_for(lambda: len(shown(server("/cards").text)) >= 14)
    runs = {run["id"]: run for run in server("/runs.json").json["runs"]}
    for how in ("good", *BROKEN, *HARMLESS):
        at = f"/runs/{how.replace(' ', '%20')}/"
        assert bool(runs[how]["problem"]) == (how in BROKEN), (how, runs[how])
        for path in (at, f"{at}state", f"{at}part/charts", f"{at}part/actions", f"{at}sheet/8",
                     f"{at}reals", f"{at}model", f"{at}sample?seed=0", f"/explore?run={how}"):  # fmt: skip
            path = path.replace(" ", "%20")
            reply = server(path)
            assert reply.status in (200, 400, 404), (path, reply.text)
            assert "<script>alert" not in reply.text if reply.headers["content-type"] != "image/png" else True
        page = server(at).text
        assert ('class="problem"' in page) == (how in BROKEN), how
        assert not any(str(server.root) in line for line in page.splitlines() if "problem" in line)
    assert server("/runs/good/sample?seed=0").status == 200
    assert "{{ 7 * 7 }}" in server("/runs/markup/").text
    assert "Traceback" not in (server.root.parent / "server.err").read_text()


def test_whatever_breaks_a_card_breaks_only_that_card(
    trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneshotgan.layout import RunFiles
    from oneshotgan.web.library import Library

    shutil.copytree(trained_once, tmp_path / "one")
    monkeypatch.setattr(RunFiles, "sheet_steps", lambda run: 1 // 0)
    assert "ZeroDivisionError" in Library(tmp_path).card("one").problem


# --- large ones, and a training beside ---


@pytest.fixture
def large(serve: Serve, trained_once: Path) -> Server:
    """A run with 10,000 contact sheets and lines of stats and 500 snapshots, among 60 others."""
    server = serve()
    run = server.root / "large"
    shutil.copytree(trained_once, run)
    sheet, weights = run / "samples" / "step-000008.png", run / "snapshots" / "step-000008.safetensors"
    for step in range(10, 100_010, 10):
        os.link(sheet, run / "samples" / f"step-{step:06d}.png")
    for step in range(200, 100_200, 200):
        os.link(weights, run / "snapshots" / f"step-{step:06d}.safetensors")
    with open(run / "stats.jsonl", "w") as file:
        for step in range(10, 100_010, 10):
            line = {"step": step, "loss_G": 2 + step % 7, "loss_D": 5 - step % 3, "seconds": step / 10}
            file.write(json.dumps(line) + "\n")
    for index in range(60):
        shutil.copytree(trained_once, server.root / f"small-{index:02d}", copy_function=os.link)
    return server


LOOKS = ("/", "/cards", "/runs.json", "/runs/large/", "/runs/large/state", "/runs/large/part/status",
         "/runs/large/part/charts", "/runs/large/sheet/50000", "/runs/large/model?step=5000",
         "/explore?run=large", "/compare?a=large&b=small-01")  # fmt: skip


def test_large_runs_stay_quick(large: Server) -> None:
    large("/")
    large("/runs/large/sample?seed=0")  # PyTorch's import in the worker is no page's time
    times = {path: min(large(path).seconds for _ in range(3)) for path in LOOKS}
    assert max(times.values()) < QUICK, times
    state = large("/runs/large/state").json
    assert len(state["sheets"]) == 10_003
    assert len(state["snapshots"]) == 504
    # A training adds a sheet and a line.
    os.link(large.root / "large/samples/step-000008.png", large.root / "large/samples/step-200000.png")
    with open(large.root / "large" / "stats.jsonl", "a") as file:
        file.write(json.dumps({"step": 100_020, "loss_G": 1.0}) + "\n")
    assert large("/runs/large/state").json["step"] == 100_020
    assert large("/runs/large/part/status").seconds < QUICK


def test_pages_are_quick_while_images_are_drawn_and_a_training_runs(serve: Serve, trained_once: Path) -> None:
    server = serve("--trainings", 1)
    shutil.copytree(trained_once, server.root / "one")
    photo = server.root.parent / "photo.png"
    media.write_png(photo, scene(64, 80))
    begun = server.post("/trainings?name=photo.png&steps=100000", photo.read_bytes())
    assert begun.status == 201, begun.text
    url = begun.json["url"]
    wait_for(lambda: server(f"{url}state").json["state"] == "training")
    server("/runs/one/sample?seed=0")
    times: dict[str, list[float]] = {}
    for seed in range(8):
        # Drawn beside, while the pages are asked for.
        drawing = subprocess.Popen([sys.executable, "-c", f"import urllib.request as u; u.urlopen('{server.address}runs/one/sample?seed={seed + 50}').read()"])  # noqa: E501  # fmt: skip
        for path in ("/", "/cards", "/runs/one/", "/runs/one/state", f"{url}part/status", f"{url}state"):
            times.setdefault(path, []).append(server(path).seconds)
        drawing.wait(30)
    middle = {path: float(np.median(found)) for path, found in times.items()}
    assert max(middle.values()) < QUICK, times
    assert server.post(f"{url}stop").status == 200
    wait_for(lambda: server(f"{url}state").json["state"] == "stopped")
