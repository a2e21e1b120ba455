import hashlib
import io
import tarfile
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from krt_core.data import download
from krt_core.data.download import Archive, fetch, get, unpack
from krt_core.errors import DataError


class Handler(BaseHTTPRequestHandler):
    """Serves one file with ranges; may cut the first answers short."""

    def __init__(self, world, *args):
        self.world = world
        super().__init__(*args)

    def do_GET(self):
        body, start = self.world["body"], 0
        self.world["ranges"].append(self.headers.get("Range"))
        if self.path == "/missing":
            return self.send_error(404)
        if (wanted := self.headers.get("Range")) and self.world.get("resumable", True):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = self.world["cuts"].pop(0) if self.world["cuts"] else len(body)
        self.wfile.write(body[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    world = {"body": bytes(range(256)) * 400, "cuts": [], "ranges": []}
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, world))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    world["url"] = f"http://127.0.0.1:{http.server_port}"
    yield world
    http.shutdown()
    http.server_close()


def md5(body):
    return "md5:" + hashlib.md5(body).hexdigest()


def test_a_cut_transfer_goes_on_where_it_stopped(server, tmp_path):
    server["cuts"] = [30_000, 70_000]
    seen = []
    archive = Archive(server["url"] + "/a.bin", md5(server["body"]))
    path = fetch(archive, tmp_path / "a.bin", lambda *a: seen.append(a), pause=0)
    assert path.read_bytes() == server["body"]
    assert server["ranges"] == [None, "bytes=30000-", "bytes=70000-"]
    assert seen[-1] == ("a.bin", len(server["body"]), len(server["body"]))
    assert fetch(archive, path) == path and len(server["ranges"]) == 3  # there already: not asked again


def test_a_later_start_uses_the_part(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(server["body"][:50_000])
    fetch(Archive(server["url"] + "/a.bin", md5(server["body"])), tmp_path / "a.bin")
    assert server["ranges"] == ["bytes=50000-"]
    server["resumable"] = False  # such a server sends everything again
    (tmp_path / "b.bin.part").write_bytes(b"x" * 10)
    assert fetch(Archive(server["url"] + "/b.bin"), tmp_path / "b.bin").read_bytes() == server["body"]


def test_giving_up_keeps_the_part_and_says_so(server, tmp_path):
    server["cuts"] = [10_000, 10_001, 10_002]
    with pytest.raises(DataError, match=r"10,002 bytes are kept; repeat"):
        fetch(Archive(server["url"] + "/a.bin"), tmp_path / "a.bin", tries=3, pause=0)
    assert (tmp_path / "a.bin.part").stat().st_size == 10_002


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=r"a\.bin does not have the checksum"):
        fetch(Archive(server["url"] + "/a.bin", md5(b"other")), tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_a_full_disk_are_said_at_once(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        fetch(Archive(server["url"] + "/missing"), tmp_path / "a.bin", pause=0)
    assert len(server["ranges"]) == 1
    with pytest.raises(DataError, match="GB free"):
        fetch(Archive(server["url"] + "/a.bin", size=10**18), tmp_path / "a.bin")


def tar_of(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            if kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(kind)
                archive.addfile(info, io.BytesIO(kind))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "ok/../../evil.txt", "C:/evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_hostile_paths_are_refused_before_anything_is_written(tmp_path, name, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        path.write_bytes(tar_of(("fine.txt", b"1"), (name, b"2")))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("fine.txt", "1")
            archive.writestr(name, "2")
    with pytest.raises(DataError, match="outside the data folder"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_links_are_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(("x", "link")))
    with pytest.raises(DataError, match="link or device"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_broken_archive_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(("x", b"1" * 5000))[:700])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_getting_a_whole_set_merges_archives_and_is_done_once(server, tmp_path):
    server["body"] = tar_of(("VOCdevkit/VOC2007/JPEGImages/1.jpg", b"1"))
    one = Archive(server["url"] + "/one.tar", md5(server["body"]))
    get("voc2007", tmp_path / "voc", archives=(one,))
    server["body"] = tar_of(("VOCdevkit/VOC2007/JPEGImages/2.jpg", b"2"))
    two = Archive(server["url"] + "/two.tar", md5(server["body"]))
    get("voc2007", tmp_path / "voc", archives=(one, two))
    assert sorted(p.name for p in (tmp_path / "voc").rglob("*.jpg")) == ["1.jpg", "2.jpg"]
    assert len(server["ranges"]) == 2
    assert not list((tmp_path / "voc").glob("*.tar"))


def test_the_published_archives_are_listed_with_checksums():
    assert {a.url.rsplit("/", 1)[1] for a in download.ARCHIVES["coco2014"]} == {
        "train2014.zip", "val2014.zip", "annotations_trainval2014.zip"}  # fmt: skip
    assert all(a.digest.startswith("md5:") and a.size for group in download.ARCHIVES.values() for a in group)
