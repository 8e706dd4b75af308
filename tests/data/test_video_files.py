"""Frames by index are the frames of a plain pass through the file, wherever one starts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from surefoot.data.video import FrameFolder, VideoFile, check_image, read_image
from surefoot.errors import DataError

FRAMES = 40


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Brightness and the length of a bar tell the index."""
    image = np.full((height, width, 3), 20 + 5 * index, dtype=np.uint8)
    image[:10, : index + 1] = 255
    return image


def write_video(path: Path, codec: str, frames: int = FRAMES, **options: str) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.options = options
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), "rgb24")))
        container.mux(stream.encode())
    return path


CODECS = {
    "mpeg4": ("mpeg4", {"qmin": "1", "qmax": "2"}),
    "open-gop": ("libx264", {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3"}),
    "closed-gop": ("libx264", {"x264-params": "open-gop=0:keyint=12:min-keyint=12:bframes=3"}),
    "dense-keys": ("libx264", {"x264-params": "open-gop=1:keyint=2:min-keyint=1:bframes=3"}),
}


@pytest.fixture(scope="module", params=CODECS)
def video(request, tmp_path_factory) -> VideoFile:
    path = tmp_path_factory.mktemp("video") / "drone_video.mp4"
    codec, options = CODECS[request.param]
    return VideoFile(write_video(path, codec, **options))


def test_a_video_knows_its_frames_and_their_size(video):
    assert video.count == FRAMES
    assert video.size == (64, 48)


@pytest.fixture(scope="module")
def plain(video) -> list[np.ndarray]:
    """The frames as one pass from the start gives them; no two neighbours are alike."""
    with av.open(video.path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == FRAMES
    assert not any(np.array_equal(a, b) for a, b in pairwise(frames))
    return frames


def test_every_single_frame_is_the_one_of_a_plain_pass(video, plain):
    for index in range(FRAMES):
        (single,) = video.read([index])
        assert np.array_equal(single, plain[index]), index


@pytest.mark.parametrize(
    "order",
    [range(FRAMES), range(FRAMES - 1, -1, -1), [5, 5, 4, 39, 0, 13, 12, 11, 24, 24, 25], []],
    ids=["ascending", "descending", "mixed", "none"],
)
def test_frames_come_in_the_order_asked_for(video, plain, order):
    got = list(video.read(order))
    assert len(got) == len(order)
    for index, frame in zip(order, got, strict=True):
        assert np.array_equal(frame, plain[index]), index


@pytest.mark.parametrize(("order", "most"), [([30], 13), ([0, 38], 16), ([3, 4, 5], 6)])
def test_a_far_frame_costs_the_frames_since_its_key_frame(video, monkeypatch, order, most):
    decoded: list[int] = []

    def counting(self, container, key):
        for index, frame in decode(self, container, key):
            decoded.append(index)
            yield index, frame

    decode = VideoFile._decode_from
    monkeypatch.setattr(VideoFile, "_decode_from", counting)
    assert len(list(video.read(order))) == len(order)
    assert set(order) <= set(decoded)
    assert len(decoded) <= most


def test_a_file_that_is_no_video_is_named(tmp_path):
    path = tmp_path / "drone_video.mp4"
    path.write_bytes(b"this is no video at all" * 100)
    with pytest.raises(DataError, match=r"unreadable video .*drone_video.mp4: .*Replace the file"):
        VideoFile(path)
    with pytest.raises(DataError, match="unreadable video"):
        VideoFile(tmp_path / "absent.mp4")


def test_a_video_cut_short_is_named(tmp_path):
    path = write_video(tmp_path / "drone_video.mp4", "mpeg4")
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"unreadable video .*drone_video.mp4"):
        VideoFile(path)


def test_a_damaged_middle_is_an_error_with_the_frame_and_no_other_frame_instead(tmp_path):
    path = write_video(tmp_path / "drone_video.mp4", "mpeg4")
    whole = path.read_bytes()
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start, end = packets[20].pos, packets[23].pos
    path.write_bytes(whole[:start] + b"\x00" * (end - start) + whole[end:])
    with pytest.raises(DataError, match=r"frame 20 of 40 cannot be decoded|unreadable video"):
        list(VideoFile(path).read([20]))


def test_a_container_without_pictures_is_named(tmp_path):
    path = tmp_path / "drone_video.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        VideoFile(path)


def fill(folder: Path, names: list[str], size: tuple[int, int] = (32, 24)) -> Path:
    folder.mkdir()
    for index, name in enumerate(names):
        Image.fromarray(picture(index, *size)).save(folder / name)
    return folder


def test_images_are_frames_in_the_order_of_their_numbers(tmp_path):
    folder = FrameFolder(fill(tmp_path / "frames", [f"frame_{i}.png" for i in range(1, 13)]))
    assert (folder.count, folder.size) == (12, (32, 24))
    got = [int(np.median(image)) for image in folder.read([9, 0, 11])]
    assert got == [20 + 5 * 9, 20, 20 + 5 * 11]


def test_images_without_numbers_are_frames_in_the_order_of_their_names(tmp_path):
    folder = FrameFolder(fill(tmp_path / "frames", ["a.png", "b.png", "c.png"]))
    assert [int(np.median(image)) for image in folder.read(range(3))] == [20, 25, 30]


def test_a_missing_frame_is_named_by_its_neighbours(tmp_path):
    folder = fill(tmp_path / "frames", ["000.png", "001.png", "003.png"])
    with pytest.raises(DataError, match=r"003\.png follows number 1; expected 2"):
        FrameFolder(folder)


def test_frames_of_two_sizes_are_named(tmp_path):
    folder = fill(tmp_path / "frames", ["0.png", "1.png"])
    Image.fromarray(picture(0, 16, 16)).save(folder / "1.png")
    with pytest.raises(DataError, match=r"frames differ in size: 32x24 \(0.png\), 16x16 \(1.png\)"):
        FrameFolder(folder)


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "frames").mkdir()
    with pytest.raises(DataError, match=r"no images in .*frames; expected 000000\.jpg"):
        FrameFolder(tmp_path / "frames")


def test_an_image_cut_short_is_named_when_checked_and_when_read(tmp_path):
    path = tmp_path / "img_1.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    assert check_image(path) is None
    path.write_bytes(path.read_bytes()[:5000])
    assert "unreadable image" in (check_image(path) or "")
    with pytest.raises(DataError, match=r"unreadable image .*img_1.jpg: .*Replace the file"):
        read_image(path)


def test_photos_are_turned_upright_and_made_rgb(tmp_path):
    path = tmp_path / "img_1.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(3, 64, 32)).save(path, exif=exif)
    assert read_image(path).shape == (64, 32, 3)
    Image.fromarray(picture(3)[..., 0]).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (48, 64, 3)
