"""Weights of pretrained networks: looked for, downloaded once, checked, never unpickled as code.

A file is known by its SHA-256, as many digits of it as are published. A file that holds only the layers
used here is known by the digest of their values. What is not known is used all the same where the user
names it, and marked: the first 8 digits of its checksum become part of every figure's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from torch import Tensor, nn

from oneshotgan.errors import UserError, one_line
from oneshotgan.files import replacing

VARIABLE = "ONESHOTGAN_WEIGHTS"
STALLED = 30.0  # seconds without a byte after which a download is given up
_CHUNK = 2**18  # bytes


@dataclass(frozen=True)
class WeightsFile:
    """A file of pretrained weights.

    Attributes:
        url: its canonical address; the last part is its name.
        sha256: of the canonical file, as many digits as are known.
        layers: the names of the tensors used.
        other_names: under which a folder of the user's may hold them.
        known_values: digest of the tensors used (see `values_digest`) -> what a figure's name says of
            them: "" for the canonical values, "approx" for a stand-in.
    """

    url: str
    sha256: str
    layers: tuple[str, ...]
    other_names: tuple[str, ...] = ()
    known_values: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The canonical file name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Weights:
    """Loaded weights.

    Attributes:
        tensors: float32, by the names in `WeightsFile.layers`.
        file: the name of the file they came from.
        sha256: of that whole file.
        mark: "" for the canonical values, "approx" for a stand-in, else 8 digits of `sha256`.
    """

    tensors: dict[str, Tensor]
    file: str
    sha256: str
    mark: str

    def marked(self, name: str) -> str:
        """`name`, with the mark of weights that are not the canonical ones."""
        return f"{name}_{self.mark}" if self.mark else name


def _inception_layers() -> tuple[str, ...]:
    blocks = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    return tuple(f"{block}.{part}" for block in blocks for part in parts)


def _convolutions(*indices: int) -> tuple[str, ...]:
    return tuple(f"features.{i}.{part}" for i in indices for part in ("weight", "bias"))


ALEXNET = WeightsFile(
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    layers=_convolutions(0, 3, 6, 8, 10),
    other_names=("alexnet_features.pth",),
    known_values={"f7010d8fcf41f886e24f4549fd3ceceb1b50b7f0540397d6fb116b7cc0a7fb72": ""},
)
VGG16 = WeightsFile(
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    layers=_convolutions(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    other_names=("vgg16_features_fp16.pth",),
    known_values={"e5ae4c061ef0b37f53a7b360524fb4a846dca438b13eafe1875551d507bace9d": "fp16"},
)
INCEPTION_TORCHVISION = WeightsFile(
    url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
    sha256="0cc3c7bd",
    layers=_inception_layers(),
    other_names=("inception_torchvision_stem.pth", "inception_torchvision_stem_approx.pth"),
    known_values={"786b9965ec2524dcc52150960be4a73d86e3c04ed0345e2e2ffa99581e2b16bd": "approx"},
)
INCEPTION_FID = WeightsFile(
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    layers=_inception_layers(),
    other_names=("inception_fid_stem.pth",),
    known_values={"ce0129d783db81fa132a41d9b4e4df01625e00092c863ec9a15e91d2db9dfe01": ""},
)


def load(wanted: WeightsFile) -> Weights:
    """Find `wanted`, downloading it if need be, and read the tensors used.

    Looked for in the folder that the environment variable ONESHOTGAN_WEIGHTS names, and nowhere else if
    it is set; else in the cache folder of this program, then in PyTorch's own.

    Raises:
        UserError: it is nowhere and cannot be downloaded, or the file does not hold the layers.
    """
    path = find(wanted)
    digest = file_sha256(path)
    tensors = _read(path, wanted)
    if digest.startswith(wanted.sha256):
        mark = ""
    else:
        mark = wanted.known_values.get(values_digest(tensors), digest[:8])
    return Weights(tensors, path.name, digest, mark)


def fill(network: nn.Module, loaded: Weights) -> None:
    """Load the tensors into `network`.

    Raises:
        UserError: they have other shapes.
    """
    try:
        network.load_state_dict(loaded.tensors, strict=False)  # what is used is known to be there
    except RuntimeError as error:
        raise UserError(
            f"{loaded.file} holds layers of another shape: it is another network's file"
        ) from error


def find(wanted: WeightsFile) -> Path:
    """The path of `wanted` on this machine, downloaded if need be; see `load`."""
    return find_local(wanted) or _fetch(wanted, cache_folder() / wanted.name)


def find_local(wanted: WeightsFile) -> Path | None:
    """The same without any download: None where it is not on this machine.

    Raises:
        UserError: ONESHOTGAN_WEIGHTS is set, and the file is not there.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        folder = os.path.expanduser(folder)
        if not os.path.isdir(folder):
            raise UserError(
                f"{VARIABLE} names {folder}, which is no folder: name the one that holds {wanted.name}"
            )
        for name in (wanted.name, *wanted.other_names):
            if os.path.isfile(Path(folder) / name):
                return Path(folder) / name
        raise UserError(
            f"{VARIABLE} names {folder}, which holds no {wanted.name}: "
            f"get it from {wanted.url} and put it there"
        )
    shared = Path(torch.hub.get_dir()) / "checkpoints" / wanted.name
    for path in (cache_folder() / wanted.name, shared):
        if os.path.isfile(path) and _is_canonical(path, wanted):
            return path
    return None


