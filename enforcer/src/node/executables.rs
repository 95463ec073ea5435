//! Executables that workloads are selected by.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::Ebpf;
use enforcer_common::ids::ExecutableKey;
use sha2::{Digest, Sha256};

use nix::fcntl::OFlag;

use crate::bundle::{Bundle, Executable, Match};
use crate::credentials::View;
use crate::kernel::capture::capture;

/// How often a file that changes while it is read is read again.
const TRIES: u32 = 3;

/// The keys of each executable selector; an empty list where there is no such file, or another content.
pub type Executables = BTreeMap<Executable, Vec<ExecutableKey>>;

/// Every executable of the host that the bundle selects by.
pub fn selected(bundle: &Bundle) -> BTreeSet<Executable> {
    let on_host = |it: &&Match| !it.is_about_containers();
    let programs = bundle.selectors().filter(on_host);
    let programs = programs.filter_map(|it| it.executable.as_ref());
    let ancestors = bundle.selectors().filter_map(|it| it.ancestor.as_ref());
    programs.chain(ancestors).cloned().collect()
}

/// Looks at every selected executable as it is now.
pub fn look(ebpf: &mut Ebpf, bundle: &Bundle) -> Executables {
    let look = |program: Executable| {
        let keys = at(ebpf, &program, &program.path);
        (program, keys)
    };
    selected(bundle).into_iter().map(look).collect()
}

/// Looks at an executable in a container; an empty list where there is no such file, or another content.
pub fn look_inside(ebpf: &mut Ebpf, container: &View, program: &Executable) -> Vec<ExecutableKey> {
    match container.open(&program.path, OFlag::O_PATH) {
        Ok(file) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            at(ebpf, program, Path::new(&path))
        }
        Err(error) => {
            tracing::warn!(container = container.name, path = %program.path.display(), %error, "an executable of the bundle is not in this container");
            Vec::new()
        }
    }
}

/// The keys of the program, which is found at `path`.
fn at(ebpf: &mut Ebpf, program: &Executable, path: &Path) -> Vec<ExecutableKey> {
    let keys = (0..TRIES).find_map(|_| key_of(ebpf, program, path));
    keys.unwrap_or_default()
}

/// The file's keys; `None` to try again, because it changed while it was read.
fn key_of(ebpf: &mut Ebpf, program: &Executable, path: &Path) -> Option<Vec<ExecutableKey>> {
    let (keys, file) = match capture(ebpf, path) {
        Ok(captured) => captured,
        Err(error) => {
            tracing::warn!(error = %crate::chain(&error), "an executable of the bundle is not here: its workloads match nothing");
            return Some(Vec::new());
        }
    };
    if program.sha256.is_none() && program.fs_verity.is_none() {
        return Some(keys);
    }
    let is = match is(program, file) {
        Ok(is) => is,
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
    if !is {
        tracing::warn!(path = %path.display(), "an executable of the bundle has another SHA-256 or fs-verity digest: its workloads match nothing");
        return Some(Vec::new());
    }
    Some(keys)
}

/// Whether the file has the content that is asked for.
fn is(program: &Executable, file: File) -> io::Result<bool> {
    if let Some(expected) = program.fs_verity
        && verity(&file)? != Some(expected)
    {
        return Ok(false);
    }
    match program.sha256 {
        Some(expected) => Ok(digest(file)? == expected),
        None => Ok(true),
    }
}

/// The digest by which the kernel checks what it reads of the file; `None` if it does not, or with another hash.
fn verity(file: &File) -> io::Result<Option<[u8; 32]>> {
    /// `struct fsverity_digest`, with room.
    #[repr(C)]
    struct Digest {
        algorithm: u16,
        size: u16,
        bytes: [u8; 32],
    }
    /// `FS_IOC_MEASURE_VERITY`.
    const MEASURE: libc::Ioctl = 0xc004_6686_u32 as libc::Ioctl;
    /// `FS_VERITY_HASH_ALG_SHA256`.
    const SHA256: u16 = 1;
    let mut digest = Digest {
        algorithm: 0,
        size: 32,
        bytes: [0; 32],
    };
    // SAFETY: writes what the struct has room for, as it says itself.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), MEASURE, &raw mut digest) };
    if result == 0 {
        return Ok((digest.algorithm == SHA256).then_some(digest.bytes));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // It is not checked, by a longer hash, or the file system or kernel has none of this.
        Some(libc::ENODATA | libc::EOVERFLOW | libc::ENOTTY | libc::EOPNOTSUPP) => Ok(None),
        _ => Err(error),
    }
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
