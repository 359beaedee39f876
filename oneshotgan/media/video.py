"""One video, through PyAV: its frames upright, with square pixels, in full-range RGB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from oneshotgan.errors import UserError
from oneshotgan.media.shots import WANTED, Array, Shot, Size, check_size, shown

if TYPE_CHECKING:
    import av

# None that reads text, lists of other files, or addresses.
_DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,asf,ogg"
_START = re.compile(rb"....(ftyp|moov|mdat)|\x1a\x45\xdf\xa3|RIFF....AVI ", re.DOTALL)
_ATTACHED_PICTURE = 0x400  # the cover of a song is no video
_FULL_RANGE = 2
_BT601 = 5
_SCALING = 0x200 | 0x2000 | 0x40000  # Lanczos, full chroma, accurate rounding: else white comes out as 252
# The colour space of a frame (AVCOL_SPC) as the scaler names it (SWS_CS).
_COLOURSPACES = {1: 1, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: 9, 10: 9}


class Video:
    """A video file. An alpha channel is ignored."""

    def __init__(self, path: Path) -> None:
        self.name, self.damaged = path.name, False
        self._path = path

    def shots(self) -> Iterator[Shot]:
        import av
        from av.video.reformatter import VideoReformatter

        av.logging.set_level(None)
        with self._open() as container:
            stream = self._stream(container)
            aspect, rate = float(stream.sample_aspect_ratio or 1), float(stream.average_rate or 25)
            scaler, upright, time, number = VideoReformatter(), _Upright(), -1 / rate, 0
            for frame in self._decoded(container, stream):
                check_size(self._path, (frame.height, frame.width))
                if not number:
                    upright = _upright(frame)
                time = time + 1 / rate if frame.time is None else float(frame.time)
                number += 1
                yield _shot(frame, time, aspect, upright, scaler)
            self.damaged |= number < 0.9 * stream.frames  # 0 where the header does not say
            duration = float((container.duration or 0) / 1e6)  # of the longest stream, sound included
            if stream.duration is not None and stream.time_base is not None:
                duration = float(stream.duration * stream.time_base)
            self.damaged |= time < 0.9 * duration - 1

    def _open(self) -> av.container.InputContainer:
        import av

        # The name with "file:" before it, so that none is read as an address or a list.
        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
        try:
            return av.open(f"file:{self._path.absolute()}", "r", options=options, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError, OSError) as error:
            with open(self._path, "rb") as file:
                known = _START.match(file.read(16))
            if known:
                raise UserError(
                    f"{shown(self._path)} is a damaged or cut-off video: use another copy"
                ) from error
            raise UserError(
                f"{shown(self._path)} is no picture or video that can be read: {WANTED}"
            ) from error

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        for stream in container.streams.video:
            if not int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE:
                if stream.codec_context is None:
                    raise UserError(
                        f"{shown(self._path)}: its way of coding video is not known here: save it as MP4"
                    )
                check_size(self._path, (stream.codec_context.height or 1, stream.codec_context.width or 1))
                stream.thread_type = "AUTO"
                return stream
        raise UserError(f"{shown(self._path)} has no moving pictures, only sound: {WANTED}")

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """The frames that can be decoded, past damaged places."""
        import av

        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError):
                self.damaged = True
                return
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError, ValueError):
                self.damaged = True
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damaged = True
                else:
                    yield frame


@dataclass(frozen=True)
class _Upright:
    """How stored frames become upright: swap the axes, then mirror left-right, then flip top-bottom."""

    swap: bool = False
    mirror: bool = False
    flip: bool = False

    def size(self, size: Size) -> Size:
        return size[::-1] if self.swap else size

    def pixels(self, pixels: Array) -> Array:
        pixels = pixels.swapaxes(0, 1) if self.swap else pixels
        return np.ascontiguousarray(pixels[:: -1 if self.flip else 1, :: -1 if self.mirror else 1])


def _upright(frame: av.VideoFrame) -> _Upright:
    """From the display matrix. To be asked of one frame alone: one that was asked is not freed at once."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return _Upright()
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data)[:36], dtype=np.int32)[:5])
    swap = abs(b) > abs(a)
    return _Upright(swap, (c if swap else a) < 0, (b if swap else d) < 0)


def _shot(frame: av.VideoFrame, time: float, aspect: float, upright: _Upright, scaler: Any) -> Shot:
    size = upright.size((frame.height, max(1, round(frame.width * aspect))))
    full_range = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
    colours = {
        "src_colorspace": _COLOURSPACES.get(int(frame.colorspace), _BT601),
        "src_color_range": _FULL_RANGE if full_range else 0,
        "dst_colorspace": _BT601,  # of no effect on RGB, but to be named, or older releases take the source's
    }

    def scaled(wanted: Size) -> Array:
        height, width = upright.size(wanted)
        small = scaler.reformat(frame, width, height, "rgb24", interpolation=_SCALING, **colours)
        return upright.pixels(small.to_ndarray())

    return Shot(time, size, scaled, lambda: Image.fromarray(scaled(size)))
