"""Where archives are kept: a directory, or a local S3 server, near or far; and the requests that the floors send to S3."""

import datetime
import encodings.idna  # noqa: F401: urllib's, loaded while Python's own folder can be read
import hashlib
import hmac
import json
import pathlib
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
import xml.etree.ElementTree

from measure import Failure, as_root

BUCKET = "walship"
# Not every S3 server frees the space of deleted objects: after this many bytes it begins anew.
SERVER_BYTES = 6 << 30
# The server is on this machine, so the environment's proxy is not used.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DirectoryStore:
    """Archives as folders below one."""

    name = "directory"

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def path(self, archive):
        return self.folder / archive

    def make(self, archive):
        self.path(archive).mkdir(parents=True)

    def close(self):
        """Removed with everything else of the run."""

    def bytes(self, archive):
        return sum(file.stat().st_size for file in self._files(archive))

    def discard(self, archive):
        shutil.rmtree(self.path(archive), ignore_errors=True)

    def target(self, _method, archive, name):
        """The place that the minimal client puts to and gets from."""
        return str(self.path(archive) / name)

    def places(self, archive):
        """Name and place of each object."""
        return [(file.name, str(file)) for file in self._files(archive)]

    def _files(self, archive):
        return [file for file in self.path(archive).rglob("*") if file.is_file()]


class S3Server:
    """A throwaway server, which ends with this process."""

    def __init__(self, start_server, kind, folder, environment):
        self.folder, self.kind, self.environment = folder, kind, environment
        self.command = [start_server, kind, "--dir", folder / "server", "--until-stdin-closes", "--port", str(free_port())]
        self.used = 0
        self._start()
        self.certificates = folder / "tls"
        make_certificates(self.certificates)

    def renew(self):
        """Begins anew, empty, once much was stored."""
        if self.used > SERVER_BYTES:
            self.used = 0
            with as_root():
                self.close()
                shutil.rmtree(self.folder / "server", ignore_errors=True)
                self._start()

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def _start(self):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, start_new_session=True
        )
        answer = self.process.stdout.readline()
        if not answer:
            raise Failure(f"the S3 server {self.kind} did not start")
        answer = json.loads(answer)
        self.endpoint, self.access_key, self.secret_key = (
            answer[key] for key in ("endpoint", "access_key", "secret_key")
        )
        self.region = answer.get("region", "us-east-1")


class S3Store:
    """Archives as prefixes in the server's bucket, reached through a proxy that adds to each round trip."""

    def __init__(self, name, server, proxy, milliseconds, scheme):
        self.name, self.server = name, server
        certificate, key = (str(server.certificates / name) for name in ("server.pem", "server.key"))
        port = str(urllib.parse.urlsplit(server.endpoint).port)
        self.proxy = subprocess.Popen(
            [proxy, port, str(milliseconds), certificate, key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.port = int(self.proxy.stdout.readline())
        self.scheme = scheme
        self.endpoint = f"{scheme}://127.0.0.1:{self.port}"
        self.ca_file = server.certificates / "ca.pem"

    def make(self, archive):
        """Nothing to do: the bucket is there, and a prefix need not be made."""

    def bytes(self, archive):
        return sum(self._objects(archive).values())

    def discard(self, archive):
        """Left there: deleting would disturb the server now."""
        self.server.used += self.bytes(archive)
        self.server.renew()

    def target(self, method, archive, name):
        return self.presigned(method, f"{archive}/{name}", host=f"127.0.0.1:{self.port}")

    def places(self, archive):
        return [(key.rpartition("/")[2], self.presigned("GET", key)) for key in self._objects(archive)]

    def close(self):
        self.proxy.stdin.close()
        self.proxy.wait()

    def _objects(self, archive):
        """Keys and sizes."""
        found, token = {}, None
        while True:
            query = {"list-type": "2", "prefix": f"{archive}/", **({"continuation-token": token} if token else {})}
            with OPENER.open(self.presigned("GET", "", query)) as answer:
                page = xml.etree.ElementTree.fromstring(answer.read())
            space = page.tag.removesuffix("ListBucketResult")
            for item in page.iter(f"{space}Contents"):
                found[item.findtext(f"{space}Key")] = int(item.findtext(f"{space}Size"))
            token = page.findtext(f"{space}NextContinuationToken")
            if not token:
                return found

    def presigned(self, method, key, query=(), host=None):
        """A URL that holds its own authority for an hour (AWS Signature Version 4, query form)."""
        server, now = self.server, datetime.datetime.now(datetime.timezone.utc)
        host = host or urllib.parse.urlsplit(server.endpoint).netloc
        path = urllib.parse.quote(f"/{BUCKET}/{key}" if key else f"/{BUCKET}")
        scope = f"{now:%Y%m%d}/{server.region}/s3/aws4_request"
        query = dict(query) | {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{server.access_key}/{scope}",
            "X-Amz-Date": f"{now:%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": "3600",
            "X-Amz-SignedHeaders": "host",
        }
        query = "&".join(f"{quote(key)}={quote(value)}" for key, value in sorted(query.items()))
        request = f"{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now:%Y%m%dT%H%M%SZ}\n{scope}\n{digest}"
        key = f"AWS4{server.secret_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return f"http://{host}{path}?{query}&X-Amz-Signature={key.hex()}"


def make_certificates(folder):
    """An authority and, signed by it, the proxies' certificate."""
    folder.mkdir(parents=True)
    # pgbackrest looks among the names only.
    (folder / "extensions").write_text("subjectAltName = IP:127.0.0.1, DNS:127.0.0.1\n")
    subject = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj"]
    authority = ["-x509", *subject, "/CN=walship bench", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem"]
    for arguments in (
        ["req", *authority],
        ["req", *subject, "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
         "-days", "30", "-extfile", "extensions", "-out", "server.pem"],
    ):  # fmt: skip
        result = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise Failure(f"openssl {arguments[0]} failed: {result.stderr.strip()}")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def quote(text):
    return urllib.parse.quote(text, safe="-_.~")
