"""Whatever is wrong with what the user gives: exit code 2, one line, nothing touched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import Command, Tree, png_bytes, scene
from PIL import Image
from safetensors.torch import load_file, save_file

Make = Callable[[Path], object]


# --- sources ---


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it has 30,000 × 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(90_001))
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def half_a_jpeg(path: Path) -> None:
    Image.fromarray(scene(480, 640)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def sound(path: Path) -> None:
    """A clip that holds a second of silence and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def no_frames(path: Path) -> None:
    """A clip with a video stream whose frames are cut away."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for seed in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(seed=seed), format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


def picture(height: int, width: int) -> Make:
    return lambda path: path.write_bytes(png_bytes(scene(height, width)))


def text(path: Path) -> None:
    path.write_text("Dear diary, this is no picture.\n" * 20)


def folder_of_notes(path: Path) -> None:
    path.mkdir()
    text(path / "notes.txt")


def folder_with_a_fake(path: Path) -> None:
    path.mkdir()
    picture(48, 64)(path / "1.png")
    text(path / "2.png")


SOURCES: dict[str, tuple[str, Make, str]] = {
    "missing": ("nowhere.png", lambda path: None, "nowhere.png"),
    "below a file": ("scene.png/inner.png", lambda path: picture(48, 64)(path.parent), "inner.png"),
    "empty file": ("empty.png", lambda path: path.write_bytes(b""), "empty"),
    "empty folder": ("empty", lambda path: path.mkdir(), "no pictures"),
    "folder without images": ("notes", folder_of_notes, "no pictures"),
    "folder with a text named .png": ("mixed", folder_with_a_fake, "2.png"),
    "text named .png": ("text.png", text, "text.png"),
    "text named .mp4": ("text.mp4", text, "text.mp4"),
    "half a JPEG": ("half.jpg", half_a_jpeg, "half.jpg is a damaged or cut-off picture"),
    "sound alone": ("song.mp4", sound, "song.mp4 has no moving pictures"),
    "video without frames": ("hollow.mp4", no_frames, "hollow.mp4"),
    "one pixel": ("dot.png", picture(1, 1), "1x1"),
    "31 pixels high": ("low.png", picture(31, 64), "64x31"),
    "decompression bomb": ("bomb.png", bomb, "30000×30000"),
    "strip of 20:1": ("strip.png", picture(40, 800), "16:1"),
    "new line in the name": ("two\nlines.png", text, "lines.png"),
    "markup in the name": ("[red]hot.png", text, "[red]hot.png"),
    "markup in a missing name": ("[bold]none[/].png", lambda path: None, "[bold]none[/].png"),
    "control characters in the name": ("\x1b[31mred.png", text, "red.png"),
}


@pytest.mark.parametrize(("name", "make", "says"), SOURCES.values(), ids=SOURCES)
def test_a_bad_source(
    workdir: Path, train: Command, tree: Callable[[Path], Tree], name: str, make: Make, says: str
) -> None:
    make(workdir / name)
    before = tree(workdir)
    message = train(name, "--out", "run", "--steps", 1).error
    assert says in message
    assert "\x1b" not in message
    assert tree(workdir) == before
    train(name, "--steps", 1).error  # noqa: B018  # the default run directory is not made either
    assert tree(workdir) == before


def test_a_device_as_source_is_refused_without_reading_it(workdir: Path, train: Command) -> None:
    os.mkfifo("pipe.png")
    assert "pipe.png" in train("pipe.png", "--out", "run", "--steps", 1).error
    assert "zero" in train("/dev/zero", "--out", "run", "--steps", 1).error


# --- flags ---

FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "negative steps": (("--steps", "-5"), ("steps", "-5")),
    "no steps": (("--steps", "0"), ("steps", "0")),
    "steps in words": (("--steps", "abc"), ("--steps", "abc")),
    "half a step": (("--steps", "1.5"), ("--steps", "1.5")),
    "steps without a number": (("--steps",), ("--steps",)),
    "too small": (("--max-size", "8"), ("max_size", "8", "32")),
    "too large": (("--max-size", "100000"), ("max_size", "8,192")),
    "slip in a flag": (("--stpes", "4"), ("--stpes", "--steps")),
    "unknown flag": (("--colour", "red"), ("--colour",)),
    "second source": (("more.png",), ("more.png",)),
    "markup in a value": (("--steps", "[red]5"), ("[red]5",)),
    "new line in a value": (("--steps", "5\n6"), ("--steps",)),
    "one image a batch": (("--batch-size", "1"), ("batch_size", "diversity_weight")),
    "not a number": (("--diversity-weight", "nan"), ("diversity_weight",)),
    "endless": (("--learning-rate-g", "inf"), ("learning_rate_g",)),
    "unknown choice": (("--precision", "fp16"), ("--precision", "fp32")),
    "unknown method": (("--method", "stylegan"), ("method", "oneshot", "stylegan")),
    "unknown preset": (("--preset", "huge"), ("preset", "preview", "huge")),
    "seed below zero": (("--seed", "-1"), ("seed", "-1")),
    "endless seed": (("--seed", str(2**32)), ("seed", str(2**32 - 1)[-3:])),
}


@pytest.mark.parametrize(("flags", "says"), FLAGS.values(), ids=FLAGS)
def test_a_bad_flag(
    photo: Path,
    command: Command,
    tree: Callable[[Path], Tree],
    flags: tuple[str, ...],
    says: tuple[str, ...],
) -> None:
    before = tree(Path())
    message = command("train", photo, "--out", "run", *flags).error
    for word in says:
        assert word in message
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("trian", "scene.png"), "train"),
        (("fly",), "fly"),
        (("train",), "SOURCE"),
        (("sample",), "RUN"),
        (("settings", "huge"), "preview"),
        (("--colour",), "--colour"),
    ],
)
def test_a_bad_command(
    photo: Path, command: Command, tree: Callable[[Path], Tree], words: tuple[str, ...], says: str
) -> None:
    before = tree(Path())
    assert says in command(*words).error
    assert tree(Path()) == before


def test_cuda_is_refused_where_there_is_none(
    photo: Path, train: Command, monkeypatch: pytest.MonkeyPatch, tree: Callable[[Path], Tree]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = tree(Path())
    message = train(photo, "--out", "run", "--device", "cuda").error
    assert "CUDA" in message
    assert "--device" in message
    assert tree(Path()) == before


# --- configuration files ---

CONFIGS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "wrong key": (b"[training]\nstpes = 5\n", ("stpes", "steps", "bad.toml")),
    "wrong type": (b"[training]\nsteps = 'five'\n", ("steps", "whole number", "five", "bad.toml")),
    "true is no number": (b"steps = true\n", ("steps", "whole number")),
    "half a step": (b"[training]\nsteps = 1.5\n", ("steps", "whole number", "1.5")),
    "out of range": (b"[data]\nmax_size = 8\n", ("max_size", "32", "bad.toml")),
    "wrong section": (b"[model]\nsteps = 5\n", ("steps", "[training]", "[model]")),
    "unknown section": (b"[trianing]\nsteps = 5\n", ("trianing", "training")),
    "section that is no table": (b"training = 5\n", ("training", "table")),
    "unknown method": (b"method = 'stylegan'\n", ("method", "stylegan")),
    "broken TOML": (b"[training\nsteps = 5\n", ("bad.toml",)),
    "not a text": (b"\xff\xfe\x00\x01", ("bad.toml", "no text")),
    "method that is a table": (b"[method]\nname = 'oneshot'\n", ("method",)),
}


@pytest.mark.parametrize(("content", "says"), CONFIGS.values(), ids=CONFIGS)
def test_a_bad_configuration_file(
    photo: Path, command: Command, tree: Callable[[Path], Tree], content: bytes, says: tuple[str, ...]
) -> None:
    Path("bad.toml").write_bytes(content)
    before = tree(Path())
    message = command("train", photo, "--out", "run", "--config", "bad.toml").error
    for word in says:
        assert word in message
    assert tree(Path()) == before


def test_a_missing_configuration_file(photo: Path, command: Command, tree: Callable[[Path], Tree]) -> None:
    before = tree(Path())
    assert "none.toml" in command("train", photo, "--out", "run", "--config", "none.toml").error
    assert "." in command("train", photo, "--out", "run", "--config", ".").error
    assert tree(Path()) == before


# --- where to write ---


def test_out_is_a_file(photo: Path, train: Command, tree: Callable[[Path], Tree]) -> None:
    Path("taken").write_text("mine")
    before = tree(Path())
    assert "taken" in train(photo, "--out", "taken", "--steps", 1).error
    assert "taken" in train(photo, "--out", "taken/run", "--steps", 1).error
    assert tree(Path()) == before


@pytest.mark.parametrize(
    "content",
    ["notes.txt", "config.json", "checkpoints/step-000100.pt", "input/holiday.png", "samples/mine.png"],
)
def test_out_is_a_folder_of_something_else(
    photo: Path, train: Command, tree: Callable[[Path], Tree], content: str
) -> None:
    path = Path("mine") / content
    path.parent.mkdir(parents=True)
    path.write_text("of value")
    before = tree(Path())
    message = train(photo, "--out", "mine", "--steps", 1).error
    assert "mine" in message
    assert "--out" in message or content == "config.json"
    assert tree(Path()) == before


def test_a_name_that_is_too_long_for_the_disk(photo: Path, train: Command, command: Command) -> None:
    assert "cannot write" in train(photo, "--out", "o" * 300, "--steps", 1).error
    assert "no run directory" in command("sample", "o" * 300).error


def test_out_is_where_nobody_may_write(photo: Path, train: Command, tree: Callable[[Path], Tree]) -> None:
    locked = Path("locked")
    locked.mkdir(mode=0o500)
    before = tree(Path())
    out = (
        locked / "run" if not os.access(locked, os.W_OK) else Path("/proc/run")
    )  # nobody stops root but a kernel
    message = train(photo, "--out", out, "--steps", 1).error
    assert str(out) in message
    assert tree(Path()) == before


def test_a_run_can_be_a_source_and_is_only_read(
    trained: Path, train: Command, tree: Callable[[Path], Tree]
) -> None:
    before = tree(trained)
    assert train(trained / "input", "--out", "other", "--steps", 1).code == 0
    assert "no pictures" in train(trained / "model", "--out", "more", "--steps", 1).error
    assert tree(trained) == before


# --- an existing run ---


def test_another_source(trained: Path, command: Command, tree: Callable[[Path], Tree]) -> None:
    Path("other.png").write_bytes(png_bytes(scene(seed=1)))
    before = tree(Path())
    assert "another" in command("train", "other.png", "--out", trained, "--steps", 20).error
    assert "gone.png" in command("train", "gone.png", "--out", trained, "--steps", 20).error
    assert tree(Path()) == before


CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fewer steps": (("--steps", "4"), ("steps", "4", "8")),
    "width": (("--base-width", "8"), ("base_width", "4", "8")),
    "seed": (("--seed", "7"), ("seed", "0", "7")),
    "batch size": (("--batch-size", "3"), ("batch_size", "5", "3")),
    "learning rate": (("--learning-rate-g", "0.01"), ("learning_rate_g", "0.01")),
    "size": (("--short-size", "40"), ("short_size", "32", "40")),
    "other size": (("--max-size", "64"), ("max_size", "64")),
    "frames": (("--max-frames", "3"), ("max_frames", "3")),
    "branch": (("--no-content-branch",), ("content_branch",)),
    "preset": (("--preset", "paper"), ("preset", "preview")),
}


@pytest.mark.parametrize(("flags", "says"), CHANGES.values(), ids=CHANGES)
def test_a_change_that_a_run_does_not_allow(
    trained: Path,
    photo: Path,
    command: Command,
    tree: Callable[[Path], Tree],
    flags: tuple[str, ...],
    says: tuple[str, ...],
) -> None:
    before = tree(Path())
    more = () if flags[0] == "--steps" else ("--steps", "20")
    message = command("train", photo, "--out", trained, *flags, *more).error
    for word in says:
        assert word in message
    assert tree(Path()) == before


def without(*keys: str) -> Callable[[bytes], bytes]:
    """Takes one entry out of a JSON text."""

    def edit(content: bytes) -> bytes:
        whole = json.loads(content)
        inner = whole
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return json.dumps(whole).encode()

    return edit


def setting(*path: object) -> Callable[[bytes], bytes]:
    """Sets one entry of a JSON text: the keys, then the value."""

    def edit(content: bytes) -> bytes:
        whole = json.loads(content)
        inner = whole
        *keys, last, value = path
        for key in keys:
            inner = inner[key]
        inner[last] = value
        return json.dumps(whole).encode()

    return edit


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "not a text": lambda content: b"\xff\xfe" + content,
    "null": lambda content: b"null",
    "a list": lambda content: b"[]",
    "a number": lambda content: b"5",
    "unknown setting": setting("model", "width_of_base", 4),
    "value out of range": setting("model", "base_width", -4),
    "model that is no table": setting("model", 4),
}
RUN_DAMAGES = DAMAGES | {
    "no record": without("run"),
    "no source": without("run", "source"),
    "no checksum": without("run", "source", "checksum"),
    "no name": without("run", "source", "name"),
    "no count": without("run", "frames", "count"),
    "no digest": without("run", "frames", "checksum"),
    "size that is no size": setting("run", "frames", "size", "large"),
    "machines that are none": setting("run", "machines", 5),
}
MODEL_DAMAGES = DAMAGES | {
    "no size": without("size"),
    "no method": without("method"),
    "size that is no size": setting("size", ["a", "b"]),
    "one side": setting("size", [32]),
    "no pixels": setting("size", [0, 0]),
    "another size": setting("size", [320, 400]),
    "another width": setting("model", "base_width", 8),
}


@pytest.mark.parametrize("damage", RUN_DAMAGES.values(), ids=RUN_DAMAGES)
def test_a_damaged_configuration_of_a_run(
    trained: Path,
    photo: Path,
    command: Command,
    tree: Callable[[Path], Tree],
    damage: Callable[[bytes], bytes],
) -> None:
    path = trained / "config.json"
    path.write_bytes(damage(path.read_bytes()))
    before = tree(Path())
    command("train", photo, "--out", trained, "--steps", 20).error  # noqa: B018
    assert tree(Path()) == before


@pytest.mark.parametrize("damage", MODEL_DAMAGES.values(), ids=MODEL_DAMAGES)
def test_a_damaged_configuration_of_a_model(
    trained: Path, command: Command, tree: Callable[[Path], Tree], damage: Callable[[bytes], bytes]
) -> None:
    path = trained / "model" / "config.json"
    path.write_bytes(damage(path.read_bytes()))
    before = tree(Path())
    assert "model" in command("sample", trained, "--count", 1).error
    assert tree(Path()) == before


def other_names(path: Path) -> None:
    weights = {f"other.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"step": "8"})


def other_shapes(path: Path) -> None:
    weights = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"step": "8"})


def one_missing(path: Path) -> None:
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path, metadata={"step": "8"})


WEIGHTS: dict[str, Make] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": text,
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no step": lambda path: save_file(load_file(path), path),
    "a step in words": lambda path: save_file(load_file(path), path, metadata={"step": "many"}),
    "other names": other_names,
    "other shapes": other_shapes,
    "one missing": one_missing,
}


@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_or_foreign_weights(
    trained: Path, command: Command, tree: Callable[[Path], Tree], damage: Make
) -> None:
    damage(trained / "model" / "model.safetensors")
    before = tree(Path())
    assert "model.safetensors" in command("sample", trained, "--count", 1).error
    assert tree(Path()) == before


SAMPLING: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "truncation above one": (("--truncation", 1.5), ("truncation", "1.5")),
    "truncation below zero": (("--truncation", -0.1), ("truncation",)),
    "truncation that is no number": (("--truncation", "nan"), ("truncation",)),
    "half an image": (("--count", 1.5), ("--count", "1.5")),
    "half a step": (("--step", 1.5), ("--step", "1.5")),
    "unknown device": (("--device", "tpu"), ("tpu", "cuda")),
    "no images": (("--count", 0), ("--count", "0")),
    "fewer than none": (("--count", -3), ("--count", "-3")),
    "seed below zero": (("--seed", -1), ("seed",)),
    "unknown animation": (("--interpolate", 0, 1, "--out", "walk.avi"), (".gif", ".webp", ".mp4")),
    "animation without a suffix": (("--interpolate", 0, 1, "--out", "new/walk"), (".gif", ".webp", ".mp4")),
    "one end": (("--interpolate", 0), ("--interpolate",)),
    "end below zero": (("--interpolate", -1, 2, "--out", "new/walk.gif"), ("seed",)),
    "one frame": (("--interpolate", 0, 1, "--frames", 1, "--out", "new/walk.gif"), ("frames", "1")),
    "no time": (("--interpolate", 0, 1, "--fps", 0), ("--fps",)),
    "truncated walk": (("--interpolate", 0, 1, "--truncation", 2, "--out", "new/walk.gif"), ("truncation",)),
    "no such step": (("--step", 3), ("3", "2, 4, 6, 8")),
    "step below zero": (("--step", -1), ("-1",)),
    "grid that is no PNG": (("--grid", "x.jpg"), ("--grid", "x.jpg", "PNG")),
    "grid that is a folder": (("--grid", "samples.png"), ("samples.png",)),
    "grid of a negative seed": (("--grid", "new/x.png", "--seed", -4), ("seed",)),
    "out that is a file": (("--out", "scene.png"), ("scene.png",)),
    "out below a file": (("--out", "scene.png/inner"), ("scene.png",)),
}


@pytest.mark.parametrize(("flags", "says"), SAMPLING.values(), ids=SAMPLING)
def test_bad_flags_of_sample(
    trained: Path,
    command: Command,
    tree: Callable[[Path], Tree],
    flags: tuple[object, ...],
    says: tuple[str, ...],
) -> None:
    Path("samples.png").mkdir()
    before = tree(Path())
    message = command("sample", trained, *flags).error
    for word in says:
        assert word in message
    assert tree(Path()) == before


@pytest.mark.parametrize(
    "name", ["nowhere", "scene.png", "empty", "notes", "run/input", "run\nrun", "[red]run[/]"]
)
def test_sampling_from_what_is_no_run(
    trained: Path, command: Command, tree: Callable[[Path], Tree], name: str
) -> None:
    Path("empty").mkdir()
    folder_of_notes(Path("notes"))
    before = tree(Path())
    assert "no run directory" in command("sample", name).error
    assert tree(Path()) == before


def test_a_model_folder_has_no_snapshots(trained: Path, command: Command) -> None:
    assert "snapshots" in command("sample", trained / "model", "--step", 4).error


# --- checkpoints from elsewhere ---


class Trap:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


def plain_trap(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def trap_in_a_checkpoint(path: Path) -> None:
    torch.save({"step": 8, "seconds": 1.0, "method": Trap()}, path)


def trap_in_an_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("trap", [plain_trap, trap_in_a_checkpoint, trap_in_an_archive])
def test_a_hostile_checkpoint_is_refused_unexecuted(
    trained: Path, photo: Path, command: Command, tree: Callable[[Path], Tree], trap: Make
) -> None:
    trap(trained / "checkpoints" / "step-000008.pt")
    outcome = command("train", photo, "--out", trained, "--steps", 9)
    assert outcome.code == 0, outcome.err
    assert "step-000008.pt" in outcome.err
    assert "going on from step 6" in outcome.err
    assert not Path("sprung").exists()

    for path in (trained / "checkpoints").iterdir():
        trap(path)
    before = tree(Path())
    assert "checkpoint" in command("train", photo, "--out", trained, "--steps", 12).late_error
    assert tree(Path()) == before
    with pytest.raises(FileNotFoundError):
        os.rmdir("sprung")


# --- the same through the shell ---

SHELL: dict[str, tuple[tuple[str, ...], str]] = {
    "missing source": (("train", "nowhere.png"), "nowhere.png"),
    "slip in a flag": (("train", "scene.png", "--stpes", "4"), "--steps"),
    "bad setting": (("train", "scene.png", "--steps", "-5"), "steps"),
    "no run": (("sample", "nowhere"), "no run directory"),
    "new line and markup": (("train", "[red]\n[/red].png"), "[red]"),
}


@pytest.mark.parametrize(("words", "says"), SHELL.values(), ids=SHELL)
def test_through_the_shell(
    photo: Path, tree: Callable[[Path], Tree], words: tuple[str, ...], says: str
) -> None:
    before = tree(Path())
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "oneshotgan", *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert tree(Path()) == before
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    "name", ["[red]hot.png", "cat:cat:.png", "näh \u202e ☃.png", "--dashes.png", "a\tb.png"]
)
def test_an_odd_name_is_no_mistake(photo: Path, train: Command, name: str) -> None:
    shutil.copyfile(photo, name)
    outcome = train("./" + name, "--steps", 1)
    assert outcome.code == 0, outcome.err
    assert Path(outcome.out.rstrip("\n")).is_dir()
    shown = "".join(char if char.isprintable() else "\ufffd" for char in Path(name).stem)
    assert f"{shown}: one image" in outcome.err
    assert train("./" + name, "--steps", 1).code == 0


def test_a_name_that_is_no_text(photo: Path, workdir: Path) -> None:
    """A file system may give bytes that no encoding knows."""
    name = b"caf\xe9.png"
    try:
        shutil.copyfile(os.fsencode(photo), name)
    except OSError:
        pytest.skip("this file system takes only valid UTF-8")
    words = [
        sys.executable.encode(),
        b"-m",
        b"oneshotgan",
        b"train",
        name,
        b"--steps",
        b"1",
        b"--base-width",
        b"4",
    ]
    more = [b"--short-size", b"32", b"--threads", b"1", b"--out", b"out-\xe9"]
    done = subprocess.run([*words, *more], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert os.path.isdir(b"out-\xe9/model")
