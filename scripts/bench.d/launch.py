"""Runs commands one after the other for measure.py and reports what each cost.

A process of its own, and a small one: Linux counts the memory of whoever forks into the peak of
what it starts, so nothing measured here can show less than this interpreter's 9 MiB.

A request is one line: working directory, program, arguments, environment, output file, fields by
NUL and items by SOH. First the answer says the process's id, when it ended: exit status, wall,
user and system seconds, peak KiB.

Arguments: the user and group to run as. (The interpreter may be where only root can read it.)
"""

import os
import resource  # noqa: F401: what os.wait4 needs, while its folder can be read
import sys
import time


def main():
    if os.getuid() == 0:
        user, group = map(int, sys.argv[1:])
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    for line in sys.stdin:
        directory, program, arguments, environment, output = line.rstrip("\n").split("\0")
        os.chdir(directory)
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        environment = dict(item.split("=", 1) for item in environment.split("\1"))
        started = time.monotonic()
        process = os.posix_spawn(program, arguments.split("\1"), environment, file_actions=streams, setpgroup=0)
        print(process, flush=True)
        _, status, usage = os.wait4(process, 0)
        wall = time.monotonic() - started
        print(os.waitstatus_to_exitcode(status), wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss, flush=True)


main()
