"""Small shards, by our own writer and by others, and servers that misbehave."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.arrays import InMemory
from sfumato.data.shards.fetch import Fetch
from sfumato.data.shards.pack import Packing, ShardWriter

QUICK = Fetch(timeout=0.5, tries=3, pause=0.01)


def stack(count: int = 53, shape: tuple[int, ...] = (5, 4, 3)) -> np.ndarray:
    """Images [N, H, W, C], image i recognisable by its first value."""
    array = np.random.default_rng(5).integers(0, 256, (count, *shape), np.uint8)
    array.reshape(count, -1)[:, 0] = np.arange(count)
    return array


def packed(folder: Path, count: int = 53, each: int = 10, **options) -> Path:
    """`count` labelled images in shards of `each`, in their own order unless told other."""
    images = InMemory(stack(count), np.arange(count) % 4, layout="NHWC")
    packing = Packing(most_images=each, **{"shuffle": False, **options})
    assert sum(ShardWriter(images, folder, packing).write()) == count
    return folder


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without ranges; notes what it was asked for, and misbehaves as told."""

    def do_GET(self) -> None:
        server = self.server
        name = self.path.rpartition("/")[2].partition("?")[0]
        server.asked.append((name, self.headers.get("Range")))
        trouble = server.trouble.get(name, [])
        what = trouble.pop(0) if trouble else None
        if what is None:
            super().do_GET()
            return
        if isinstance(what, int):
            self.send_error(what)
            return
        data = (Path(self.directory) / name).read_bytes()
        if what == "stall":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:1000])
            self.wfile.flush()
            time.sleep(1.0)
            return
        start = 0
        if what == "range" and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:] if what == "range" else data[: len(data) // 2])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path, **trouble: list[object]) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """A folder behind http://127.0.0.1:PORT/; trouble: what goes wrong, file by file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    server.asked = []
    server.trouble = {f"shard-{key[1:]}.tar": list(what) for key, what in trouble.items()}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
