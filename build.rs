//! Links the program, on Linux with the GNU C library, with its relocations in their packed form (`DT_RELR`, which the
//! library knows since 2.36). They are many, for the S3 client's tables, and each start has to go through them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what: &str| std::env::var(format!("CARGO_CFG_{what}")).unwrap_or_default();
    if target("TARGET_OS") == "linux" && target("TARGET_ENV") == "gnu" {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
