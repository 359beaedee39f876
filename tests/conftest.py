"""What several test modules share: provided data, a tiny photo, the command, one tiny trained run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

    from oneshotgan.perceptual import LPIPS, InceptionStem

# Flags of a training that takes a moment; the precision is named, as `auto` depends on the processor.
TINY = ("--base-width", "4", "--short-size", "32", "--threads", "1", "--precision", "fp32")
# The session's run: 8 steps, everything written often.
TRAINED_STEPS = 8
OFTEN = ("--log-every", "1", "--checkpoint-every", "2", "--snapshot-every", "2", "--sample-every", "4")


def pytest_configure(config: pytest.Config) -> None:
    """One thread per test process; and no CUDA device, unless the GPU tests are asked for."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The message of a refusal, which must be the only line that was said."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        return self.err.removeprefix("error: ").rstrip("\n")

    @property
    def late_error(self) -> str:
        """The message of a failure once a training had begun: one line, the last, after those of progress."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.out == ""
        *progress, last = self.err.splitlines()
        assert last.startswith("error: "), self.err
        assert not any(line.startswith(("error: ", "Traceback")) for line in progress), self.err
        return last.removeprefix("error: ")


Command = Callable[..., Outcome]
Tree = dict[str, str]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of provided photos, clips, weights and golden figures."""
    folder = os.environ.get("ONESHOTGAN_TEST_DATA")
    if not folder:
        pytest.skip("ONESHOTGAN_TEST_DATA names no folder")
    return Path(folder)


@dataclass(frozen=True)
class Golden:
    """Figures of pairs of provided images, computed by unrelated code."""

    folder: Path

    def pairs(self) -> list[tuple[dict[str, Any], Tensor, Tensor]]:
        """The values, and the two images, uint8 (1, H, W, 3)."""
        content = json.loads((self.folder / "golden" / "metrics.json").read_text(encoding="utf-8"))
        return [(pair, self.image(pair["a"]), self.image(pair["b"])) for pair in content["pairs"]]

    def image(self, name: str) -> Tensor:
        """One of the provided images, uint8 (1, H, W, 3)."""
        import torch

        with Image.open(self.folder / name) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))[None]


@pytest.fixture
def golden(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> Golden:
    """The golden figures, with the provided weights in use."""
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(test_data / "weights"))
    return Golden(test_data)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights files with random values: what holds for any network can be tested with them."""
    import torch

    from oneshotgan.perceptual import weights

    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(0)

    def convolution(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (2 / np.prod(shape[1:])) ** 0.5

    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {}
    for index, (channels_out, channels_in, kernel) in shapes.items():
        state[f"features.{index}.weight"] = convolution(channels_out, channels_in, kernel, kernel)
        state[f"features.{index}.bias"] = 0.1 * torch.randn(channels_out, generator=generator)
    torch.save(state, folder / weights.ALEXNET.other_names[0])

    widths = [(32, 3, 3), (32, 32, 3), (64, 32, 3), (80, 64, 1), (192, 80, 3)]
    blocks = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    state = {}
    for block, (channels_out, channels_in, kernel) in zip(blocks, widths, strict=True):
        state[f"{block}.conv.weight"] = convolution(channels_out, channels_in, kernel, kernel)
        for part in ("weight", "running_var"):
            state[f"{block}.bn.{part}"] = 0.5 + torch.rand(channels_out, generator=generator)
        for part in ("bias", "running_mean"):
            state[f"{block}.bn.{part}"] = 0.1 * torch.randn(channels_out, generator=generator)
    torch.save(state, folder / weights.INCEPTION_TORCHVISION.other_names[0])
    return folder


@pytest.fixture
def with_weights(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The random weights, in use."""
    monkeypatch.setenv("ONESHOTGAN_WEIGHTS", str(random_weights))
    return random_weights


@pytest.fixture(scope="session")
def alex(random_weights: Path) -> LPIPS:
    """LPIPS on a random AlexNet."""
    from oneshotgan.perceptual import LPIPS

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHOTGAN_WEIGHTS", str(random_weights))
        return LPIPS.load("alex")


