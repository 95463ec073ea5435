//! The guest's file system: busybox, a few accounts, the kernel's modules, our programs, the command.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{cmd, cpio::Archive, paths};

const INIT: &[u8] = include_bytes!("init.sh");

/// The programs of ours that the guest has on its `PATH`, if they are built.
const PROGRAMS: [&str; 2] = ["enforcer", "enforcer-tests"];

const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/modprobe.d", 0o755),
    ("etc/vm", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("lib/modules", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("share", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/backups", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         backup:x:34:34:backup:/var/backups:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n\
         alice:x:1000:1000:Alice:/home/alice:/bin/sh\n\
         bob:x:1001:1001:Bob:/home/bob:/bin/sh\n",
    ),
    (
        "etc/group",
        "root:x:0:\ntty:x:5:\nbackup:x:34:\nnogroup:x:65534:\nalice:x:1000:\nbob:x:1001:\n",
    ),
    ("etc/hostname", "guest\n"),
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost guest\n::1\tlocalhost guest\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    (
        "etc/os-release",
        "ID=enforcer-guest\nNAME=\"enforcer test guest\"\n",
    ),
    // Otherwise asking for dummy0 loads the module, which makes its own dummy0 first, and the asking fails.
    ("etc/modprobe.d/dummy.conf", "options dummy numdummies=0\n"),
];

/// What differs from guest to guest.
pub struct Contents<'a> {
    /// Archives to begin with: the kernel's modules, and others' programs.
    pub archives: &'a [PathBuf],
    /// Directories whose files come into `/share`.
    pub share: &'a [PathBuf],
    /// The shell script to run.
    pub command: &'a str,
}

/// Writes the initramfs. Kernels unpack several archives one after the other, so others go in as they are.
pub fn write(to: &Path, contents: &Contents<'_>) -> Result<()> {
    let file = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut out = BufWriter::new(file);
    for path in contents.archives {
        let mut archive =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        io::copy(&mut archive, &mut out)
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    let mut archive = Archive::new(out);
    base(&mut archive)?;
    for program in PROGRAMS {
        let path = paths::static_programs().join(program);
        if path.is_file() {
            add(&mut archive, &format!("usr/bin/{program}"), &path)?;
        } else {
            eprintln!("xtask: the guest is without `{program}`: `cargo xtask build` makes it");
        }
    }
    for dir in contents.share {
        archive.tree("share", dir)?;
    }
    archive.file("etc/vm/command", 0o755, contents.command.as_bytes())?;
    archive.finish()?;
    Ok(())
}

fn base(archive: &mut Archive<impl io::Write>) -> Result<()> {
    for (name, permissions) in DIRECTORIES {
        archive.dir(name, *permissions, 0)?;
    }
    for (name, text) in FILES {
        archive.file(name, 0o644, text.as_bytes())?;
    }
    archive.dir("home/alice", 0o700, 1000)?;
    archive.dir("home/bob", 0o700, 1001)?;
    // The kernel opens the console for the first process before anything is mounted.
    archive.device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, INIT)?;
    add(archive, "bin/busybox", &cmd::need("busybox")?)?;
    archive.symlink("bin/sh", "busybox")?;
    Ok(())
}

fn add(archive: &mut Archive<impl io::Write>, name: &str, path: &Path) -> Result<()> {
    let contents = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    archive.file(name, 0o755, &contents)?;
    Ok(())
}
