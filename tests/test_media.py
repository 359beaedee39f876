"""Reading photos, folders and videos; writing sheets and animations. All inputs are made here."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from oneshotgan import media
from oneshotgan.errors import UserError
from oneshotgan.media.shots import evenly

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (40, 50, 230), (245, 245, 245)
CORNERS = (RED, GREEN, BLUE, WHITE)  # top left, top right, bottom left, bottom right


def as_is(size: media.shots.Size) -> media.shots.Size:
    return size


def to(height: int, width: int) -> Callable[[tuple[int, int]], tuple[int, int]]:
    return lambda size: (height, width)


def corner_picture(
    height: int = 48, width: int = 64, corners: Sequence[tuple[int, ...]] = CORNERS
) -> np.ndarray:
    picture = np.empty((height, width, len(corners[0])), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = corners[:2]
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = corners[2:]
    return picture


def corners_of(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    y, x = height // 6, width // 6
    return image[[y, y, -1 - y, -1 - y], [x, -1 - x, x, -1 - x]].astype(int)


def assert_corners(
    image: np.ndarray, corners: Sequence[tuple[int, ...]] = CORNERS, tolerance: int = 4
) -> None:
    assert np.abs(corners_of(image) - np.array(corners)).max() <= tolerance, corners_of(image)


def grey_frames(number: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frame i is all of grey level 4 i, so that a frame tells its own index."""
    return [np.full((height, width, 3), 4 * i, np.uint8) for i in range(number)]


def indices(images: np.ndarray) -> list[int]:
    return [round(float(image.mean()) / 4) for image in images]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,  # milliseconds
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    crf: str = "6",
    rate: int = 25,
    colours: tuple[str, int, int] | None = None,  # matrix, its tag, range
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if codec.startswith("libx26"):
            stream.options = {"crf": crf, "preset": "ultrafast"} | (
                {"x265-params": "log-level=none"} if codec == "libx265" else {}
            )
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if colours is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = colours[1:]
        for i, pixels_of_frame in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of_frame, format="rgb24")
            if colours is not None:
                frame = frame.reformat(format=pixels, dst_colorspace=colours[0], dst_color_range=colours[2])
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_video(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d) into the track header of an MP4, as phones do."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (v << 16 for v in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def refused(source: Path | str, *words: str) -> str:
    """The one-line message with which a source is refused, which has all the words."""
    with pytest.raises(UserError) as caught:
        media.read_frames(source, as_is)
    message = str(caught.value)
    assert message.isprintable()
    for word in words:
        assert word in message, message
    return message


# --- Photos -------------------------------------------------------------------------------------------

SAVED = {
    "PNG": ({}, 0),
    "BMP": ({}, 0),
    "TIFF": ({"compression": "tiff_lzw"}, 0),
    "JPEG": ({"quality": 95, "subsampling": 0}, 6),
    "WEBP": ({"lossless": True}, 0),
    "GIF": ({}, 0),
    "AVIF": ({"quality": 95}, 8),
}


