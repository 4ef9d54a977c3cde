"""Gets the peers' programs. None of them is part of walship; the bench runs without them."""

import os
import shutil
import subprocess
import sys

WALRUS = "0.4.1"


def install(folder):
    """Installs programs from package registries, into `folder`/bin or the system; names those that it cannot get.

    wal-g and walg-daemon-client are in no registry: put the programs into `folder`/bin, or on PATH.
    """
    os.makedirs(folder / "bin", exist_ok=True)
    if not find("pgbackrest", folder):
        as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
        attempt([*as_root, "apt-get", "install", "-y", "--no-install-recommends", "pgbackrest"])
    if not find("walrus", folder):
        # Its lock file may name versions that are gone by now.
        attempt(["cargo", "install", "wal-rus", "--version", WALRUS, "--root", str(folder)])
    for name in ("pgbackrest", "walrus", "wal-g"):
        say(f"{name}: {find(name, folder) or 'NOT FOUND'}")


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