def cache_folder() -> Path:
    """Where downloads are kept: the platform's cache folder."""
    return platformdirs.user_cache_path("oneshotgan") / "weights"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def values_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, whatever file the tensors came in."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)}".encode())
        total.update(tensor.float().contiguous().numpy().astype("<f4").tobytes())
    return total.hexdigest()


def _read(path: Path, wanted: WeightsFile) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {name: state[name].float() for name in wanted.layers}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError("a weight is not finite")
        return tensors
    except Exception as error:  # a damaged or hostile file can fail in any way
        raise UserError(
            f"{path} is damaged or does not hold the layers of {wanted.name}: "
            f"remove it, or get it from {wanted.url}"
        ) from error


def _is_canonical(path: Path, wanted: WeightsFile) -> bool:
    return file_sha256(path).startswith(wanted.sha256)


# --- downloading ---


def _fetch(wanted: WeightsFile, target: Path) -> Path:
    """Download to `target`, one process at a time; the others wait and find it there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not (os.path.isfile(target) and _is_canonical(target, wanted)):
                _download(wanted, target)
    except (OSError, http.client.HTTPException, ValueError, _BadDownload, UserError) as error:
        raise UserError(
            f"cannot download {wanted.url} ({_reason(error)}): put it into {target.parent}, "
            f"or name a folder that holds it in {VARIABLE}"
        ) from error
    return target


def _download(wanted: WeightsFile, target: Path) -> None:
    """Nothing is left where this fails, with whatever error the network or the disk raises."""
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(wanted.url, timeout=STALLED) as answer:
        length = answer.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        with replacing(target) as temporary:
            with open(temporary, "wb") as file, _progress(wanted.url, total) as advance:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    received += len(chunk)
                    advance(len(chunk))
            if total is not None and received < total:
                raise _BadDownload(f"cut off after {received:,} of {total:,} bytes")
            if not digest.hexdigest().startswith(wanted.sha256):
                raise _BadDownload("the file that came has another checksum than the published one")


class _BadDownload(Exception):
    """What came is not the file."""


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError) and error.__cause__ is not None:  # from the disk, through `replacing`
        return _reason(error.__cause__)
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it is an open answer, too
        return f"the server answered {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer for {STALLED:.0f} seconds"
    return one_line(getattr(error, "strerror", None) or error) or type(error).__name__


@contextlib.contextmanager
def _progress(url: str, total: int | None) -> Iterator[Any]:
    """A live bar in a terminal; one line in a log."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        size = f" ({total / 1e6:.0f} MB)" if total else ""
        with contextlib.suppress(OSError):
            console.print(f"downloading {url}{size}", markup=False)
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(url.rsplit("/", 1)[-1], total=total)
        yield lambda count: bar.advance(task, count)