@pytest.mark.parametrize("kind", SAVED)
def test_photo_of_each_format(tmp_path: Path, kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    options, tolerance = SAVED[kind]
    path = tmp_path / "photo.data"  # the suffix is not trusted
    Image.fromarray(corner_picture()).save(path, kind, **options)
    frames = media.read_frames(path, as_is)
    assert frames.images.shape == (1, 48, 64, 3)
    assert frames.images.dtype == np.uint8
    assert frames.source_size == (48, 64)
    assert frames.notices == ()
    assert_corners(frames.images[0], tolerance=tolerance)


def test_resize_is_asked_once_and_obeyed(tmp_path: Path) -> None:
    asked = []

    def resize(size: tuple[int, int]) -> tuple[int, int]:
        asked.append(size)
        return 20, 33

    Image.fromarray(corner_picture(48, 64)).save(tmp_path / "a.png")
    frames = media.read_frames(tmp_path / "a.png", resize)
    assert asked == [(48, 64)]
    assert frames.images.shape == (1, 20, 33, 3)
    assert frames.source_size == (48, 64)
    assert_corners(frames.images[0])


def test_what_resize_raises_comes_out_unchanged(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", grey_frames(3))
    error = UserError("too small")

    def resize(size: tuple[int, int]) -> tuple[int, int]:
        raise error

    for name in ("a.png", "a.mp4"):
        with pytest.raises(UserError) as caught:
            media.read_frames(tmp_path / name, resize)
        assert caught.value is error


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the result can show: it must be the mean, not stripes of its own
    Image.fromarray(stripes).save(tmp_path / "a.png")
    write_video(tmp_path / "a.mkv", [stripes] * 2, codec="ffv1", pixels="bgr0")
    for name in ("a.png", "a.mkv"):
        image = media.read_frames(tmp_path / name, to(30, 30)).images[0, 3:-3, 3:-3]
        assert np.abs(image.astype(int) - 127).max() <= 3, name


def test_grey_palette_and_one_bit(tmp_path: Path) -> None:
    picture = Image.fromarray(corner_picture())
    grey = picture.convert("L")
    grey.save(tmp_path / "grey.png")
    picture.quantize(4).save(tmp_path / "palette.png")
    grey.point(lambda v: 255 * (v > 150), "1").save(tmp_path / "bit.png")
    levels = [(int(grey.getpixel(at)),) * 3 for at in ((5, 5), (60, 5), (5, 40), (60, 40))]
    assert_corners(media.read_frames(tmp_path / "grey.png", as_is).images[0], levels, 0)
    assert_corners(media.read_frames(tmp_path / "palette.png", as_is).images[0], tolerance=0)
    bits = [tuple(255 * (v > 150) for v in level) for level in levels]
    assert_corners(media.read_frames(tmp_path / "bit.png", as_is).images[0], bits, 0)


@pytest.mark.parametrize(("name", "order"), [("a.png", "<u2"), ("a.tif", "<u2"), ("big.tif", ">u2")])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, name: str, order: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    picture = (levels * 257).astype(order)
    mode = "I;16B" if order == ">u2" else "I;16"
    Image.frombytes(mode, (16, 16), picture.tobytes()).save(tmp_path / name)
    image = media.read_frames(tmp_path / name, as_is).images[0]
    np.testing.assert_array_equal(image, np.repeat(levels[..., None], 3, axis=2))


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    picture = corner_picture().astype(">u2") * 257
    path = tmp_path / "a.png"
    path.write_bytes(png(64, 48, picture.tobytes(), depth=16, colour=2))
    assert_corners(media.read_frames(path, as_is).images[0], tolerance=1)


def test_float_and_32_bit_grey(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.float32).reshape(16, 16)
    wanted = np.repeat(levels[..., None], 3, axis=2).astype(np.uint8)
    for name, values in (
        ("unit", levels / 255),
        ("byte", levels),
        ("word", levels * 257),
        ("int", (levels * 257).astype(np.int32)),
    ):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(
            media.read_frames(tmp_path / f"{name}.tif", as_is).images[0], wanted, name
        )
    for name, values in (("negative", levels - 100), ("nan", levels * np.nan)):
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        refused(tmp_path / f"{name}.tif", "grey values", "save it as")


def test_cmyk(tmp_path: Path) -> None:
    Image.fromarray(corner_picture()).convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert_corners(media.read_frames(tmp_path / "a.jpg", as_is).images[0], tolerance=12)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = corner_picture(corners=[(*RED, 255), (0, 0, 0, 0), (0, 0, 0, 128), (*WHITE, 255)])
    wanted = [RED, (255, 255, 255), (127, 127, 127), WHITE]
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True, "exact": True} if name == "a.webp" else {}
        Image.fromarray(half).save(tmp_path / name, **options)
        frames = media.read_frames(tmp_path / name, as_is)
        assert_corners(frames.images[0], wanted, 1)
        assert len(frames.notices) == 1
        assert name in frames.notices[0]
        assert "white" in frames.notices[0]


def test_palette_and_grey_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8), "P")
    palette.putpalette([*RED, *GREEN, *BLUE, *WHITE])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0, 255, 255]))
    image = media.read_frames(tmp_path / "p.png", as_is).images[0]
    assert [tuple(image[y, 0]) for y in (0, 2, 4, 6)] == [RED, (255, 255, 255), BLUE, WHITE]

    Image.fromarray(np.dstack([np.full((4, 4), 60), np.full((4, 4), 0)]).astype(np.uint8), "LA").save(
        tmp_path / "la.png"
    )
    frames = media.read_frames(tmp_path / "la.png", as_is)
    assert (frames.images == 255).all()
    assert len(frames.notices) == 1

    Image.fromarray(corner_picture()).save(
        tmp_path / "key.png", transparency=BLUE
    )  # one colour stands for nothing
    assert_corners(
        media.read_frames(tmp_path / "key.png", as_is).images[0], [RED, GREEN, (255, 255, 255), WHITE], 0
    )


