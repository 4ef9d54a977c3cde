"""Where archives are kept: a directory, or a local S3 server. Here also what the floors need of S3."""

import datetime
import encodings.idna  # noqa: F401: urllib's, loaded while Python's own folder can be read
import hashlib
import hmac
import json
import pathlib
import shutil
import subprocess
import urllib.parse
import urllib.request
import xml.etree.ElementTree

from measure import Failure

BUCKET = "walship"
# Whatever proxy the environment names, the server is on this machine.
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

    def bytes(self, archive):
        return sum(file.stat().st_size for file in self.path(archive).rglob("*") if file.is_file())

    def remove(self, archive):
        shutil.rmtree(self.path(archive), ignore_errors=True)

    def target(self, _method, archive, name):
        """What the minimal client puts to and gets from."""
        return str(self.path(archive) / name)


class S3Store:
    """Archives as prefixes in the bucket of a throwaway server, which ends with this process."""

    name = "S3"

    def __init__(self, start_server, kind, folder, environment):
        self.kind = kind
        self.server = subprocess.Popen(
            [start_server, kind, "--dir", folder, "--until-stdin-closes"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
        answer = self.server.stdout.readline()
        if not answer:
            raise Failure(f"the S3 server {kind} did not start")
        answer = json.loads(answer)
        self.endpoint, self.access_key, self.secret_key = (
            answer[key] for key in ("endpoint", "access_key", "secret_key")
        )
        self.region = answer.get("region", "us-east-1")

    def make(self, archive):
        pass

    def bytes(self, archive):
        total, token = 0, None
        while True:
            query = {"list-type": "2", "prefix": f"{archive}/", **({"continuation-token": token} if token else {})}
            with OPENER.open(self.presigned("GET", "", query)) as answer:
                page = xml.etree.ElementTree.fromstring(answer.read())
            space = page.tag.removesuffix("ListBucketResult")
            total += sum(int(size.text) for size in page.iter(f"{space}Size"))
            token = page.findtext(f"{space}NextContinuationToken")
            if not token:
                return total

    def remove(self, archive):
        """Left there: the server's folder goes as a whole in the end, and deleting would disturb it now."""

    def target(self, method, archive, name):
        return self.presigned(method, f"{archive}/{name}")

    def close(self):
        self.server.stdin.close()
        self.server.wait()

    def presigned(self, method, key, query=(), now=None):
        """A URL that holds its own authority for an hour (AWS Signature Version 4, query form)."""
        now = now or datetime.datetime.now(datetime.timezone.utc)
        host = urllib.parse.urlsplit(self.endpoint).netloc
        path = urllib.parse.quote(f"/{BUCKET}/{key}" if key else f"/{BUCKET}")
        scope = f"{now:%Y%m%d}/{self.region}/s3/aws4_request"
        query = dict(query) | {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{self.access_key}/{scope}",
            "X-Amz-Date": f"{now:%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": "3600",
            "X-Amz-SignedHeaders": "host",
        }
        query = "&".join(f"{quote(key)}={quote(value)}" for key, value in sorted(query.items()))
        request = f"{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now:%Y%m%dT%H%M%SZ}\n{scope}\n{digest}"
        key = f"AWS4{self.secret_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return f"http://{host}{path}?{query}&X-Amz-Signature={key.hex()}"


def quote(text):
    return urllib.parse.quote(text, safe="-_.~")
