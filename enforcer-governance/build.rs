//! Generates the contract from its definition, without protoc.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["enforcer/governance/v1/governance.proto"], ["proto"])
        .map_err(|error| error.to_string())
        .and_then(|files| {
            tonic_prost_build::configure()
                .bytes(".enforcer.governance.v1.Envelope.payload")
                .compile_fds(files)
                .map_err(|error| error.to_string())
        });
    if let Err(error) = files {
        println!("cargo::error={error}");
    }
}
