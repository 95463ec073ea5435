//! Finds the kernel side's objects, which `cargo xtask build` makes first, and puts them where
//! `include_bytes_aligned!` finds them.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=ENFORCER_EBPF_DIR");
    let directory = std::env::var_os("ENFORCER_EBPF_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/bpfel-unknown-none/release"),
        PathBuf::from,
    );
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from);
    for object in ["enforcer-ebpf", "replay"] {
        let source = directory.join(object);
        println!("cargo::rerun-if-changed={}", source.display());
        let copied = out
            .as_ref()
            .map(|out| std::fs::copy(&source, out.join(object)));
        if !matches!(copied, Some(Ok(_))) {
            println!(
                "cargo::error=no eBPF object at {}; run `cargo xtask build`, or set ENFORCER_EBPF_DIR to where it is",
                source.display()
            );
        }
    }
}