def test_alpha_without_a_transparent_pixel_is_no_news(tmp_path: Path) -> None:
    Image.fromarray(corner_picture()).convert("RGBA").save(tmp_path / "a.png")
    frames = media.read_frames(tmp_path / "a.png", as_is)
    assert frames.notices == ()
    assert_corners(frames.images[0], tolerance=0)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = corner_picture()
    stored = {  # what a camera that is held that way stores
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    options = {"quality": 98} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    frames = media.read_frames(path, as_is)
    assert frames.source_size == (48, 64)
    assert_corners(frames.images[0])


def test_wide_gamut_profile_becomes_srgb(tmp_path: Path) -> None:
    # A profile like sRGB, but with red and green exchanged: the conversion must exchange them back.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag in range(struct.unpack(">I", profile[128:132])[0]):
        at = 132 + 12 * tag
        name = bytes(profile[at : at + 4])
        profile[at : at + 4] = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}.get(name, name)
    profile = bytes(profile).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))
    exchanged = Image.fromarray(corner_picture()[..., [1, 0, 2]])
    exchanged.save(tmp_path / "a.png", icc_profile=profile)
    assert_corners(media.read_frames(tmp_path / "a.png", as_is).images[0], tolerance=3)

    exchanged.save(tmp_path / "b.png", icc_profile=b"nothing of the kind")
    swapped = [(g, r, b) for r, g, b in CORNERS]
    assert_corners(media.read_frames(tmp_path / "b.png", as_is).images[0], swapped, 0)


def test_pages_of_a_tiff(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(frame) for frame in grey_frames(3))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    frames = media.read_frames(tmp_path / "a.tif", as_is)
    assert indices(frames.images) == [0]
    assert frames.notices == ("a.tif: 3 pages, the first is used",)


def test_extra_views_in_a_jpeg_are_no_pages(tmp_path: Path) -> None:
    first, other = (Image.fromarray(frame) for frame in (corner_picture(), corner_picture()[::-1].copy()))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[other], quality=95)
    frames = media.read_frames(tmp_path / "a.jpg", as_is)
    assert len(frames.images) == 1
    assert frames.notices == ()
    assert_corners(frames.images[0])


# --- Animations and videos ------------------------------------------------------------------------------


def animated(path: Path, frames: Sequence[Image.Image], **options: object) -> Path:
    frames[0].save(path, save_all=True, append_images=list(frames[1:]), **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animation(tmp_path: Path, name: str) -> None:
    pictures = [Image.fromarray(frame) for frame in grey_frames(10)]
    path = animated(
        tmp_path / name, pictures, duration=40, **({"lossless": True} if name == "a.webp" else {})
    )
    frames = media.read_frames(path, as_is)
    assert indices(frames.images) == list(range(10))
    assert frames.notices == ()
    assert indices(media.read_frames(path, as_is, max_frames=3).images) == [1, 5, 8]


def test_each_animation_frame_is_the_whole_canvas(tmp_path: Path) -> None:
    moving = []
    for i in range(4):  # a small square moves: the file holds only the changed part
        picture = corner_picture()
        picture[20:28, 10 * i : 10 * i + 8] = 0
        moving.append(Image.fromarray(picture))
    for name in ("a.gif", "a.png"):
        frames = media.read_frames(animated(tmp_path / name, moving, duration=40), as_is)
        for i, image in enumerate(frames.images):
            assert np.abs(image.astype(int) - np.asarray(moving[i])).max() <= 8, (name, i)


def test_transparent_animation_is_laid_on_white(tmp_path: Path) -> None:
    clear = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(3)]
    for i, picture in enumerate(clear):
        picture.paste((*RED, 255), (0, 0, 4 + i, 4))
    frames = media.read_frames(animated(tmp_path / "a.gif", clear, duration=40, disposal=2), as_is)
    assert (frames.images[:, 8:, 8:] == 255).all()
    assert "white in 3 frames" in frames.notices[0]
    thinned = media.read_frames(tmp_path / "a.gif", as_is, max_frames=2)
    assert "white in 2 frames" in thinned.notices[1]


def test_hidden_still_of_an_apng_is_no_frame(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in grey_frames(5)]
    path = animated(tmp_path / "a.png", pictures, default_image=True, duration=40)
    assert indices(media.read_frames(path, as_is).images) == [1, 2, 3, 4]


def test_thinning_of_an_animation_is_even_in_time(tmp_path: Path) -> None:
    # Frames 0 to 9 last 100 ms each, frames 10 to 19 only 20 ms: most of the time is the first ten's.
    pictures = [Image.fromarray(frame) for frame in grey_frames(20)]
    path = animated(tmp_path / "a.gif", pictures, duration=[100] * 10 + [20] * 10)
    assert indices(media.read_frames(path, as_is, max_frames=6).images) == [1, 3, 5, 7, 9, 15]


