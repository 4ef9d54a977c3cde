"""Which zstd level? Speed and ratio of each candidate, on WAL and on table data."""

import json
import subprocess

from measure import median

LEVELS = [-5, -3, -1, 1, 2, 3, 6]
SAMPLE_BYTES = 32 << 20
SAMPLES = 12
ROUNDS = 3


def measure_levels(floor, cluster, work):
    """Rows of data, level, ratio and MB a second of CPU, in each direction."""
    cluster.start()
    cluster.archive_with("/bin/true")
    files = [("WAL", file) for file in cluster.segments()[:SAMPLES]] + [("tables", file) for file in sample_tables(cluster, work)]
    found = {(data, level): [] for data in ("WAL", "tables") for level in LEVELS}
    for _ in range(ROUNDS):
        for data, file in files:
            output = subprocess.run([floor, "levels", file, *map(str, LEVELS)], check=True, capture_output=True)
            for line in output.stdout.splitlines():
                measured = json.loads(line)
                found[data, measured["level"]].append(measured)
    return [summary(data, level, measured) for (data, level), measured in found.items()]


def summary(data, level, measured):
    stored = sum(one["stored"] for one in measured)
    return {
        "data": data,
        "level": level,
        "ratio": sum(one["bytes"] for one in measured) / stored,
        "compress_mb_s": median([one["bytes"] / one["compress_us"] for one in measured]),
        "decompress_mb_s": median([one["bytes"] / one["decompress_us"] for one in measured]),
    }


def sample_tables(cluster, work):
    """Pieces of a base backup's tar stream, taken evenly."""
    command = [f"{cluster.programs}/bin/pg_basebackup", "-Ft", "-D", "-", "-X", "none", "-c", "fast", "--no-manifest"]
    size = int(cluster.sql("select pg_database_size('postgres')"))
    every = max(1, size // SAMPLE_BYTES // SAMPLES)
    files = []
    with subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=work
    ) as backup:
        number = 0
        while piece := backup.stdout.read(SAMPLE_BYTES):
            # Whole pieces only: the last is mostly the small files at the end.
            if number % every == every // 2 and len(piece) == SAMPLE_BYTES:
                files.append(work / f"tables.{number}")
                files[-1].write_bytes(piece)
            number += 1
    return files
