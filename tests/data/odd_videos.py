"""Videos of every kind that is hard to read exactly, frame numbers coded in their pixels.

`ODD_VIDEOS` maps the name of a file to what writes it. Everything is encoded here, in a moment.
"""

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from tests.data.conftest import SIZE, picture

FRAMES = 31
Make = Callable[[Path], object]


def encode(
    path: Path,
    codec: str,
    options: dict[str, str],
    *,
    size: tuple[int, int] = SIZE,
    pixels: str = "yuv420p",
    times: Callable[[int], int] | None = None,
    sound: str = "",
    muxer: dict[str, str] | None = None,
    turn: int = 0,
    cover: bool = False,
    format: str | None = None,
) -> None:
    """Write a video of FRAMES frames.

    Args:
        path: file to write.
        codec: encoder.
        options: of the encoder.
        size: (height, width).
        pixels: pixel format.
        times: time of a frame, 1/1000 s, for a variable frame rate.
        sound: encoder of an audio stream that comes first; "": none.
        muxer: options of the container.
        turn: degrees of the stored rotation.
        cover: a picture is attached.
        format: container, if the name of the file does not tell it.
    """
    with av.open(str(path), "w", options=muxer or {}, format=format) as container:
        hearable = _add_sound(container, sound) if sound else None
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.options = options
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn)
        attached = _add_cover(container) if cover else []
        if hearable:
            container.mux(hearable)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times(number), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(attached)


def _add_sound(container: av.container.OutputContainer, codec: str) -> list[av.Packet]:
    stream = container.add_stream(codec, rate=16000)
    stream.layout = "mono"
    samples = (8000 * np.sin(np.arange(20480) / 9)).astype(np.float32)[None] / 32768
    sound = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
    sound.rate, sound.pts = 16000, 0
    resampler = av.AudioResampler(stream.format or "fltp", "mono", 16000, stream.frame_size or 1024)
    frames = [*resampler.resample(sound), *resampler.resample(None)]
    return [packet for frame in [*frames, None] for packet in stream.encode(frame)]


def _add_cover(container: av.container.OutputContainer) -> list[av.Packet]:
    stream = container.add_stream("mjpeg", rate=25)
    stream.height, stream.width, stream.pix_fmt = 32, 32, "yuvj420p"
    stream.disposition = Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(picture(999, 32, 32), format="rgb24")
    return [*stream.encode(frame), *stream.encode(None)]


def packets_of(path: Path) -> tuple[av.VideoStream, list[av.Packet]]:
    """Return the first video stream of a file and its packets, the container left open."""
    container = av.open(str(path))
    stream = container.streams.video[0]
    return stream, [packet for packet in container.demux(stream) if packet.size]


def remux(
    source: Path, target: Path, first: int = 0, shift: int = 0, muxer: dict[str, str] | None = None
) -> None:
    """Copy the packets of a video from number `first` on, in stored order.

    Args:
        source: the video.
        target: file to write.
        first: packets left out at the start.
        shift: added to every time stamp.
        muxer: options of the container.
    """
    stream, packets = packets_of(source)
    with av.open(str(target), "w", options=muxer or {}) as container:
        copy = container.add_stream_from_template(stream)
        for packet in packets[first:]:
            packet.pts += shift
            packet.dts += shift
            packet.stream = copy
            container.mux(packet)


# --------------------------------------------------------------------------- special files
H264 = {"g": "6", "bf": "2", "crf": "10"}


def start_inside_a_gop(path: Path) -> None:
    """An edit list: packets before time 0 are decoded but not shown."""
    whole = path.with_name("whole.mp4")
    encode(whole, "libx264", {"g": "12", "bf": "2", "crf": "10"})
    stream, packets = packets_of(whole)
    key = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
    inside = sorted(packet.pts for packet in packets[key:])[5]
    remux(whole, path, key, -inside, {"avoid_negative_ts": "disabled"})


def negative_start(path: Path) -> None:
    whole = path.with_name("whole.mp4")
    encode(whole, "libx264", H264)
    remux(whole, path, 0, -3000, {"avoid_negative_ts": "disabled"})


def late_start(path: Path) -> None:
    whole = path.with_name("whole.mp4")
    encode(whole, "libx264", H264)
    remux(whole, path, 0, 90_000)


def without_first_key(path: Path) -> None:
    """The first group of pictures has lost its key frame."""
    whole = path.with_name("whole.mp4")
    encode(whole, "libx264", {"g": "12", "bf": "2", "crf": "10"})
    remux(whole, path, 3)