def has_encoder(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mkv", "ffv1", "yuv420p"),
        ("ten-bit.mov", "libx265", "yuv420p10le"),
        ("ten-bit.mp4", "libx264", "yuv420p10le"),
        ("ten-bit.mkv", "ffv1", "yuv422p10le"),
        ("prores.mov", "prores_ks", "yuv422p10le"),
    ],
)
def test_video_of_each_format(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    if not has_encoder(codec):
        pytest.skip(f"this PyAV has no {codec}")
    path = write_video(tmp_path / name, [corner_picture()] * 7, codec, pixels)
    path = path.rename(tmp_path / "clip.data")  # the suffix is not trusted
    frames = media.read_frames(path, to(24, 32))
    assert frames.images.shape == (7, 24, 32, 3)
    assert frames.source_size == (48, 64)
    assert frames.notices == ()
    for image in frames.images:
        assert_corners(image)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("colours", [("ITU709", 1, 1), ("ITU709", 1, 2), ("ITU601", 6, 1), ("ITU601", 6, 2)])
def test_colour_space_and_range_of_the_stream_hold(
    tmp_path: Path, pixels: str, colours: tuple[str, int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", [corner_picture()] * 2, pixels=pixels, colours=colours, crf="2")
    assert_corners(media.read_frames(path, as_is).images[0], tolerance=2)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((0, 1, -1, 0), lambda p: np.rot90(p, 1)),  # shown a quarter turn clockwise
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((0, -1, 1, 0), lambda p: np.rot90(p, -1)),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    ],
)
def test_display_matrix(
    tmp_path: Path, matrix: tuple[int, int, int, int], turned: Callable[[np.ndarray], np.ndarray]
) -> None:
    stored = np.ascontiguousarray(turned(corner_picture()))
    path = turn_video(write_video(tmp_path / "a.mp4", [stored] * 3), matrix)
    frames = media.read_frames(path, to(24, 32))
    assert frames.source_size == (48, 64)
    assert frames.images.shape == (3, 24, 32, 3)
    assert_corners(frames.images[0])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pixels_that_are_not_square(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, [corner_picture(48, 64)] * 3, aspect=Fraction(3, 2))
    frames = media.read_frames(path, as_is)
    assert frames.source_size == (48, 96)
    assert frames.images.shape == (3, 48, 96, 3)
    assert_corners(frames.images[0])
    if name == "a.mp4":  # turned, the long pixels stand
        assert media.read_frames(turn_video(path, (0, 1, -1, 0)), as_is).source_size == (96, 48)


def test_long_video_is_thinned(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", grey_frames(60))
    frames = media.read_frames(path, to(16, 24), max_frames=12)
    assert indices(frames.images) == list(range(2, 60, 5))
    assert frames.notices == ("clip.mp4: 60 frames, 12 of them used, evenly spread",)
    assert indices(media.read_frames(path, as_is, max_frames=60).images) == list(range(60))
    assert indices(media.read_frames(path, as_is, max_frames=1).images) == [30]


def test_thinning_of_a_variable_frame_rate_is_even_in_time(tmp_path: Path) -> None:
    # 40 frames in the first second, then 20 in the next four.
    times = [25 * i for i in range(40)] + [1000 + 200 * i for i in range(20)]
    for name in ("a.mkv", "a.mp4"):
        path = write_video(tmp_path / name, grey_frames(60), times=times)
        shown = np.searchsorted(times, [125 + 250 * i for i in range(20)], side="right") - 1
        assert indices(media.read_frames(path, as_is, max_frames=20).images) == list(shown)


@pytest.mark.parametrize(
    "times", [range(1000), np.cumsum(np.tile([1.0, 5.0, 0.01, 0.0], 250)), np.zeros(1000)]
)
@pytest.mark.parametrize("number", [1, 2, 7, 333, 499, 500, 999])
def test_evenly_gives_distinct_rising_indices(times: Sequence[float], number: int) -> None:
    picked = evenly(times, number)
    assert len(picked) == number
    assert picked == sorted(set(picked))
    assert picked[0] >= 0
    assert picked[-1] < 1000


@pytest.mark.parametrize("number", [1, 2, 3, 10, 99, 100, 101, 450, 999, 1000, 2000])
def test_evenly_at_a_constant_rate_has_gaps_of_two_neighbouring_sizes(number: int) -> None:
    picked = evenly(range(1000), number)
    assert len(picked) == min(number, 1000)
    gaps = np.diff([*picked, picked[0] + 1000])
    assert gaps.max() - gaps.min() <= 1
    assert gaps.sum() == 1000


def test_evenly_keeps_all_of_the_rare_frames() -> None:
    times = [*np.linspace(0, 1, 290, endpoint=False), *range(1, 11)]
    picked = evenly(times, 100)
    assert set(range(290, 300)) <= set(picked)
    assert np.diff([i for i in picked if i < 290]).max() <= 4


# --- Folders --------------------------------------------------------------------------------------------


def test_folder_in_natural_order(tmp_path: Path) -> None:
    order = [3, 11, 0, 2, 10, 1]
    for i in order:
        Image.fromarray(grey_frames(12)[i]).save(tmp_path / f"frame{i}.png")
    frames = media.read_frames(tmp_path, as_is)
    assert indices(frames.images) == sorted(order)
    assert frames.notices == ()


def test_folder_passes_over_other_entries_in_one_line(tmp_path: Path) -> None:
    Image.fromarray(corner_picture()).save(tmp_path / "a.png")
    Image.fromarray(corner_picture()).save(tmp_path / "b", "PNG")  # a picture by its content
    (tmp_path / ".DS_Store").write_text("hidden")
    for name in ("notes.txt", "readme.md", "z.csv"):
        (tmp_path / name).write_text("text")
    (tmp_path / "masks").mkdir()
    Image.fromarray(corner_picture()).save(tmp_path / "masks" / "c.png")
    frames = media.read_frames(tmp_path, as_is)
    assert len(frames.images) == 2
    (notice,) = frames.notices
    assert "4 other entries" in notice
    assert "masks/, notes.txt, readme.md, …" in notice
    assert "hidden" not in notice


def test_folder_is_thinned(tmp_path: Path) -> None:
    for i, frame in enumerate(grey_frames(20)):
        Image.fromarray(frame).save(tmp_path / f"{i}.png")
    frames = media.read_frames(tmp_path, as_is, max_frames=5)
    assert indices(frames.images) == [2, 6, 10, 14, 18]
    assert frames.notices == (f"{tmp_path.name}: 20 frames, 5 of them used, evenly spread",)


def test_frames_of_another_shape_are_scaled_to_cover_and_cropped(tmp_path: Path) -> None:
    Image.fromarray(corner_picture(40, 80)).save(tmp_path / "0.png")
    wide = np.full((50, 300, 3), 255, np.uint8)  # of its 300 columns the middle 100 remain
    wide[:, 100:200] = corner_picture(50, 100)
    Image.fromarray(wide).save(tmp_path / "1.png")
    tall = np.full((200, 80, 3), 0, np.uint8)
    tall[80:120] = corner_picture(40, 80)
    Image.fromarray(tall).save(tmp_path / "2.png")
    frames = media.read_frames(tmp_path, to(20, 44))
    assert frames.source_size == (40, 80)
    assert frames.images.shape == (3, 20, 44, 3)
    for image in frames.images:
        assert_corners(image)
        assert_corners(image[1:-1, 1:-1])
    (notice,) = frames.notices
    assert "2 frames of another shape" in notice
    assert "80×40" in notice


def test_transparency_in_a_folder_is_counted_in_one_line(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGBA", (8, 8), (0, 0, 0, 255 * (i == 0))).save(tmp_path / f"{i}.png")
    (notice,) = media.read_frames(tmp_path, as_is).notices
    assert "2 frames" in notice


def test_folders_that_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "holds no pictures")
    (tmp_path / "a.txt").write_text("text")
    refused(tmp_path, "holds no pictures")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    refused(tmp_path, "HEIC", "JPEG or PNG")
    (tmp_path / "a.mp4").write_bytes(bytes(20))
    refused(tmp_path, "name the clip itself")


def test_damaged_picture_in_a_folder_is_named(tmp_path: Path) -> None:
    for i, frame in enumerate(grey_frames(4)):
        Image.fromarray(frame).save(tmp_path / f"{i}.jpg")
    content = (tmp_path / "2.jpg").read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"some text"):
        (tmp_path / "2.jpg").write_bytes(damaged)
        refused(tmp_path, "2.jpg")


# --- What is refused --------------------------------------------------------------------------------------


def png(width: int, height: int, pixels: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG made by hand: any header, any content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    stride = len(pixels) // max(1, height)
    rows = b"".join(b"\0" + pixels[i * stride : (i + 1) * stride] for i in range(height)) if pixels else b""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_missing_and_special_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "none.png", "no such file")
    refused(tmp_path / "a" / "none.png", "no such file")
    refused("nul\0l.png", "no such file")
    refused("x" * 5000, "no such file")
    refused("/dev/zero", "/dev/zero", "device or pipe")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "device or pipe")
    with pytest.raises(UserError, match="no such file"):
        media.source_checksum(tmp_path / "none.png")
    with pytest.raises(UserError, match="device or pipe"):
        media.source_checksum("/dev/zero")


