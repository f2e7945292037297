"""A bucket of Google Cloud Storage on this machine, for the clients that real ones have.

It speaks as much of the JSON API as gcsfs, TensorStore and google-cloud-storage use, and is as
strict as an object store may be: names are names, there are no folders; an object is there when all
of it has come; nothing can be appended to, renamed or copied. What it is asked beyond that it
refuses with 501 and noted in ``refused``.

``python -m tests.bucket`` serves one until it is stopped, and prints the environment for it.
"""

import base64
import contextlib
import email
import hashlib
import json
import re
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit


class Bucket(ThreadingHTTPServer):
    """Objects by name, ``{name: (content, generation)}``, served to whoever asks."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name="bucket"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.objects, self.uploads = name, {}, {}
        self.generation, self.lock, self.refused = int(time.time() * 1e6), threading.RLock(), []

    def handle_error(self, request, client_address):
        """A client that has gone, as a killed process has, is no fault."""

    @property
    def env(self):
        """The environment variables by which clients find it, and ask nobody for credentials."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }

    def names(self, prefix=""):
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def read(self, name):
        return self.objects[name][0]

    def put(self, name, content):
        with self.lock:
            self.generation += 1
            self.objects[name] = content, self.generation
            return self.describe(name)

    def describe(self, name):
        content, generation = self.objects[name]
        crc = base64.b64encode(crc32c(content).to_bytes(4, "big")).decode()
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(generation / 1e6))
        return {
            "kind": "storage#object",
            "id": f"{self.name}/{name}/{generation}",
            "bucket": self.name,
            "name": name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "timeCreated": now,
            "updated": now,
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": crc,
            "etag": str(generation),
            "storageClass": "STANDARD",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.path.startswith("/batch"):
            return self.batch(body)
        self.reply(*self.respond(self.command, self.path, self.headers, body))

    def reply(self, status, content=b"", headers=()):
        if isinstance(content, dict):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def batch(self, body):
        """Several requests in one, as multipart/mixed."""
        whole = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body
        parts = []
        for part in email.message_from_bytes(whole).get_payload():
            line = part.get_payload().lstrip().splitlines()[0]
            method, path, _ = line.split(" ", 2)
            status, content, _ = (*self.respond(method, path, {}, b""), b"")[:3]
            content = json.dumps(content) if isinstance(content, dict) else content.decode()
            identity = (part["Content-ID"] or "").replace("<", "<response-")
            parts.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {identity}\r\n\r\n"
                f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(content)}\r\n\r\n{content}\r\n"
            )
        self.reply(
            200,
            ("".join(parts) + "--batch--\r\n").encode(),
            {"Content-Type": "multipart/mixed; boundary=batch"},
        )

    def respond(self, method, path, headers, body):
        """(status, content, headers) of one request."""
        bucket, url = self.server, urlsplit(path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", url.path)
        if not found or (found[3] is None and found[4]):
            return self.refuse(method, path)
        kind, name, objects, rest = found.groups()
        if name != bucket.name:
            return 404, {"error": {"code": 404, "message": "no such bucket"}}
        if not objects:
            return 200, {"kind": "storage#bucket", "name": name, "id": name, "location": "HERE"}
        with bucket.lock:
            if kind == "/upload":
                return self.upload(method, query, headers, body)
            if rest is None:
                return (200, self.listing(query)) if method == "GET" else self.refuse(method, path)
            rest = unquote(rest)
            if method not in ("GET", "DELETE"):  # rewriteTo, copyTo, moveTo, compose
                return self.refuse(method, path)
            if rest not in bucket.objects:
                return 404, {"error": {"code": 404, "message": f"no such object: {rest}"}}
            content, generation = bucket.objects[rest]
            if not self.holds(query, generation):
                return 412, {"error": {"code": 412, "message": "conditionNotMet"}}
            if query.get("ifGenerationNotMatch") == str(generation):
                return 304, b""
            if method == "DELETE":
                del bucket.objects[rest]
                return 204, b""
            if query.get("alt") != "media":
                return 200, bucket.describe(rest)
            return self.media(rest, content, generation, headers)

    def refuse(self, method, path):
        self.server.refused.append(f"{method} {path}")
        return 501, {"error": {"code": 501, "message": f"not in this bucket: {method} {path}"}}

    def holds(self, query, generation):
        return query.get("ifGenerationMatch", str(generation)) == str(generation)

    def media(self, name, content, generation, headers):
        said = self.server.describe(name)
        more = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(generation),
            "x-goog-hash": f"crc32c={said['crc32c']},md5={said['md5Hash']}",
            "ETag": str(generation),
        }
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
        if not span:
            return 200, content, more
        size = len(content)
        first = int(span[1]) if span[1] else max(size - int(span[2]), 0)
        last = min(int(span[2]) if span[1] and span[2] else size - 1, size - 1)
        if first >= size:
            return 416, b"", {"Content-Range": f"bytes */{size}"}
        more["Content-Range"] = f"bytes {first}-{last}/{size}"
        return 206, content[first : last + 1], more

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in self.server.names(prefix):
            if query.get("startOffset", "") > name or name >= query.get("endOffset", "\U0010ffff"):
                continue
            below = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if below[1]:
                prefixes.add(prefix + below[0] + delimiter)
            else:
                items.append(self.server.describe(name))
        found = {"kind": "storage#objects"}
        return found | ({"items": items} if items else {}) | {"prefixes": sorted(prefixes)}

    def upload(self, method, query, headers, body):
        bucket, how = self.server, query.get("uploadType")
        if "upload_id" in query:  # a piece of a resumable one
            name, so_far, query = bucket.uploads[query["upload_id"]]
            span = re.fullmatch(r"bytes (\*|\d+-\d+)/(\*|\d+)", headers["Content-Range"])
            so_far.extend(body)
            if span[2] == "*" or len(so_far) < int(span[2]):
                return 308, b"", {"Range": f"bytes=0-{len(so_far) - 1}"} if so_far else {}
            body = bytes(so_far)
        elif how == "media":
            name = query["name"]
        elif how == "resumable":
            name = query.get("name") or json.loads(body or b"{}")["name"]
            identity = str(len(bucket.uploads))
            bucket.uploads[identity] = name, bytearray(), query
            place = f"http://127.0.0.1:{bucket.server_port}/upload/storage/v1/b/{bucket.name}/o"
            return 200, b"", {"Location": f"{place}?uploadType=resumable&upload_id={identity}"}
        elif how == "multipart":
            mark = re.search(r"boundary=[\"']?([^\"';]+)", headers["Content-Type"])[1].encode()
            pieces = body.split(b"--" + mark)[1:3]
            described, body = (re.split(rb"\r?\n\r?\n", p, maxsplit=1)[1] for p in pieces)
            name, body = json.loads(described)["name"], re.sub(rb"\r?\n$", b"", body, count=1)
        else:
            return self.refuse(method, self.path)
        there = bucket.objects.get(name, (b"", 0))[1]
        if not self.holds(query, there):
            return 412, {"error": {"code": 412, "message": "conditionNotMet"}}
        return 200, bucket.put(name, body)


def crc32c(content):
    try:
        import google_crc32c
    except ImportError:
        return zlib.crc32(content)
    return google_crc32c.value(content)


@contextlib.contextmanager
def serve(name="bucket"):
    """A bucket for as long as the context lasts."""
    with Bucket(name) as bucket:
        thread = threading.Thread(target=bucket.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield bucket
        finally:
            bucket.shutdown()


if __name__ == "__main__":
    with serve() as served:
        print(*(f"export {key}={quote(value, safe=':/')}" for key, value in served.env.items()))
        threading.Event().wait()
