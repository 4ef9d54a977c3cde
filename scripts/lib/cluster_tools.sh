# shellcheck shell=bash
# The programs around PostgreSQL in the tests of deploy/: Patroni, etcd, PgBouncer, Prometheus and its kin. Needs tools.sh.

PATRONI_VERSION=4.1.5
PSYCOPG_VERSION=3.3.6
# Of their own dependencies, versions that were published later are ignored.
PATRONI_EXCLUDE_NEWER=2026-10-01

# Prints the folder of patroni and patronictl.
install_patroni() {
    local dir=$TOOLS/patroni version="$PATRONI_VERSION psycopg $PSYCOPG_VERSION until $PATRONI_EXCLUDE_NEWER" uv
    if ! installed "$dir" "$version"; then
        lock patroni
        if ! installed "$dir" "$version"; then
            say "installing Patroni $PATRONI_VERSION"
            uv=$(install_python_tools)/bin/uv
            # A virtual environment cannot be renamed: made in place, marked when complete.
            rm -rf "$dir"
            stage patroni
            logged "create a Python environment for Patroni" "$uv" venv -q --python "$(system_python)" "$dir"
            logged "download Patroni" "$uv" pip install -q --python "$dir/bin/python" --compile-bytecode \
                --exclude-newer "$PATRONI_EXCLUDE_NEWER" \
                "patroni[etcd3]==$PATRONI_VERSION" "psycopg[binary]==$PSYCOPG_VERSION"
            logged "run Patroni" "$dir/bin/patroni" --version
            chmod -R a+rX "$dir"
            printf '%s\n' "$version" >"$dir/.installed"
        fi
    fi
    printf '%s\n' "$dir/bin"
}

# A Python that the user who runs PostgreSQL can run as well, so not one in root's home.
system_python() {
    if is_root; then
        [[ -x /usr/bin/python3 ]] || apt_install python3
        printf '/usr/bin/python3\n'
    else
        have python3 || apt_install python3
        command -v python3
    fi
}

install_etcd() {
    debian_program etcd-server usr/bin/etcd
}

install_pgbouncer() {
    local program
    program=$(debian_program pgbouncer usr/sbin/pgbouncer)
    if ldd "$program" | grep -q 'not found'; then
        apt_install libc-ares2 libevent-2.1-7 libssl3
    fi
    printf '%s\n' "$program"
}

install_prometheus() {
    debian_program prometheus usr/bin/prometheus
}

install_alertmanager() {
    debian_program prometheus-alertmanager usr/bin/prometheus-alertmanager
}

install_node_exporter() {
    debian_program prometheus-node-exporter usr/bin/prometheus-node-exporter
}

# debian_program PACKAGE PATH: a program of a Debian package, unpacked and not installed, so that no
# service is started on this machine. Without apt, it must be on PATH.
debian_program() {
    local package=$1 path=$2 dir=$TOOLS/debian/$1
    if ! have apt-get; then
        command -v "${path##*/}" || die "please install ${path##*/} by hand"
        return
    fi
    if ! installed "$dir" debian; then
        lock "debian-$package"
        if ! installed "$dir" debian; then
            say "downloading the Debian package $package"
            stage "debian-$package"
            if ! download_package "$package" >/dev/null 2>&1; then
                root_run apt-get update -qq >/dev/null 2>&1 || true
                logged "download the Debian package $package" download_package "$package"
            fi
            mkdir "$STAGE/$package"
            logged "unpack $package" dpkg-deb -x "$(echo "$STAGE"/*.deb)" "$STAGE/$package"
            publish "$STAGE/$package" "$dir" debian
        fi
    fi
    printf '%s\n' "$dir/$path"
}

download_package() (
    # As itself: apt's own user may not write here.
    cd "$STAGE" && apt-get download -qq -o APT::Sandbox::User="$(id -un)" "$1"
)