def test_pipe_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    Image.fromarray(corner_picture()).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert "b.png" in media.read_frames(tmp_path, as_is).notices[0]


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without root's right to read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_no_permission(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    Image.fromarray(corner_picture()).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    (tmp_path / "locked").mkdir(mode=0)
    with ordinary_user():
        refused(tmp_path / "a.png", "permission")
        refused(tmp_path / "locked", "permission")
        refused(tmp_path / "locked" / "a.png", "permission")
        refused(tmp_path, "permission")
        with pytest.raises(UserError, match="permission"):
            media.source_checksum(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.gif", "a"])
@pytest.mark.parametrize(
    "content",
    ["hello\n" * 100, "#EXTM3U\n#EXTINF:1,\nb.mp4\n", "ffconcat version 1.0\nfile b.mp4\n", "P6 text"],
)
def test_text_by_any_name(tmp_path: Path, name: str, content: str) -> None:
    write_video(tmp_path / "b.mp4", grey_frames(2))
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, name, "no picture or video", "PNG", "MP4")


def test_empty_file(tmp_path: Path) -> None:
    for name in ("a.png", "a.mp4"):
        (tmp_path / name).touch()
        refused(tmp_path / name, name, "empty")


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_cut_picture(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    content = buffer.getvalue()
    path = tmp_path / "a.png"
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "a.png", "damaged")


