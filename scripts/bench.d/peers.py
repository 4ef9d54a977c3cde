"""Getting the peers' programs. None of them is part of walship; the bench runs without them."""

import os
import shutil
import subprocess
import sys

WALRUS = "0.4.1"


def install(folder):
    """Installs what an ordinary package manager has, into `folder`/bin or the system; says what it has not."""
    os.makedirs(folder / "bin", exist_ok=True)
    if not find("pgbackrest", folder):
        as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
        attempt([*as_root, "apt-get", "install", "-y", "--no-install-recommends", "pgbackrest"])
    if not find("walrus", folder):
        # Its lock file may name versions that are gone by now.
        attempt(["cargo", "install", "wal-rus", "--version", WALRUS, "--root", str(folder)])
    if not find("wal-g", folder):
        say(f"wal-g cannot be had by `go install` (its releases are not versions of its Go module): "
            f"put a released program into {folder}/bin or on PATH")  # fmt: skip
    for name in ("pgbackrest", "walrus", "wal-g"):
        say(f"{name}: {find(name, folder) or 'NOT FOUND'}")


def find(name, folder):
    """The program in the cache folder, else on PATH."""
    return shutil.which(name, path=f"{folder}/bin") or shutil.which(name)


def attempt(command):
    say(" ".join(command))
    try:
        done = subprocess.run(command).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        say(f"failed: {' '.join(command)}")


def say(text):
    print(text, file=sys.stderr, flush=True)