@pytest.fixture
def passes(alex: LPIPS, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of the network `alex` saw."""
    seen: list[int] = []
    maps = alex.maps

    def counting(x: Tensor) -> list[Tensor]:
        seen.append(len(x))
        return maps(x)

    monkeypatch.setattr(alex, "maps", counting)
    return seen


@pytest.fixture(scope="session")
def stem(random_weights: Path) -> InceptionStem:
    """The stem of a random Inception."""
    from oneshotgan.perceptual import InceptionStem

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESHOTGAN_WEIGHTS", str(random_weights))
        return InceptionStem.load("torchvision")


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs the command in this process: `command("sample", run, "--count", 2)`."""
    return run_command


@pytest.fixture(scope="session")
def train(command: Command) -> Command:
    """Trains with the smallest networks: `train(source, "--steps", 4)`."""
    return lambda *arguments: command("train", *arguments, *TINY)


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], Tree]:
    """Every file and folder below one, each file with a digest of its bytes; a lock's file does not count."""
    return list_tree


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def photo_bytes() -> bytes:
    """A PNG of 48×64 pixels with a few coloured things in it."""
    return png_bytes(scene())


@pytest.fixture
def photo(workdir: Path, photo_bytes: bytes) -> Path:
    """``scene.png`` in the current folder."""
    path = Path("scene.png")
    path.write_bytes(photo_bytes)
    return path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, photo_bytes: bytes) -> Path:
    """A finished run of 8 steps, for copying and reading only."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "scene.png").write_bytes(photo_bytes)
    steps = ("--steps", str(TRAINED_STEPS))
    outcome = run_command("train", folder / "scene.png", "--out", folder / "run", *steps, *OFTEN, *TINY)
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.fixture
def trained(photo: Path, trained_once: Path) -> Path:
    """``run``, a copy of the finished run in the current folder, beside its ``scene.png``."""
    shutil.copytree(trained_once, "run")
    return Path("run")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command as a process of its own; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "oneshotgan", *map(str, arguments)]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_command(*arguments: object) -> Outcome:
    """Call the command's entry with `arguments`, as the shell would."""
    from oneshotgan import cli

    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["oneshotgan", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def write_suite(path: Path, methods: dict[str, dict[str, Any]] | None = None, **entries: Any) -> Path:
    """A suite of the smallest trainings on ``clip``, a folder of frames that is made beside it.

    Args:
        methods: settings by method, beside those that make it small; by default One-Shot GAN alone.
        entries: of the suite; None takes one away.
    """
    import tomli_w

    from oneshotgan import media

    clip = path.parent / "clip"
    if not clip.exists():
        clip.mkdir()
        for index in range(5):
            media.write_png(clip / f"{index:05d}.png", scene(seed=index))
    often = {"precision": "fp32", "short_size": 32, "log_every": 1, "checkpoint_every": 2}
    small: dict[str, dict[str, Any]] = {
        "oneshot": {"base_width": 4},
        "singan": {"base_width": 4, "min_size": 12, "scales": 3},
        "fastgan": {"base_width": 4, "batch_size": 2},
    }
    named = {"oneshot": {}} if methods is None else methods
    chosen = {name: often | small.get(name, {}) | own for name, own in named.items()}
    suite = {"sources": ["clip"], "settings": ["image"], "preset": "preview", "steps": 4, "samples": 3}
    content = suite | {"methods": chosen} | entries
    path.write_text(tomli_w.dumps({name: value for name, value in content.items() if value is not None}))
    return path


def list_tree(folder: Path) -> Tree:
    """See the fixture `tree`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name != ".lock":
            digest = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def scene(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A sky, a ground and three round things; each seed puts them elsewhere."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.where((y < height * 0.6)[..., None], [120, 170, 230], [90, 130, 60]).astype(np.uint8)
    for colour in ([220, 40, 30], [240, 200, 40], [60, 40, 160]):
        cy, cx = generator.uniform(0.1, 0.8) * height, generator.uniform(0.1, 0.9) * width
        image[(y - cy) ** 2 + (x - cx) ** 2 < (0.12 * height) ** 2] = colour
    return image


def images(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Tensor:
    """Smooth random images, float (N, 3, H, W) in [-1, 1]."""
    import torch
    from torch.nn.functional import interpolate

    coarse = torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


def png_bytes(image: np.ndarray) -> bytes:
    """A (H, W, 3) uint8 image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