def test_tolerance_set_elsewhere_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(corner_picture()).save(tmp_path / "a.jpg")
    assert media.read_frames(tmp_path / "a.jpg", as_is).images.shape == (1, 48, 64, 3)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 3 // 4])
    refused(tmp_path / "a.jpg", "damaged")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert Image.MAX_IMAGE_PIXELS == 100


def test_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000, b""))
    refused(tmp_path / "bomb.png", "bomb.png", "30000×30000", "200 million")
    (tmp_path / "bomb.gif").write_bytes(b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0;")
    refused(tmp_path / "bomb.gif", "65535×65535", "200 million")
    assert Image.MAX_IMAGE_PIXELS is not None


def test_large_picture_below_the_limit_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")  # where Pillow warns of a bomb
    frames = media.read_frames(tmp_path / "large.png", to(10, 10))
    assert frames.source_size == (10_000, 10_000)


def test_no_pixels(tmp_path: Path) -> None:
    for name, size in (("a.png", (0, 0)), ("b.png", (0, 5))):
        (tmp_path / name).write_bytes(png(*size, b""))
        refused(tmp_path / name, name)
    (tmp_path / "c.gif").write_bytes(b"GIF89a\0\0\0\0\0\0\0;")
    refused(tmp_path / "c.gif", "c.gif")


def test_heic(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    refused(tmp_path / "photo.jpg", "photo.jpg", "HEIC", "save it as JPEG or PNG")


def test_sound_only(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "aac"), ("a.mkv", "pcm_s16le")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        refused(tmp_path / name, name, "only sound")


def test_video_without_frames(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", grey_frames(3)).read_bytes()
    cluster = whole.index(b"\x1f\x43\xb6\x75")
    for end in (cluster, cluster + 30):
        (tmp_path / "a.mkv").write_bytes(whole[:end])
        refused(tmp_path / "a.mkv", "a.mkv", "damaged")


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mov", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.webm", "libvpx", {}),
        ("a.avi", "mpeg4", {}),
        ("a.mkv", "libx264", {}),
    ],
)
def test_cut_video_gives_what_can_be_decoded(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(75)]
    content = write_video(tmp_path / name, noise, codec, options=options, crf="25").read_bytes()
    assert media.read_frames(tmp_path / name, as_is).notices == ()
    capfd.readouterr()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    frames = media.read_frames(tmp_path / name, as_is)
    assert 5 <= len(frames.images) < 70
    (notice,) = frames.notices
    assert f"only {len(frames.images)} frames can be decoded" in notice
    thinned = media.read_frames(tmp_path / name, as_is, max_frames=5)
    assert len(thinned.images) == 5
    assert len(thinned.notices) == 2
    assert capfd.readouterr() == ("", "")


def test_cut_in_a_clip_of_less_than_a_second(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(20)]
    path = write_video(tmp_path / "a.mp4", noise, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-10_000])
    assert "damaged or cut off" in media.read_frames(path, as_is).notices[0]


