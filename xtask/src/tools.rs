//! Programs from Debian that secrets commonly pass through, that make file systems, start containers and install packages, for
//! guests that try them.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::BufWriter,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt::Apt, cpio::Archive, paths};

const SUITE: &str = "trixie";

/// The programs, and the libraries that they are linked with.
const PACKAGES: &[&str] = &[
    "docker-cli",
    "dpkg",
    "e2fsprogs",
    "git",
    "openssh-client",
    "python3.13-minimal",
    "runc",
    "tar",
    "libpython3.13-minimal",
    "libc6",
    "libacl1",
    "libblkid1",
    "libbz2-1.0",
    "libcom-err2",
    "libexpat1",
    "libext2fs2t64",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "liblzma5",
    "libmd0",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libss2",
    "libssl3t64",
    "libuuid1",
    "libzstd1",
    "zlib1g",
];

/// What of them is left out: every git command once more, and documents.
const LEFT_OUT: &[&str] = &["usr/lib/git-core", "usr/share"];

/// The path of an archive with them.
pub fn archive() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, LEFT_OUT).hash(&mut hasher);
    let archive = paths::cache()?.join(format!("tools-{:016x}.cpio", hasher.finish()));
    if archive.is_file() {
        return Ok(archive);
    }
    let scratch = paths::cache()?.join(format!(".tools-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let result = build(&scratch, &archive);
    // Left over only if it failed; the error of interest is the other one.
    let _ = fs::remove_dir_all(&scratch);
    result.context("cannot make an archive of Debian's programs")?;
    Ok(archive)
}

fn build(scratch: &Path, to: &Path) -> Result<()> {
    let apt = Apt::open(paths::cache()?.join("apt"))?;
    if !apt.is_fresh() {
        apt.update()?;
    }
    let unpacked = scratch.join("unpacked");
    fs::create_dir(&unpacked)?;
    for package in PACKAGES {
        apt.unpack(&format!("{package}/{SUITE}"), &unpacked)?;
    }
    for path in LEFT_OUT {
        let path = unpacked.join(path);
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let whole = scratch.join("archive");
    let mut archive = Archive::new(BufWriter::new(File::create(&whole)?));
    archive.dir("usr", 0o755, 0)?;
    archive.tree("usr", &unpacked.join("usr"))?;
    // Where programs say that their loader is.
    archive.symlink("lib64", "usr/lib64")?;
    archive.finish()?;
    // In one step: another run may be at it, too.
    fs::rename(&whole, to).with_context(|| format!("cannot move it to {}", to.display()))
}
