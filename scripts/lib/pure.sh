# shellcheck shell=bash
# shellcheck disable=SC2154 # ROOT is whoever sources this
# The pure part of walship alone, which builds in seconds.

# What of src/pg is not pure, and the dependencies that only the rest of walship needs.
EDGES='base_backup|connection|conninfo|data_directory|tls|tls_verifier|x509'
FOREIGN='aws-|clap|fallible-iterator|indicatif|postgres-protocol|rustix|rustls|tempfile|tokio|toml|tracing'

# copy_pure DIR: a package that holds nothing but src/archive, the formats of src/pg, and fixtures.
copy_pure() {
    local copy=$1
    rm -rf "$copy/src" "$copy/tests"
    mkdir -p "$copy/src/pg" "$copy/tests"
    cp -r "$ROOT/src/archive" "$ROOT/src/error.rs" "$copy/src"
    cp -r "$ROOT/tests/fixtures" "$copy/tests"
    cp -r "$ROOT/src/pg" "$copy/src"
    find "$copy/src/pg" -mindepth 1 -maxdepth 1 | grep -E "/($EDGES)(\.rs)?$" | xargs rm -r
    perl -0pi -e "s/^(pub(\(crate\))? )?(mod|use) ($EDGES)\b[^;]*;\n//mg" "$copy/src/pg/mod.rs"
    mkdir -p "$copy/src/config"
    cp -r "$ROOT/docs" "$copy"
    cp "$ROOT/src/config/byte_size.rs" "$copy/src/config"
    printf '%s\n' '//! The pure part of walship.' 'pub mod archive;' 'pub mod error;' 'pub mod pg;' \
        'pub mod config { mod byte_size; pub use byte_size::ByteSize; }' \
        'pub use error::{Error, ErrorKind, Result};' >"$copy/src/lib.rs"
    {
        grep -vE "^($FOREIGN)" "$ROOT/Cargo.toml"
        printf '%s\n' '[workspace]' '[profile.mutants]' 'inherits = "dev"' 'debug = false'
    } >"$copy/Cargo.toml"
    cp "$ROOT/Cargo.lock" "$copy"
    cp "$ROOT/rust-toolchain.toml" "$copy" 2>/dev/null || true
}
