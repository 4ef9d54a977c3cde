//! Links the program to a fixed address on Linux with the GNU C library. Else each start would first copy and fill
//! in every page with a pointer on it, of which the S3 client has many, and PostgreSQL starts walship for each segment.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what: &str| std::env::var(format!("CARGO_CFG_{what}")).unwrap_or_default();
    // A static program is linked in another way, which this would spoil.
    let is_static = target("TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "crt-static");
    if target("TARGET_OS") == "linux" && target("TARGET_ENV") == "gnu" && !is_static {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
