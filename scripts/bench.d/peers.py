"""Getting the peers' programs. None of them is part of walship; the bench runs without them."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

WALRUS = "0.4.1"
WALG = "3.0.9"
WALG_REPOSITORY = "https://github.com/wal-g/wal-g"
WALG_MODULE = "github.com/wal-g/wal-g"
# What of it is needed. Test data is large, and no part of the program.
WALG_FOLDERS = ["go.mod", "go.sum", "cmd", "internal", "main/pg", "pkg", "utility", "testtools"]
# Encryption by a cloud's key service: nobody encrypts here, and not every module proxy has its module.
WALG_LEFT_OUT = {
    "internal/crypto/yckms": """package yckms
import "github.com/wal-g/wal-g/internal/crypto"
func YcCrypterFromKeyIDAndCredential(_, _ string) crypto.Crypter { panic("left out") }
""",
    "internal/crypto/envelope/enveloper/yckms": """package yckms
import "github.com/wal-g/wal-g/internal/crypto/envelope"
func EnveloperFromKeyIDAndCredential(_, _, _ string) (envelope.Enveloper, error) { panic("left out") }
""",
}


def install(folder):
    """Installs what is missing, into `folder`/bin or the system; says what cannot be had."""
    os.makedirs(folder / "bin", exist_ok=True)
    if not find("pgbackrest", folder):
        as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
        attempt([*as_root, "apt-get", "install", "-y", "--no-install-recommends", "pgbackrest"])
    if not find("walrus", folder):
        # Its lock file may name versions that are gone by now.
        attempt(["cargo", "install", "wal-rus", "--version", WALRUS, "--root", str(folder)])
    if not find("wal-g", folder):
        with tempfile.TemporaryDirectory(prefix="walship-walg-") as source:
            build_walg(pathlib.Path(source), folder / "bin")
    for name in ("pgbackrest", "walrus", "wal-g"):
        say(f"{name}: {find(name, folder) or 'NOT FOUND'}")


def build_walg(source, programs):
    """Builds wal-g and its daemon's client from their tag: its releases are no versions of its Go module.

    Git's `url.<other>.insteadOf` leads to another copy of the repository.
    """
    tag = f"v{WALG}"
    git = ["git", "-C", str(source)]
    fetched = (
        attempt(["git", "clone", "-q", "--no-checkout", "--filter=blob:none", "--depth=1", "--branch", tag,
                 WALG_REPOSITORY, str(source)])
        and attempt([*git, "checkout", "-q", tag, "--", *WALG_FOLDERS, ":(exclude,glob)**/testdata/**"])
    )  # fmt: skip
    if not fetched:
        return
    for package, content in WALG_LEFT_OUT.items():
        for file in (source / package).iterdir():
            file.unlink()
        (source / package / "left_out.go").write_text(content)
    # It uses a part of Go's library that is still an experiment.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOEXPERIMENT": "jsonv2"}
    for package, name in (("./main/pg", "wal-g"), ("./cmd/daemonclient", "walg-daemon-client")):
        version = f"-X {WALG_MODULE}/cmd/pg.walgVersion={tag}"
        attempt(["go", "build", "-ldflags", version, "-o", str(programs / name), package], cwd=source, env=environment)


def find(name, folder):
    """The program in the cache folder, else on PATH."""
    return shutil.which(name, path=f"{folder}/bin") or shutil.which(name)


def attempt(command, **how):
    say(" ".join(command))
    try:
        done = subprocess.run(command, **how).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        say(f"failed: {' '.join(command)}")
    return done


def say(text):
    print(text, file=sys.stderr, flush=True)
