//! Writes `cpio` archives in the "newc" format, which is what kernels unpack at boot.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Parents must be added before what they hold.
pub struct Archive<W> {
    out: W,
    written: usize,
    inode: u32,
}

/// What the header says besides name and size.
#[derive(Default)]
struct Meta {
    mode: u32,
    owner: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a directory.
    pub fn dir(&mut self, name: &str, permissions: u32, owner: u32) -> io::Result<()> {
        let meta = Meta {
            mode: DIRECTORY | permissions,
            owner,
            ..Meta::default()
        };
        self.entry(name, &meta, &[])
    }

    /// Adds a file with the given contents.
    pub fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        let meta = Meta {
            mode: FILE | permissions,
            ..Meta::default()
        };
        self.entry(name, &meta, contents)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        let meta = Meta {
            mode: SYMLINK | 0o777,
            ..Meta::default()
        };
        self.entry(name, &meta, target.as_bytes())
    }

    /// Adds a character device.
    pub fn device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        let meta = Meta {
            mode: CHARACTER_DEVICE | permissions,
            device: (major, minor),
            ..Meta::default()
        };
        self.entry(name, &meta, &[])
    }

    /// Adds what the host's directory `source` holds, below the archive's directory `name`, owned by root.
    pub fn tree(&mut self, name: &str, source: &Path) -> Result<()> {
        let mut entries = fs::read_dir(source)
            .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
            .with_context(|| format!("cannot list {}", source.display()))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            self.host_entry(&name, &path)
                .with_context(|| format!("cannot add {} to the initramfs", path.display()))?;
        }
        Ok(())
    }

    fn host_entry(&mut self, name: &str, path: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(path)?;
        let permissions = metadata.permissions().mode() & 0o7777;
        if metadata.is_dir() {
            self.dir(name, permissions, 0)?;
            self.tree(name, path)?;
        } else if metadata.is_symlink() {
            self.symlink(name, &fs::read_link(path)?.to_string_lossy())?;
        } else if metadata.is_file() {
            self.file(name, permissions, &fs::read(path)?)?;
        }
        Ok(())
    }

    /// Ends the archive and hands back the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", &Meta::default(), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, meta: &Meta, contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len()).map_err(|_| {
            io::Error::other(format!(
                "{name} has {} bytes, a cpio entry holds at most 4 GiB",
                contents.len()
            ))
        })?;
        self.inode += 1;
        let links = if meta.mode & DIRECTORY != 0 { 2 } else { 1 };
        // Times are left zero: the same contents give the same archive.
        let fields = [
            self.inode,
            meta.mode,
            meta.owner,
            meta.owner,
            links,
            0,
            size,
            0,
            0,
            meta.device.0,
            meta.device.1,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(contents)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        self.put(&[0; 3][..self.written.next_multiple_of(4) - self.written])
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.dir("home", 0o750, 1000).expect("dir");
        archive.file("home/odd", 0o640, b"12345").expect("file");
        archive.symlink("link", "home/odd").expect("symlink");
        archive.device("console", 0o600, 5, 1).expect("device");
        archive.finish().expect("finish")
    }

    #[test]
    fn entries_start_on_four_bytes() {
        let bytes = sample();
        let starts: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter_map(|(at, window)| (window == b"070701").then_some(at))
            .collect();
        assert_eq!(starts.len(), 5);
        assert!(starts.iter().all(|start| start % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn cpio_reads_it_back() {
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed: cargo xtask setup");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(&sample())
            .expect("cpio reads");
        let output = child.wait_with_output().expect("cpio ends");
        let list = String::from_utf8(output.stdout).expect("utf-8");
        let lines: Vec<&str> = list.lines().collect();
        assert!(
            lines[0].starts_with("drwxr-x---") && lines[0].contains("1000"),
            "{list}"
        );
        assert!(
            lines[1].starts_with("-rw-r-----") && lines[1].contains(" 5 "),
            "{list}"
        );
        assert!(lines[2].ends_with("link -> home/odd"), "{list}");
        assert!(
            lines[3].starts_with("crw-------") && lines[3].contains("5,   1"),
            "{list}"
        );
    }
}
