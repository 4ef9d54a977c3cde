# shellcheck shell=bash
# Words and small steps that every script here shares. Source it; it runs nothing.
# Results go to stdout; messages for people go to stderr.

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "${0##*/}: $*"
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

is_root() {
    [[ $(id -u) == 0 ]]
}

# root_run COMMAND...: runs it as root, with sudo if needed; fails without a question if it cannot.
root_run() {
    if is_root; then
        "$@"
    elif have sudo; then
        sudo -n "$@"
    else
        return 1
    fi
}

# apt_install PACKAGE...: installs Debian packages, or says which ones a person must install.
apt_install() {
    say "installing Debian packages: $*"
    have apt-get || die "please install these packages by hand: $*"
    if try_apt_install "$@"; then
        return
    fi
    # The package lists may be missing or out of date.
    root_run apt-get update -qq >/dev/null 2>&1 || true
    try_apt_install "$@" || die "cannot install packages; run: sudo apt-get install $*"
}

try_apt_install() {
    root_run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null 2>&1
}

# need_commands COMMAND:PACKAGE...: installs the packages of the commands that are missing.
need_commands() {
    local pair packages=()
    for pair; do
        have "${pair%%:*}" || packages+=("${pair#*:}")
    done
    ((${#packages[@]} == 0)) || apt_install "${packages[@]}"
}

# need_rust: these scripts install everything but a Rust toolchain.
need_rust() {
    have cargo || die "no Rust toolchain found: install one (https://rustup.rs, or your distribution's) and run this again"
    need_commands cc:gcc
}
