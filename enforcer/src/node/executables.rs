//! Executables that workloads are selected by.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use aya::Ebpf;
use enforcer_common::ids::ExecutableKey;
use sha2::{Digest, Sha256};

use crate::bundle::{Bundle, Executable};
use crate::kernel::capture::capture;

/// How often a file that changes while it is read is read again.
const TRIES: u32 = 3;

/// The keys of each executable selector; an empty list where there is no such file, or another content.
pub type Executables = BTreeMap<(PathBuf, Option<[u8; 32]>), Vec<ExecutableKey>>;

/// Every executable that the bundle selects by.
pub fn selected(bundle: &Bundle) -> BTreeSet<(PathBuf, Option<[u8; 32]>)> {
    bundle
        .selectors()
        .filter_map(|selectors| selectors.executable.as_ref())
        .map(|Executable { path, sha256 }| (path.clone(), *sha256))
        .collect()
}

/// Looks at every selected executable as it is now.
pub fn look(ebpf: &mut Ebpf, bundle: &Bundle) -> Executables {
    selected(bundle)
        .into_iter()
        .map(|(path, sha256)| {
            let keys = (0..TRIES)
                .find_map(|_| key_of(ebpf, &path, sha256))
                .unwrap_or_default();
            ((path, sha256), keys)
        })
        .collect()
}

/// The file's keys; `None` to try again, because it changed while it was read.
fn key_of(
    ebpf: &mut Ebpf,
    path: &std::path::Path,
    sha256: Option<[u8; 32]>,
) -> Option<Vec<ExecutableKey>> {
    let (keys, file) = match capture(ebpf, path) {
        Ok(captured) => captured,
        Err(error) => {
            tracing::warn!(error = %crate::chain(&error), "an executable of the bundle is not here: its workloads match nothing");
            return Some(Vec::new());
        }
    };
    let Some(expected) = sha256 else {
        return Some(keys);
    };
    let got = match digest(file) {
        Ok(got) => got,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "an executable of the bundle cannot be read: its workloads match nothing");
            return Some(Vec::new());
        }
    };
    // The key has the change time: if it is the same after reading, that was the content throughout.
    let (after, _) = capture(ebpf, path).ok()?;
    if after != keys {
        return None;
    }
    if got != expected {
        tracing::warn!(path = %path.display(), "an executable of the bundle has another SHA-256: its workloads match nothing");
        return Some(Vec::new());
    }
    Some(keys)
}

fn digest(mut file: File) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}