def same_stamps(path: Path) -> None:
    """The first two frames have one time stamp, as where a container rounds them."""
    whole = path.with_name("whole.mkv")
    encode(whole, "libx264", {"g": "6", "bf": "0", "crf": "10"})
    stream, packets = packets_of(whole)
    packets[1].pts = packets[1].dts = packets[0].pts
    with av.open(str(path), "w") as container:
        copy = container.add_stream_from_template(stream)
        for packet in packets:
            packet.stream = copy
            container.mux(packet)


def lying_header(path: Path) -> None:
    """An AVI whose header promises two frames more."""
    encode(path, "mpeg4", {"g": "6", "qmax": "3"})
    data = bytearray(path.read_bytes())
    place = data.index(b"avih") + 8 + 16
    (total,) = struct.unpack_from("<I", data, place)
    assert total == FRAMES
    struct.pack_into("<I", data, place, total + 2)
    length = data.index(b"strh") + 8 + 32
    assert struct.unpack_from("<I", data, length) == (FRAMES,)
    struct.pack_into("<I", data, length, total + 2)
    path.write_bytes(data)


def packed_b_frames(path: Path) -> None:
    """An AVI as DivX wrote them: a B-frame in the packet of the frame shown after it.

    A placeholder of some bytes, a picture that is not coded, stands where the B-frame would be.
    """
    encode(path, "mpeg4", {"g": "12", "bf": "1", "qmax": "3", "b_strategy": "0"})
    stream, packets = packets_of(path)
    coded = [bytes(packet) for packet in packets]
    kinds = [_vop_kind(data) for data in coded]
    marker = b"\0\0\1\xb2DivX503b1393p\0"
    out: list[bytes] = []
    for data, kind in zip(coded, kinds, strict=True):
        if kind == 2:  # a B-frame
            out[-1] += data
            out.append(b"\0\0\1\xb6\x50\x00\x7f\xff\xff")
        else:
            out.append(data)
    vop = out[0].index(b"\0\0\1\xb6")
    out[0] = out[0][:vop] + marker + out[0][vop:]
    packed = path.with_name("packed.avi")
    with av.open(str(packed), "w") as container:
        copy = container.add_stream_from_template(stream)
        for number, data in enumerate(out):
            packet = av.Packet(data)
            packet.stream = copy
            packet.time_base = Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = kinds[number] == 0
            container.mux(packet)
    packed.rename(path)


def _vop_kind(data: bytes) -> int:
    return data[data.index(b"\0\0\1\xb6") + 4] >> 6


