//! Finds the kernel side's objects, which `cargo xtask build` makes first, and puts them where
//! `include_bytes_aligned!` finds them; generates the daemon's service and its client of container runtimes from their
//! definitions, without protoc.

use std::path::PathBuf;

fn main() {
    objects();
    if let Err(error) = service() {
        println!("cargo::error={error}");
    }
}

fn objects() {
    println!("cargo::rerun-if-env-changed=ENFORCER_EBPF_DIR");
    // Asked for now: the script itself may have been compiled for another checkout.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from);
    let directory = std::env::var_os("ENFORCER_EBPF_DIR").map_or_else(
        || package.join("../target/ebpf/bpfel-unknown-none/release"),
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

fn service() -> Result<(), String> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["enforcer/v1/enforcer.proto"], ["proto"])
        .map_err(|error| error.to_string())?;
    let mut builder = tonic_prost_build::configure();
    // What the command line prints as JSON and YAML.
    for message in ["Credential", "Workload", "Entitlement", "Holder"] {
        let path = format!("enforcer.v1.{message}");
        builder = builder
            .type_attribute(&path, "#[derive(serde::Serialize)]")
            .type_attribute(&path, "#[serde(rename_all = \"camelCase\")]");
    }
    builder
        .compile_fds(files)
        .map_err(|error| error.to_string())?;
    let runtime =
        protox::compile(["cri/v1.proto"], ["proto"]).map_err(|error| error.to_string())?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(runtime)
        .map_err(|error| error.to_string())
}