def test_video_cut_before_its_index(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", grey_frames(30)).read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: content.index(b"moov") - 4])
    refused(tmp_path / "a.mp4", "a.mp4", "cut-off video")


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_cut_animation_gives_what_can_be_decoded(tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(10)]
    path = animated(tmp_path / name, noise, duration=40)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.55)])
    frames = media.read_frames(path, as_is)
    assert len(frames.images) == 5
    assert any("damaged" in notice for notice in frames.notices)
    path.write_bytes(content[: int(len(content) * 0.05)])
    refused(path, name, "damaged")


def test_names_cannot_break_the_line(tmp_path: Path) -> None:
    name = "a\n[red]b\x1b[0m\u2028c.png"
    (tmp_path / name).write_text("text")
    refused(tmp_path / name, "[red]b")
    folder = tmp_path / "f\nolder"
    folder.mkdir()
    Image.fromarray(corner_picture()).save(folder / "a.png")
    for other in ("x\ny.txt", os.fsdecode(b"\xff.txt")):
        (folder / other).write_text("text")
    (notice,) = media.read_frames(folder, as_is).notices
    assert notice.isprintable()
    assert media.source_name(folder).isprintable()
    write_video(tmp_path / "b.mp4", grey_frames(2)).rename(tmp_path / os.fsdecode(b"b\n\xff.mp4"))
    assert len(media.read_frames(tmp_path / os.fsdecode(b"b\n\xff.mp4"), as_is).images) == 2


def test_a_name_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "b.mp4", grey_frames(2)).rename(tmp_path / "concat:b.mp4")
    assert len(media.read_frames("concat:b.mp4", as_is).images) == 2


def test_max_frames_below_one(tmp_path: Path) -> None:
    Image.fromarray(corner_picture()).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="at least one frame"):
        media.read_frames(tmp_path / "a.png", as_is, max_frames=0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_large_video_needs_little_memory(tmp_path: Path) -> None:
    """320 frames of 1080p are 2 GB decoded; reading 50 of them, small, must grow the process by < 300 MB."""
    y, x = np.mgrid[:1080, :1920].astype(np.uint8)
    shown = [av.VideoFrame.from_ndarray(np.dstack([x + 3 * i, y, x]), format="rgb24") for i in range(4)]
    with av.open(str(tmp_path / "large.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        shown = [frame.reformat(format="yuv420p") for frame in shown]
        for i in range(320):
            shown[i % 4].pts = i
            container.mux(stream.encode(shown[i % 4]))
        container.mux(stream.encode(None))
    program = """if True:
        import sys, av
        from oneshotgan import media
        peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
        before = peak()
        frames = media.read_frames(sys.argv[1], lambda size: (108, 192), max_frames=50)
        print(*frames.images.shape, peak() - before)
    """
    command = [sys.executable, "-c", program, str(tmp_path / "large.mp4")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    *shape, growth = map(int, output.split())
    assert shape == [50, 108, 192, 3]
    assert growth < 300_000, f"{growth} kB"


def test_torch_is_not_needed() -> None:
    program = "import sys; from oneshotgan import media; print({'torch', 'av'} & set(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "set()"


# --- Checksum and name --------------------------------------------------------------------------------------


def test_checksum_of_a_file_is_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert media.source_checksum(tmp_path / "a.png") == known


def test_checksum_of_a_folder_is_of_its_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for i, frame in enumerate(grey_frames(3)):
        Image.fromarray(frame).save(folder / f"{i}.png")
    before = media.source_checksum(folder)
    shutil.copytree(folder, tmp_path / "b")
    (folder / "notes.txt").write_text("not a picture")
    assert media.source_checksum(folder) == before
    assert media.source_checksum(tmp_path / "b") == before
    (folder / "2.png").rename(folder / "3.png")
    assert media.source_checksum(folder) != before
    (folder / "3.png").rename(folder / "2.png")
    assert media.source_checksum(folder) == before
    Image.fromarray(grey_frames(5)[4]).save(folder / "2.png")
    assert media.source_checksum(folder) != before


def test_source_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clip.v2"
    folder.mkdir()
    assert media.source_name("photos/balloons.png") == "balloons"
    assert media.source_name(folder) == "clip.v2"
    monkeypatch.chdir(folder)
    assert media.source_name(".") == "clip.v2"
    assert media.source_name("/") == "source"


# --- Writing ------------------------------------------------------------------------------------------------


def test_contact_sheet_places_each_image() -> None:
    images = np.stack(grey_frames(5, 4, 6))
    sheet = media.contact_sheet(images, columns=3, gap=2)
    assert sheet.shape == (4 + 2 + 4, 6 + 2 + 6 + 2 + 6, 3)
    for i in range(5):
        y, x = i // 3 * 6, i % 3 * 8
        assert (sheet[y : y + 4, x : x + 6] == 4 * i).all()
    assert (sheet[4:6] == 255).all()  # the gap
    assert (sheet[6:, 16:] == 255).all()  # the place that is left
    np.testing.assert_array_equal(media.contact_sheet(images[:1]), images[0])
    assert media.contact_sheet(images, columns=9, gap=0).shape == (4, 30, 3)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 16, 17])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
def test_contact_sheet_is_landscape(number: int, size: tuple[int, int]) -> None:
    height, width, _ = media.contact_sheet(np.zeros((number, *size, 3), np.uint8), gap=0).shape
    assert width >= height or number == 1
    if number >= 8:
        assert width <= 2.5 * height


def test_png_there_and_back(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(media.encode_png(image)))), image)
    media.write_png(tmp_path / "a.png", image[:, ::-1])
    np.testing.assert_array_equal(media.read_frames(tmp_path / "a.png", as_is).images[0], image[:, ::-1])
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.mp4", "A.MP4"])
def test_animation_there_and_back(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    images = np.stack([np.roll(corner_picture(48, 64), 6 * i, axis=1) for i in range(8)])
    media.write_animation(tmp_path / name, images, fps=20)
    assert capfd.readouterr() == ("", "")
    frames = media.read_frames(tmp_path / name, as_is)
    assert frames.images.shape == images.shape
    assert np.abs(frames.images.astype(int) - images).mean() < 6
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("name", "number"), [("a.gif", 13), ("a.webp", 13), ("a.mp4", 13)])
def test_animation_keeps_its_pace(tmp_path: Path, name: str, number: int) -> None:
    media.write_animation(tmp_path / name, np.stack(grey_frames(number)), fps=12)
    if name == "a.mp4":
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].average_rate == 12
        return
    with Image.open(tmp_path / name) as image:
        assert image.info["loop"] == 0
        total = 0
        for i in range(number):
            image.seek(i)
            image.load()
            total += image.info["duration"]
    assert abs(total - 1000 * number / 12) <= 10


