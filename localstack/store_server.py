"""One throwaway S3 server on loopback, without containers: LocalStack, SeaweedFS or MinIO.

The commands are start-server and stop-server; this is the code that they share. It needs only Python's
standard library. A server is the leader of its own session, so everything that it starts can be found,
and ended, by that session's number. DIR holds all files of a server: `server.json` (what runs),
`server.log`, `data/`.

Ports are taken at random below the range that the kernel hands out by itself. Each has a lock on
/tmp/walship-ports/PORT, which the server inherits and holds for as long as it lives. The Rust tests
(tests/integration/support/ports.rs) use the same locks.
"""

import datetime
import fcntl
import glob
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

ACCESS_KEY = "walship-test-key"
SECRET_KEY = "walship-test-secret"
REGION = "us-east-1"
BUCKET = "walship"
START_SECONDS = 120
STOP_SECONDS = 10
PORTS = range(20000, 32000)
PORT_LOCKS = "/tmp/walship-ports"
TOOLS = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "tools"


class Failure(Exception):
    """What went wrong, in one line for a person."""


# --- ports ---------------------------------------------------------------------------------


def lease_port(wanted=None):
    """Returns a free loopback port and the descriptor of its lock."""
    os.makedirs(PORT_LOCKS, exist_ok=True)
    try:
        os.chmod(PORT_LOCKS, 0o1777)
    except PermissionError:
        pass  # another user made it
    candidates = [wanted] if wanted else random.sample(PORTS, 500)
    for port in candidates:
        try:
            lock = os.open(f"{PORT_LOCKS}/{port}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            continue  # another user's lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return port, lock
        except OSError:
            os.close(lock)
    raise Failure(f"port {wanted} is in use" if wanted else "no free port on 127.0.0.1")


# --- the servers ---------------------------------------------------------------------------
# Each function: program path, data folder, a function that returns one more free port, the S3
# port -> command line and its own environment.


def localstack(installed, data, more_ports, port):
    # The gateway ignores an IPv4 address and listens on every interface; it honours an IPv6
    # address, and this one is IPv4 loopback.
    environment = {
        "GATEWAY_LISTEN": f"[::ffff:127.0.0.1]:{port}",
        "FILESYSTEM_ROOT": data,
        "OVERRIDE_IN_DOCKER": "0",  # in a container FILESYSTEM_ROOT would be ignored
        "SERVICES": "s3",
        "DNS_ADDRESS": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
    }
    return [f"{installed}/bin/python", "-m", "localstack.runtime.main"], environment


def seaweedfs(installed, data, more_ports, port):
    identities = pathlib.Path(data).parent / "identities.json"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities.write_text(
        json.dumps({"identities": [{"name": "walship", "credentials": credentials, "actions": actions}]})
    )
    command = [installed, "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    # A gRPC port is the plain one + 10000 unless it is given: then two servers may collide.
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={more_ports()}", f"-{part}.port.grpc={more_ports()}"]
    command += [
        "-filer",
        "-s3",
        f"-s3.port={port}",
        f"-s3.port.grpc={more_ports()}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={identities}",
        "-s3.autoCreateBucket=false",  # a PUT to a missing bucket must fail, as on S3
        "-volume.max=300",  # each bucket takes about seven volumes
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
    ]
    return command, {}


def minio(installed, data, more_ports, port):
    environment = {
        "MINIO_ROOT_USER": ACCESS_KEY,
        "MINIO_ROOT_PASSWORD": SECRET_KEY,
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
    }
    return [installed, "server", "--address", f"127.0.0.1:{port}", data], environment


KINDS = {"localstack": localstack, "seaweedfs": seaweedfs, "minio": minio}


# --- one signed request --------------------------------------------------------------------


def request(port, method, path, body=b"", secret=SECRET_KEY):
    """Sends one request signed with AWS Signature Version 4; returns the status."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": f"127.0.0.1:{port}", "x-amz-content-sha256": digest, "x-amz-date": now}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = f"{method}\n{path}\n\n{lines}\n{names}\n{digest}"
    to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in scope.split("/") + [to_sign]:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def is_ready(port):
    """Makes the bucket, and tells whether it is there and an object can be stored in it."""
    try:
        if request(port, "PUT", f"/{BUCKET}") not in (200, 409):
            return False
        if request(port, "PUT", f"/{BUCKET}/start-server", b"probe") != 200:
            return False
        return request(port, "DELETE", f"/{BUCKET}/start-server") == 204
    except (OSError, http.client.HTTPException):
        return False


# --- processes -----------------------------------------------------------------------------


def process_stat(pid):
    """(state, session, start time) of a process, or None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[3]), int(fields[19])


def session_members(session):
    """The living processes of a session."""
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = process_stat(entry)
            if stat and stat[1] == session and (stat[0] not in "ZX" or has_threads(entry)):
                members.append(int(entry))
    return members


def has_threads(pid):
    """Whether a process whose first thread has ended still has other threads (which hold its ports)."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def running(directory):
    """The content of server.json if that server still lives; else None."""
    try:
        server = json.loads((directory / "server.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    stat = process_stat(server["pid"])
    # While a session has members the kernel does not give its number to a new process.
    if stat and stat[2] != server["started"]:
        return None
    return server if session_members(server["pid"]) else None


def end_session(session, patience):
    """Asks every member to end, and kills those that have not after `patience` seconds; returns when all have ended."""
    deadline = time.monotonic() + patience
    asked = False
    while members := session_members(session):
        force = time.monotonic() >= deadline
        if force or not asked:
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL if force else signal.SIGTERM)
                except ProcessLookupError:
                    pass
            asked = True
        time.sleep(0.02)
    try:
        os.waitpid(session, 0)  # it has ended: takes it off the process table
    except ChildProcessError:
        pass  # started by another process


def stop(directory, patience=STOP_SECONDS):
    """Ends the server of `directory`, if there is one; returns whether there was."""
    server = running(directory)
    if server:
        end_session(server["pid"], patience)
        # SeaweedFS makes sockets outside its folder, and leaves them when it is killed.
        for port in server["ports"]:
            for leftover in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
                os.unlink(leftover)
    (directory / "server.json").unlink(missing_ok=True)
    return server is not None


# --- starting ------------------------------------------------------------------------------


def install(kind):
    tools = subprocess.run([TOOLS, kind], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if tools.returncode:
        raise Failure(f"cannot install {kind}: see above")
    return tools.stdout.split("\n")[-2]


def start(kind, directory, port=None):
    """Starts a server in `directory` and waits until it stores objects; returns its description."""
    if running(directory):
        raise Failure(f"a server runs in {directory} already; end it with localstack/stop-server {directory}")
    installed = install(kind)
    leases = [lease_port(port)]
    data = directory / "data"
    temporary = directory / "tmp"
    for folder in (data, temporary):
        folder.mkdir(parents=True, exist_ok=True)

    def more_ports():
        leases.append(lease_port())
        return leases[-1][0]

    port = leases[0][0]
    command, own = KINDS[kind](installed, str(data), more_ports, port)
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(temporary), **own}
    with open(directory / "server.log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock for _, lock in leases],
        )
    for _, lock in leases:
        os.close(lock)
    server = {
        "endpoint": f"http://127.0.0.1:{port}",
        "pid": process.pid,
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "bucket": BUCKET,
        "region": REGION,
        "kind": kind,
        "dir": str(directory),
    }
    started = process_stat(process.pid)[2]
    ports = [leased for leased, _ in leases]
    (directory / "server.json").write_text(json.dumps({**server, "started": started, "ports": ports}))

    deadline = time.monotonic() + START_SECONDS
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise Failure(f"{kind} ended while starting ({log_tail(directory)})")
            if time.monotonic() > deadline:
                raise Failure(f"{kind} did not answer within {START_SECONDS} s ({log_tail(directory)})")
            time.sleep(0.1)
    except BaseException:
        stop(directory, 0)
        raise
    return server


def log_tail(directory):
    lines = (directory / "server.log").read_text(errors="replace").strip().splitlines()
    return f"last words: {lines[-1]}; log: {directory}/server.log" if lines else "it logged nothing"
