"""An episode of drone videos with decoded frames on disk, against decoding them from the videos.

    OMP_NUM_THREADS=1 python -m benchmarks.frame_store FOLDER --size 640 --cpu-time
    OMP_NUM_THREADS=1 python -m benchmarks.frame_store FOLDER --enlarge 2 --cpu-time

``FOLDER`` is a data set in the AeroEyes layout. Every round makes one episode, another one in each
round, the same in all ways, without the cache in memory and without augmentation. What building
the stores takes and how large they are is printed first. With ``--enlarge`` the videos are written
anew, so many times as large and with 250 frames between key frames, as recorders write them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import av
from PIL import Image

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from surefoot.data import AeroEyes, EpisodeConfig, FrameStore, VideoEpisodes

RIVAL = "decoded from the videos"


def enlarged(root: Path, folder: Path, times: int) -> Path:
    """The data set with larger videos and few key frames."""
    data = AeroEyes.open(root, cache_mb=0)
    entries = []
    for video in data.videos:
        home = folder / "samples" / video.id
        photos = video.references[0].parent
        shutil.copytree(photos, home / photos.name)
        size = (times * video.size[0], times * video.size[1])
        with av.open(home / "drone_video.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"preset": "veryfast", "x264-params": "keyint=250:min-keyint=250"}
            for picture in video.decode(range(video.frame_count)):
                large = Image.fromarray(picture).resize(size)
                container.mux(stream.encode(av.VideoFrame.from_image(large)))
            container.mux(stream.encode())
        boxes = [
            {"frame": frame, **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
            for frame, rows in video.boxes.items()
            for box in (times * rows).tolist()
        ]
        entries.append({"video_id": video.id, "annotations": [{"bboxes": boxes}]})
    (folder / "annotations").mkdir()
    (folder / "annotations" / "annotations.json").write_text(json.dumps(entries))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=640, help="side of a frame in pixels")
    parser.add_argument("--enlarge", type=int, default=0, help="write the videos anew, larger")
    parser.add_argument("--warmup", type=int, default=1, help="rounds that do not count")
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or 10
    config = EpisodeConfig(image_size=options.size, augment=False, episodes=10_000)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = options.folder
        if options.enlarge:
            root = enlarged(root, Path(folder) / "enlarged", options.enlarge)
        data = AeroEyes.open(root, cache_mb=0)
        stores: dict[str, FrameStore | None] = {RIVAL: None}
        for encoding in ("raw", "jpeg"):
            start = time.process_time()
            store = FrameStore.build(
                folder, data.videos, size=options.size, budget_mb=1e6, encoding=encoding
            )
            print(f"{encoding}: {store}, built in {time.process_time() - start:.1f} s of processor")
            stores[f"from disk, {encoding}"] = store

        def way(store: FrameStore | None) -> Way:
            episodes, numbers = VideoEpisodes(data, config, store=store), count()
            run: Callable[[], object] = lambda: episodes[next(numbers)]  # noqa: E731
            return lambda: None, run

        ways = {name: way(store) for name, store in stores.items()}
        rows = interleave(ways, rival=RIVAL, warmup=options.warmup, **clocked(options))
    title = f"Making an episode of {config.n_way} x {config.n_query} frames of {options.size} px"
    print_table(title, rows, rival=RIVAL)
    save_rows(options.json, title, rows)


if __name__ == "__main__":
    main()