def changing_size(path: Path, codec: str, options: dict[str, str], pixels: str) -> None:
    """The pictures grow after half of the frames, as in streams put together from several."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, pixels
        stream.options = options
        container.start_encoding()
        for number, data in enumerate(_sizes(codec, options, pixels)):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = codec == "mjpeg" or number in (0, FRAMES // 2)
            container.mux(packet)


def _sizes(codec: str, options: dict[str, str], pixels: str) -> Iterator[bytes]:
    for size, numbers in ((SIZE, range(FRAMES // 2)), ((96, 128), range(FRAMES // 2, FRAMES))):
        context = av.CodecContext.create(codec, "w")
        context.height, context.width, context.pix_fmt = *size, pixels
        context.time_base, context.options = Fraction(1, 25), options
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts = number
            yield from (bytes(packet) for packet in context.encode(frame))
        yield from (bytes(packet) for packet in context.encode(None))


def joined(path: Path) -> None:
    """Two transport streams one after the other: the time stamps begin anew."""
    part = path.with_name("part.ts")
    encode(part, "mpeg2video", {"g": "6", "bf": "2", "qmax": "3"})
    path.write_bytes(part.read_bytes() * 2)


def cover_first(path: Path) -> None:
    """The cover of an MP4 is stored before the video, so it is the first video stream."""
    encode(path, "libx264", H264, cover=True)
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    (length,) = struct.unpack_from(">I", data, moov)
    inside = data[moov + 8 : moov + length]
    at = inside.index(b"udta") - 4
    (size,) = struct.unpack_from(">I", inside, at)
    moved = inside[at : at + size] + inside[:at] + inside[at + size :]
    path.write_bytes(data[: moov + 8] + moved + data[moov + length :])


def two_videos(path: Path) -> None:
    """Two video streams with the same time stamps; the second is larger."""
    with av.open(str(path), "w") as container:
        streams = []
        for size in (SIZE, (96, 128)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.options = H264
            streams.append((stream, size))
        for number in range(FRAMES):
            for stream, size in streams:
                shown = number if size == SIZE else 1000 + number
                frame = av.VideoFrame.from_ndarray(picture(shown, *size), format="rgb24")
                container.mux(stream.encode(frame))
        for stream, _ in streams:
            container.mux(stream.encode(None))


def cut(make: Make, part: float) -> Make:
    """Make a file and keep the first part of it."""

    def write(path: Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])

    return write


def damaged(make: Make, part: float, count: int = 8) -> Make:
    """Make a file and overwrite some bytes at that place."""

    def write(path: Path) -> None:
        make(path)
        data = bytearray(path.read_bytes())
        place = int(len(data) * part)
        data[place : place + count] = bytes(byte ^ 0x5A for byte in data[place : place + count])
        path.write_bytes(data)

    return write


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        container.mux(_add_sound(container, "aac"))


def sound_with_cover(path: Path) -> None:
    with av.open(str(path), "w") as container:
        packets = _add_sound(container, "aac")
        attached = _add_cover(container)
        container.mux(packets)
        container.mux(attached)


def unknown_codec(path: Path) -> None:
    encode(path, "libx264", H264)
    data = path.read_bytes()
    place = data.rindex(b"avc1")
    path.write_bytes(data[:place] + b"what" + data[place + 4 :])


def _as(codec: str, options: dict[str, str], **kwargs: object) -> Make:
    return lambda path: encode(path, codec, options, **kwargs)  # type: ignore[arg-type]


MPEG4 = {"g": "6", "qmax": "3"}
MPEG4_B = {"g": "12", "bf": "2", "qmax": "3"}
VP9 = {"crf": "20", "b:v": "0", "g": "12", "deadline": "realtime", "cpu-used": "8"}
VP_ALT_REF = {
    "crf": "10", "b:v": "1M", "g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "4",
}  # fmt: skip
X265 = "log-level=none:keyint=8:min-keyint=8:bframes=3:"

ODD_VIDEOS: dict[str, Make] = {
    "mpeg4.avi": _as("mpeg4", MPEG4),
    "mpeg4_b_frames.avi": _as("mpeg4", MPEG4_B),
    "mpeg4_packed_b_frames.avi": packed_b_frames,
    "mpeg4_b_frames.mp4": _as("mpeg4", MPEG4_B),
    "mpeg4_b_frames.mkv": _as("mpeg4", MPEG4_B),
    "mpeg4_odd_size.avi": _as("mpeg4", MPEG4, size=(47, 61)),
    "h264_b_frames.mp4": _as("libx264", H264),
    "h264_b_frames.avi": _as("libx264", H264),
    "h264_b_frames.ts": _as("libx264", H264),
    "h264_open_gop.mp4": _as("libx264", {"x264-params": "keyint=8:open-gop=1:bframes=3:crf=10"}),
    "h264_open_gop.mkv": _as("libx264", {"x264-params": "keyint=8:open-gop=1:bframes=3:crf=10"}),
    "h264_intra_refresh.mp4": _as(
        "libx264", {"x264-params": "keyint=8:intra-refresh=1:bframes=0:crf=10"}
    ),
    "h264_intra_refresh.mkv": _as(
        "libx264", {"x264-params": "keyint=8:intra-refresh=1:bframes=0:crf=10"}
    ),
    "h264_interlaced.mp4": _as("libx264", H264 | {"flags": "+ildct+ilme", "x264-params": "tff=1"}),
    "h264_10_bit.mp4": _as("libx264", H264, pixels="yuv420p10le"),
    "h264_odd_size.mp4": _as("libx264", H264, size=(47, 61), pixels="yuv444p"),
    "h264_raw.h264": _as("libx264", H264),
    "mpeg1.mpg": _as("mpeg1video", MPEG4_B),
    "mpeg2.ts": _as("mpeg2video", MPEG4_B),
    "mpeg2.mkv": _as("mpeg2video", MPEG4_B),
    "vp8.webm": _as("libvpx", VP_ALT_REF),
    "vp9.webm": _as("libvpx-vp9", VP9),
    "vp9_alt_ref.webm": _as("libvpx-vp9", VP_ALT_REF),
    "vp9_odd_size.webm": _as("libvpx-vp9", VP9, size=(47, 61)),
    "vp9_alpha.webm": _as("libvpx-vp9", VP9 | {"auto-alt-ref": "0"}, pixels="yuva420p"),
    "png_alpha.mov": _as("png", {}, pixels="rgba"),
    "hevc_open_gop.mp4": _as("libx265", {"x265-params": X265 + "open-gop=1:crf=10"}),
    "hevc_open_gop.mkv": _as("libx265", {"x265-params": X265 + "open-gop=1:crf=10"}),
    "hevc_10_bit.mp4": _as(
        "libx265", {"x265-params": X265 + "open-gop=0:crf=10"}, pixels="yuv420p10le"
    ),
    "av1.mp4": _as("libsvtav1", {"preset": "12", "crf": "20", "g": "12"}, size=(64, 80)),
    "av1.webm": _as("libsvtav1", {"preset": "12", "crf": "20", "g": "12"}, size=(64, 80)),
    "mjpeg.avi": _as("mjpeg", {"qmax": "3"}, pixels="yuvj420p"),
    "gif.gif": _as("gif", {}, pixels="rgb8"),
    "variable_rate.mp4": _as("libx264", H264, times=lambda n: n * 40 + n * n % 17),
    "variable_rate.mkv": _as("libx264", H264, times=lambda n: n * 40 + n * n % 17),
    "pause.mp4": _as("libx264", H264, times=lambda n: n * 40 + 5000 * (n > 14)),
    "live.mkv": _as("libx264", H264, muxer={"live": "1"}),
    "live.webm": _as("libvpx-vp9", VP9, muxer={"live": "1"}),
    "fragmented.mp4": _as("libx264", H264, muxer={"movflags": "frag_keyframe+empty_moov"}),
    "sound_first.mp4": _as("libx264", H264, sound="aac"),
    "sound_first.avi": _as("mpeg4", MPEG4, sound="libmp3lame"),
    "rotated_90.mp4": _as("libx264", H264, turn=90),
    "rotated_180.mp4": _as("libx264", H264, turn=180),
    "rotated_270.mp4": _as("libx264", H264, turn=-90),
    "start_inside_a_gop.mp4": start_inside_a_gop,
    "start_inside_a_gop.mkv": start_inside_a_gop,
    "negative_start.mp4": negative_start,
    "negative_start.mkv": negative_start,
    "late_start.mp4": late_start,
    "without_first_key.mp4": without_first_key,
    "same_stamps.mkv": same_stamps,
    "lying_header.avi": lying_header,
    "changing_size.avi": lambda path: changing_size(path, "mjpeg", {"qmax": "3"}, "yuvj420p"),
    "changing_size.webm": lambda path: changing_size(
        path, "libvpx-vp9", VP9 | {"lag-in-frames": "0"}, "yuv420p"
    ),
    "joined.ts": joined,
    "cover_first.mp4": cover_first,
    "two_videos.mp4": two_videos,
    "cut_60.mkv": cut(_as("libx264", H264), 0.6),
    "cut_60.avi": cut(_as("mpeg4", MPEG4), 0.6),
    "cut_60_b_frames.avi": cut(_as("mpeg4", MPEG4_B), 0.6),
    "cut_90.mp4": cut(_as("libx264", H264, muxer={"movflags": "faststart"}), 0.9),
    "cut_50.ts": cut(_as("mpeg2video", MPEG4_B), 0.5),
    "cut_50.webm": cut(_as("libvpx-vp9", VP9), 0.5),
    "damaged_50.mp4": damaged(_as("libx264", H264), 0.5),
    "damaged_50.mkv": damaged(_as("libx264", H264), 0.5),
    "damaged_30.avi": damaged(_as("mpeg4", MPEG4), 0.3),
    "damaged_50_b_frames.avi": damaged(_as("mpeg4", MPEG4_B), 0.5),
    "damaged_50.mpg": damaged(_as("mpeg1video", MPEG4_B), 0.5),
    "damaged_50.ts": damaged(_as("mpeg2video", MPEG4_B), 0.5, 400),
    "damaged_50.webm": damaged(_as("libvpx-vp9", VP9), 0.5),
}

# What holds no video at all.
NO_VIDEOS: dict[str, Make] = {
    "zero_bytes.mp4": lambda path: path.write_bytes(b""),
    "text.mp4": lambda path: path.write_text("This is a text.\n" * 50),
    "zeros.avi": lambda path: path.write_bytes(bytes(5000)),
    "no_frames.mp4": cut(_as("libx264", H264, muxer={"movflags": "faststart"}), 0.3),
    "no_index.mp4": cut(_as("libx264", H264), 0.5),
    "head_only.avi": cut(_as("mpeg4", MPEG4), 0.05),
    "unknown_codec.mp4": unknown_codec,
    "sound_only.mp4": sound_only,
    "sound_with_cover.mp4": sound_with_cover,
}
