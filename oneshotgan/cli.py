"""The command: parse, call one function, print. stdout is the answer, stderr the progress.

Exit codes: 0 done; 1 an unexpected failure, with its traceback; 2 a mistake or circumstance that the
user can put right, in one line; 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import io
import json
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, Token

from oneshotgan import __version__, config
from oneshotgan.errors import UserError, UserErrors, one_line

ANIMATIONS = (".gif", ".webp", ".mp4")
LARGEST_SHEET = 1024  # images in one contact sheet

app = App(
    name="oneshotgan",
    help="Learn a generative model from one photo or one short video, and draw new scenes from it.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)


def _whole(hint: Any, tokens: Sequence[Token]) -> int:
    """A whole number as it stands; left to itself, cyclopts rounds 1.5 to 2."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f'unable to convert "{tokens[0].value}" into int.') from None


def _settings_class() -> type:
    """A dataclass of every setting as an optional flag, made from the settings themselves."""
    annotated: Any = Annotated  # as a plain value: these types are made, not written
    fields = []
    for name, (section, described) in config.FIELDS.items():
        owners = config.owners(name)
        where = f"{section}: {' and '.join(owners)}" if section == "model" else section
        text = f"[{where}] {described.metadata['help']}"
        hint = config.TYPES[name]
        converter = _whole if hint in (int, int | None) else None
        parameter = Parameter(help=text, show_default=False, converter=converter)
        flag = operator.getitem(annotated, (hint | None, parameter))
        fields.append((name, flag, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass("Settings", fields, frozen=True, kw_only=True)
    made.__module__ = __name__  # else cyclopts takes it for a builtin type and looks no further
    return made


def _size(hint: Any, tokens: Sequence[Token]) -> tuple[int, int]:
    """WIDTHxHEIGHT as (height, width)."""
    width, x, height = tokens[0].value.lower().partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise ValueError(f'"{tokens[0].value}" is no size: write it as 400x120, width first.')
    return int(height), int(width)


def _step(hint: Any, tokens: Sequence[Token]) -> int | str:
    """A step, or the word best."""
    value = tokens[0].value
    if value != "best" and not value.lstrip("-").isdigit():
        raise ValueError(f'"{value}" is no step: write a number, or best.')
    return value if value == "best" else int(value)


Settings: Any = _settings_class()
Whole = Annotated[int, Parameter(converter=_whole)]


@app.command
def train(
    source: Path,
    /,
    *,
    out: Path | None = None,
    method: str | None = None,
    preset: str | None = None,
    config_file: Annotated[Path | None, Parameter(name="--config")] = None,
    quiet: bool = False,
    settings: Annotated[Settings, Parameter(name="*")] = Settings(),  # noqa: B008
) -> None:
    """Train on one photo, one video or a folder of frames. The same command again goes on where it stopped.

    Parameters
    ----------
    source
        A photo, a video, or a folder of frames.
    out
        The run directory; runs/<source>-<method> if not given.
    method
        oneshot, or what it is compared with: singan, fastgan.
    preset
        preview (small, for a CPU) or paper (the paper's settings). By default paper where there is a CUDA
        device, else preview.
    config_file
        A TOML file of settings, or the config.json of a run; flags win over it.
    quiet
        No progress on stderr.
    """
    from oneshotgan.launch import train
    from oneshotgan.parallel import is_first

    given = dataclasses.asdict(settings)
    overrides = {name: value for name, value in given.items() if value is not None}
    path = train(source, out, method=method, preset=preset, config_file=config_file, quiet=quiet, **overrides)
    if is_first():
        print(path)


@app.command
def sample(
    run: Path,
    /,
    *,
    count: Whole = 16,
    seed: Whole = 0,
    out: Path | None = None,
    grid: Path | None = None,
    interpolate: tuple[Whole, Whole] | None = None,
    frames: Whole = 48,
    fps: float = 12.0,
    truncation: float = 1.0,
    size: Annotated[tuple[int, int] | None, Parameter(converter=_size, n_tokens=1)] = None,
    step: Annotated[int | str | None, Parameter(converter=_step)] = None,
    format: Literal["folder", "webdataset"] | None = None,
    min_distance: float = 0.0,
    max_seeds: Whole | None = None,
    device: str = "cpu",
) -> None:
    """Draw new scenes from a run: seed-000000.png, seed-000001.png, … One seed is one image.

    Parameters
    ----------
    run
        A run directory, or its model folder.
    count
        How many images: the seeds SEED, SEED + 1, …
    seed
        The first seed.
    out
        Folder for the images, RUN/generated if not given; with --interpolate, a .gif, .webp or .mp4 file.
    grid
        Write one contact sheet to this PNG file instead.
    interpolate
        Two seeds: write an animation on the way from one to the other instead.
    frames
        Frames of the animation.
    fps
        Frames of the animation per second.
    truncation
        0 to 1: lower is safer and less varied.
    size
        WIDTHxHEIGHT, 400x120 for example: another size than the trained one; a model of SinGAN only.
    step
        A snapshot of the run instead of its newest model; best is the one that evaluate --all found.
    format
        To train other models on: folder, PNG files and a manifest.jsonl (seed, step, LPIPS distance to the
        nearest training image), or webdataset, tar files of 1,000 with the same beside each image.
    min_distance
        Leave out samples that are nearer to training than this (LPIPS), and go on with further seeds until
        COUNT are found; with the manifest.
    max_seeds
        With --min-distance: the most seeds that are tried, ten times COUNT if not given.
    device
        cpu, cuda or auto.
    """
    from oneshotgan import media
    from oneshotgan.sampling import OneShotGAN

    if min_distance < 0 or min_distance != min_distance:
        raise UserError(f"--min-distance must be 0 or more, not {min_distance:g}")
    if max_seeds is not None and not min_distance:
        raise UserError("--max-seeds belongs to --min-distance")
    if max_seeds is not None and max_seeds < count:
        raise UserError(f"--max-seeds must be {count} (--count) or more, not {max_seeds}")
    if (format or min_distance) and (grid is not None or interpolate is not None):
        raise UserError("--format and --min-distance are for images: leave out --grid and --interpolate")
    if min_distance and size is not None:
        raise UserError("distances are to training images of their own size: leave out --size")

    if count < 1:
        raise UserError(f"--count must be 1 or more, not {count}")
    if not 0.1 <= fps <= 1000:
        raise UserError(f"--fps must lie in 0.1 … 1000, not {fps:g}")
    if grid is not None and (out is not None or interpolate is not None):
        raise UserError(
            "--grid is written instead of images or an animation: leave out --out and --interpolate"
        )
    if grid is not None and count > LARGEST_SHEET:
        raise UserError(f"--grid holds at most {LARGEST_SHEET:,} images: lower --count")
    if grid is not None and grid.suffix.lower() != ".png":
        raise UserError(f"--grid writes a PNG file: name it .png, not {grid.name}")
    if interpolate is not None and out is not None and out.suffix.lower() not in ANIMATIONS:
        raise UserError(f"cannot write {out}: an animation's name ends in {', '.join(ANIMATIONS)}")
    gan = OneShotGAN.from_pretrained(run, _chosen(run, step)).to(device)
    if size is not None:
        gan = gan.resized(size)
    if interpolate is not None:
        target = out or run / "generated" / f"seeds-{interpolate[0]}-{interpolate[1]}.gif"
        images = gan.interpolate(*interpolate, frames, truncation)
        media.write_animation(_made(target.parent) / target.name, images, fps)
        print(target)
        return
    if format or min_distance:
        tried = range(seed, seed + (max_seeds or 10 * count if min_distance else count))
        print(_write_dataset(gan, run, out, tried, count, format or "folder", min_distance, truncation, size))
        return
    seeds = range(seed, seed + count)
    if grid is not None:
        sheet = media.contact_sheet(gan.sample(seeds, truncation))
        media.write_png(_made(grid.parent) / grid.name, sheet)
        print(grid)
        return
    batches = gan.iterate(seeds, truncation)  # refuses bad seeds before a folder is made
    folder = _made(out or run / "generated")
    names = iter(seeds)
    for batch in batches:
        for image in batch:
            media.write_png(folder / f"seed-{next(names):06d}.png", image)
    print(folder)


def _write_dataset(
    gan: Any,
    run: Path,
    out: Path | None,
    seeds: range,
    count: int,
    format: Literal["folder", "webdataset"],
    minimum: float,
    truncation: float,
    size: tuple[int, int] | None,
) -> Path:
    """`sample --format` and `--min-distance`."""
    from oneshotgan import datasets

    training = None
    if size is None:
        try:
            training = datasets.Training(run)
        except UserError as error:
            if minimum:
                raise
            _say(f"distances left out: {error}")
    else:
        _say("distances left out: training images have another size")
    about: dict[str, Any] = {"step": gan.step, "truncation": truncation}
    if training is not None:
        about["figure"] = training.figure
    samples = datasets.varied(gan, seeds, count, training, minimum, truncation)
    folder = _made(out or run / "generated")
    found = datasets.write(samples, folder, format, about)
    if training is not None and found < count:
        _say(
            f"{found} of {count} samples found in {len(seeds):,} seeds, the farthest at "
            f"{training.farthest:.3f}: lower --min-distance, or raise --max-seeds"
        )
    return folder


@app.command
def export(
    run: Path,
    /,
    *,
    out: Path,
    step: Annotated[int | str | None, Parameter(converter=_step)] = None,
    size: Annotated[tuple[int, int] | None, Parameter(converter=_size, n_tokens=1)] = None,
) -> None:
    """Write a model as one ONNX file, z -> images, checked against PyTorch.

    Parameters
    ----------
    run
        A run directory, or its model folder.
    out
        The file, named .onnx.
    step
        A snapshot of the run instead of its newest model, or best.
    size
        WIDTHxHEIGHT: another size than the trained one; a model of SinGAN only.
    """
    from oneshotgan.export import export_onnx
    from oneshotgan.sampling import OneShotGAN

    if out.suffix.lower() != ".onnx":
        raise UserError(f"--out is an ONNX file: name it .onnx, not {out.name}")
    gan = OneShotGAN.from_pretrained(run, _chosen(run, step))
    if size is not None:
        gan = gan.resized(size)
    largest = export_onnx(gan, _made(out.parent) / out.name)
    _say(f"onnxruntime draws what PyTorch draws, to {largest:.1e} on a scale from -1 to 1")
    print(out)


@app.command
def evaluate(
    run: Path | None = None,
    /,
    *,
    fake: Path | None = None,
    real: Path | None = None,
    count: Whole = 100,
    every_step: Annotated[bool, Parameter(name="--all", negative="")] = False,
    step: Annotated[int | str | None, Parameter(converter=_step)] = None,
    protocol: Literal["paper", "released"] = "paper",
    inception: Literal["torchvision", "fid"] = "torchvision",
    device: str = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure quality, diversity and distance to training: of a run, or of any images.

    Parameters
    ----------
    run
        A run directory; its metrics.json is written.
    fake
        Instead of a run: a folder of images to measure.
    real
        With --fake: the photo, video or folder of frames that they were learned from.
    count
        Samples: of a run the seeds 0 to COUNT - 1; of a folder COUNT of its images at most.
    every_step
        Compare all snapshots of the run, mark those that no other beats, and find the best.
    step
        A snapshot of the run instead of its newest model, or best.
    protocol
        released adds the figures as the paper's released program computes them.
    inception
        Weights of the network behind SIFID: torchvision, as in the paper, or fid.
    device
        cpu, cuda or auto.
    as_json
        Print JSON instead of a table.
    """
    from oneshotgan.metrics import evaluate as figures

    if (run is None) == (fake is None and real is None):
        raise UserError("give a run directory, or --fake DIR and --real SOURCE")
    if run is None and (fake is None or real is None):
        raise UserError("--fake DIR and --real SOURCE belong together")
    if run is None and (every_step or step is not None):
        raise UserError("--all and --step are for runs: leave them out, or name a run directory")
    if every_step and (step is not None or protocol == "released"):
        raise UserError("--all compares SIFID and LPIPS of all snapshots: leave out --step and --protocol")
    options: dict[str, Any] = {"inception": inception, "device": device, "say": _say}
    if every_step:
        content = figures.evaluate_snapshots(_given(run), count, **options)
        table = figures.snapshot_table
    else:
        options["released"] = protocol == "released"
        table = figures.table
        if run is not None:
            content = figures.evaluate_run(run, count, step=_chosen(run, step), **options)
        else:
            content = figures.evaluate_images(_given(fake), _given(real), count, **options)
    print(json.dumps(content, indent=2) if as_json else _plain(table(content)))


@app.command
def benchmark(
    suite: str,
    /,
    *,
    out: Path,
    data: Path | None = None,
    workers: Whole = 1,
    ray: str | None = None,
    gpus: float | None = None,
) -> None:
    """Train and measure every case of a suite. The same command again skips what is finished.

    Parameters
    ----------
    suite
        A TOML file, or one that comes with the package: smoke, table1, table1-davis, table1-preview.
    out
        The folder for the run directories, one a case.
    data
        The folder below which the suite's sources lie.
    workers
        Cases at a time on this machine, one thread each.
    ray
        The address of a Ray cluster to run the cases on instead; auto finds one that runs here.
    gpus
        With --ray: GPUs per case, 0.5 for example; by default 1 where the cluster has any.
    """
    from oneshotgan.benchmark.runner import run_suite

    if ray is None and gpus is not None:
        raise UserError("--gpus belongs to --ray")
    if ray is not None and workers != 1:
        raise UserError("--workers is for this machine, --ray for a cluster: give one of them")
    run_suite(suite, _made(out), data, workers=workers, ray_address=ray, gpus=gpus, say=_say)
    print(out)


@app.command
def table(
    folder: Path,
    /,
    *,
    format: Literal["markdown", "csv", "latex", "json"] = "markdown",
) -> None:
    """Print the table of a benchmark: methods by settings by figures, the paper's beside ours.

    Parameters
    ----------
    folder
        The --out of oneshotgan benchmark.
    format
        markdown, csv, latex or json.
    """
    from oneshotgan.benchmark.table import write_table

    print(_plain(write_table(folder, format)))


@app.command
def report(*runs: Path, out: Path = Path("report.html")) -> None:
    """Write one page about runs, side by side: samples, nearest training images, figures, curves.

    Parameters
    ----------
    runs
        One run directory or more.
    out
        The HTML file; it holds everything and needs no network.
    """
    from oneshotgan.report import write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is an HTML file: name it .html, not {out.name}")
    write_report(runs, _made(out.parent) / out.name, _say)
    print(out)


@app.command
def serve(
    folder: Path,
    /,
    *,
    port: Whole = 8000,
    host: str = "127.0.0.1",
    token: str | None = None,
    trainings: Whole = 1,
) -> None:
    """Open a local page about all runs below a folder: look, explore, compare, train. Ctrl-C ends it.

    Parameters
    ----------
    folder
        The folder that holds the run directories, at any depth.
    port
        Where the page listens; 0 for any free port.
    host
        Another address than this machine's own lets others in, and needs --token.
    token
        A secret without which the page answers nothing.
    trainings
        How many trainings the page may have running at once; 0 for none.
    """
    try:
        import starlette  # noqa: F401  # of an extra
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs more packages: pip install 'oneshotgan[web]' ({error})") from error
    from oneshotgan.web.server import serve

    serve(folder, host, port, token, trainings, ready=lambda address: print(address, flush=True), say=_say)


@app.command
def settings(
    preset: str = "preview",
    /,
    *,
    method: str = "oneshot",
    clip: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Print a preset's settings as TOML, to edit and give to train --config.

    Parameters
    ----------
    preset
        preview or paper.
    method
        oneshot, singan or fastgan.
    clip
        Those for a clip, where they differ from those for a photo.
    as_json
        Print JSON instead.
    """
    chosen = config.preset(preset, method, clip)
    print(json.dumps(config.to_dict(chosen), indent=2) if as_json else config.to_toml(chosen), end="")


def _chosen(run: Path, step: int | str | None) -> int | None:
    """The step as a number, with the word best looked up."""
    if isinstance(step, str):
        from oneshotgan.metrics.evaluate import best_step

        return best_step(run)
    return step


def _given(path: Path | None) -> Path:
    assert path is not None  # checked above, where the choices are
    return path


def _plain(text: str) -> str:
    """`text` without the signs that stdout cannot show."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        for sign, plain in (("↑", "(more is better)"), ("↓", "(less is better)"), ("±", "+-")):
            text = text.replace(sign, plain)
    return text


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)


def _made(folder: Path) -> Path:
    from oneshotgan.files import storage_errors

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    """Run the command line and exit with its code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as it is, whatever its bytes
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
    except UserErrors as error:
        _fail(*error.lines)
    except UserError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)


def _fail(*messages: str) -> None:
    for message in messages:
        print(f"error: {one_line(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
