//! A container image with the static program and nothing else: an OCI image layout in a tar archive, written without a
//! registry and without a container engine. The same program makes the same bytes.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{containers, paths, programs};

/// Its name, where it is not pushed to a registry under another.
pub const NAME: &str = "localhost/enforcer";

/// Not in `/usr/bin`: in a pod the host's directories are mounted in their own places, so that the daemon sees the
/// files that the host sees.
const PROGRAM: &str = "enforcer";

/// `cargo xtask image`.
#[derive(clap::Args)]
pub struct Args {
    /// Use the programs as they are, without building them
    #[arg(long)]
    no_build: bool,
    /// Also run it with Debian's containerd and runc, on a socket and in directories of their own (as root)
    #[arg(long)]
    check: bool,
}

/// Makes the image.
pub fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        programs::run()?;
    }
    let image = paths::target().join(format!(
        "package/enforcer-{}-linux-amd64.tar",
        env!("CARGO_PKG_VERSION")
    ));
    if let Some(parent) = image.parent() {
        fs::create_dir_all(parent)?;
    }
    let program = fs::read(paths::built_program("enforcer")?)?;
    write(&image, &program).with_context(|| format!("cannot write {}", image.display()))?;
    println!("{}", image.display());
    if args.check {
        containers::check(&image)?;
    }
    Ok(())
}

/// The name with the version.
pub fn reference() -> String {
    format!("{NAME}:{}", env!("CARGO_PKG_VERSION"))
}

fn write(image: &Path, program: &[u8]) -> Result<()> {
    let layer = layer(program)?;
    let mut packed = GzBuilder::new().write(Vec::new(), Compression::default());
    packed.write_all(&layer)?;
    let packed = packed.finish()?;
    let created = rfc3339(&programs::committed_at());
    let config = json!({
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{PROGRAM}")],
            "Cmd": ["run"],
            "Labels": {
                "org.opencontainers.image.title": "enforcer",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
    })
    .to_string();
    let mut entry = descriptor(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
    entry["annotations"] = json!({
        "io.containerd.image.name": reference(),
        "org.opencontainers.image.ref.name": env!("CARGO_PKG_VERSION"),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });

    let mut archive = Builder::new(File::create(image)?);
    add(
        &mut archive,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    add(
        &mut archive,
        "index.json",
        0o644,
        index.to_string().as_bytes(),
    )?;
    for blob in [config.as_bytes(), manifest.as_bytes(), &packed] {
        let name = format!("blobs/{}", digest(blob).replace(':', "/"));
        add(&mut archive, &name, 0o644, blob)?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(())
}

/// The file system.
fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for directory in ["etc/", "run/", "var/", "var/lib/", "var/log/"] {
        let mut header = header(0o755, 0);
        header.set_entry_type(EntryType::Directory);
        layer.append_data(&mut header, directory, &[][..])?;
    }
    add(
        &mut layer,
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/:/enforcer\n",
    )?;
    add(&mut layer, PROGRAM, 0o755, program)?;
    Ok(layer.into_inner()?)
}

fn add<W: Write>(archive: &mut Builder<W>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    archive.append_data(&mut header(mode, bytes.len()), name, bytes)?;
    Ok(())
}

/// Of root, and of no time: when it was built is nobody's concern.
fn header(mode: u32, bytes: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_size(bytes as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = (Sha256::digest(bytes).iter())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// Seconds since 1970 as the image format wants them.
fn rfc3339(seconds: &str) -> String {
    let seconds = seconds.parse().unwrap_or_default();
    jiff::Timestamp::from_second(seconds)
        .unwrap_or_default()
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().expect("an archive");
        entries
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).expect("read");
                (entry.path().expect("a path").display().to_string(), bytes)
            })
            .collect()
    }

    #[test]
    fn every_digest_is_that_of_its_blob_and_the_bytes_are_always_the_same() {
        let directory = std::env::temp_dir().join(format!("enforcer-image-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("made");
        let (one, two) = (directory.join("one.tar"), directory.join("two.tar"));
        write(&one, b"a program").expect("written");
        write(&two, b"a program").expect("written");
        let bytes = fs::read(&one).expect("read");
        assert_eq!(bytes, fs::read(&two).expect("read"));
        fs::remove_dir_all(&directory).expect("removed");

        let members = members(&bytes);
        let blob = |descriptor: &Value| -> Vec<u8> {
            let digest = descriptor["digest"].as_str().expect("a digest");
            let name = format!("blobs/{}", digest.replace(':', "/"));
            let (_, bytes) = members.iter().find(|(it, _)| *it == name).expect(&name);
            assert_eq!(digest, super::digest(bytes));
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("JSON") };
        let (_, index) = members
            .iter()
            .find(|(it, _)| it == "index.json")
            .expect("an index");
        let manifest = json(&blob(&json(index)["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        let mut layer = Vec::new();
        let packed = blob(&manifest["layers"][0]);
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut layer)
            .expect("unpacked");
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let files = self::members(&layer);
        assert!(files.contains(&("enforcer".to_owned(), b"a program".to_vec())));
    }
}
