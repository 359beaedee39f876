"""Photo, folder of pictures or video in, frames out; and images back to PNG, GIF, WebP and MP4.

    reading.py    the source as a whole: file or folder, checksum, name
    shots.py      frames as they come from a decoder, made alike and thinned
    pictures.py   one picture or animation, through Pillow
    video.py      one video, through PyAV
    writing.py    contact sheets, PNG, animations

What a file holds is decided by its content, never by its suffix: Pillow is asked first, then PyAV.
"""

from oneshotgan.media.reading import read_frames, source_checksum, source_name
from oneshotgan.media.shots import Frames, resized
from oneshotgan.media.writing import contact_sheet, encode_png, write_animation, write_png

__all__ = [
    "Frames",
    "contact_sheet",
    "encode_png",
    "read_frames",
    "resized",
    "source_checksum",
    "source_name",
    "write_animation",
    "write_png",
]