def test_mp4_of_odd_sides_repeats_the_edge(tmp_path: Path) -> None:
    image = corner_picture(33, 47)
    media.write_animation(tmp_path / "a.mp4", np.stack([image] * 3), fps=12.5)
    frames = media.read_frames(tmp_path / "a.mp4", as_is)
    assert frames.images.shape == (3, 34, 48, 3)
    assert_corners(frames.images[0], tolerance=12)
    assert np.abs(frames.images[0, -1].astype(int) - frames.images[0, -2]).mean() < 4


def test_one_image_makes_an_animation(tmp_path: Path) -> None:
    for name in ("a.gif", "a.webp", "a.mp4"):
        media.write_animation(tmp_path / name, corner_picture()[None])
        assert len(media.read_frames(tmp_path / name, as_is).images) == 1


def test_animation_of_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.gif, \.webp or \.mp4"):
        media.write_animation(tmp_path / "a.avi", np.stack(grey_frames(2)))
    with pytest.raises(ValueError, match="expected"):
        media.write_animation(tmp_path / "a.gif", np.zeros((0, 4, 4, 3), np.uint8))
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        media.write_png(tmp_path / "gone" / "a.png", corner_picture())
    with pytest.raises(UserError, match="cannot write"):
        media.write_animation(tmp_path / "gone" / "a.mp4", np.stack(grey_frames(2)))


# --- The provided photos and clips --------------------------------------------------------------------------


def test_provided_clips(test_data: Path) -> None:
    for folder in sorted((test_data / "data" / "davis").glob("*/frames")):
        frames = media.read_frames(folder, to(48, 85), max_frames=5)
        assert frames.images.shape == (5, 48, 85, 3)
        assert frames.source_size == (480, 854)
        assert len(frames.notices) == 1
        assert len(np.unique(frames.images.reshape(5, -1), axis=0)) == 5


def test_provided_photos(test_data: Path) -> None:
    photos = sorted((test_data / "data" / "images").iterdir())
    assert photos
    for photo in photos:
        frames = media.read_frames(photo, to(50, 70))
        with Image.open(photo) as image:
            direct = image.convert("RGBA")
        page = Image.new("RGBA", direct.size, "white")
        page.alpha_composite(direct)
        small = np.asarray(page.convert("RGB").resize((70, 50), Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(frames.images[0] - small).mean() < 1
        assert frames.source_size == direct.size[::-1]
