//! Finding what the catalogue names below one root.

use std::collections::HashSet;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat};
use zeroize::Zeroizing;

use super::material::{self, printable};
use super::view::{View, readable};
use super::{Found, Place, Report};
use crate::bundle::{CredentialKind, Entry, at_homes, catalogue, home_patterns};

/// As much of a file is looked at.
const MOST_BYTES: u64 = 256 * 1024;
/// As deep does `**` go.
const MOST_DEPTH: usize = 16;
/// Homes of one root that are looked at.
const MOST_HOMES: usize = 1_000;
/// Credentials of one root that are told.
const MOST_FOUND: usize = 10_000;
/// Places that have two names, on some systems by a link.
const ALIASES: [(&str, &str); 2] = [("/run/", "/var/run/"), ("/usr/lib/", "/lib/")];

/// One step down.
enum Part {
    Name(String),
    Like(GlobMatcher),
    Any,
}

/// Where files of this entry may be below the view's root; whether one is there is seen when it is looked at.
pub fn locations(view: &View, entry: &Entry) -> Vec<PathBuf> {
    let homes = homes(view);
    let patterns = files(view, entry).flat_map(|pattern| at_homes(pattern, &homes));
    let patterns = patterns.collect::<Vec<_>>();
    let all = patterns.iter().flat_map(|pattern| both(pattern));
    all.flat_map(|pattern| paths(view, &pattern))
        .filter(|path| !is_public(entry, path))
        .collect()
}

fn homes(view: &View) -> Vec<String> {
    let mut homes = home_patterns(&view.homes);
    homes.truncate(MOST_HOMES);
    homes
}

fn files<'a>(view: &View, entry: &'a Entry) -> impl Iterator<Item = &'a String> {
    let own = match view.host {
        true => &entry.host,
        false => &entry.containers,
    };
    entry.paths.iter().chain(own)
}

/// The half of a key that anybody may read.
fn is_public(entry: &Entry, path: &Path) -> bool {
    entry.kind == CredentialKind::PrivateKey && path.extension().is_some_and(|it| it == "pub")
}

/// Adds what is below the view's root.
pub fn search(view: &View, report: &mut Report) {
    let homes = homes(view);
    let mut seen = HashSet::new();
    for entry in catalogue() {
        let files = files(view, entry);
        let files = files.map(|pattern| (pattern, SFlag::S_IFREG));
        let sockets = entry
            .sockets
            .iter()
            .map(|pattern| (pattern, SFlag::S_IFSOCK));
        for (pattern, wanted) in files.chain(sockets) {
            for pattern in at_homes(pattern, &homes).iter().flat_map(|it| both(it)) {
                for path in paths(view, &pattern) {
                    if report.credentials.len() >= MOST_FOUND {
                        report.incomplete.push(format!(
                            "{}: more than {MOST_FOUND} credentials, the rest is not told",
                            view.name
                        ));
                        return;
                    }
                    if let Some(found) = look(view, entry, &path, wanted)
                        && found.file.is_none_or(|file| seen.insert(file))
                    {
                        report.credentials.push(found);
                    }
                }
            }
        }
    }
    if view.is_spent() {
        report.incomplete.push(format!(
            "{}: there are too many files to look at them all",
            view.name
        ));
    }
}

/// A pattern under both names of a place that has two.
fn both(pattern: &str) -> Vec<String> {
    let other = ALIASES.iter().find_map(|(name, other)| {
        let below = pattern.strip_prefix(name)?;
        Some(format!("{other}{below}"))
    });
    std::iter::once(pattern.to_owned()).chain(other).collect()
}

/// What may match a pattern; whether it is there is seen when it is looked at.
fn paths(view: &View, pattern: &str) -> Vec<PathBuf> {
    let parts = pattern.split('/').skip(1).map(|part| match part {
        "**" => Some(Part::Any),
        _ if part.contains(['*', '?', '[']) => {
            let glob = GlobBuilder::new(part).backslash_escape(false).build();
            Some(Part::Like(glob.ok()?.compile_matcher()))
        }
        _ => Some(Part::Name(part.to_owned())),
    });
    let mut found = Vec::new();
    // The catalogue's patterns are good, and homes have been escaped.
    if let Some(parts) = parts.collect::<Option<Vec<_>>>() {
        follow(view, Path::new("/"), &parts, 0, &mut found);
    }
    found
}

fn follow(view: &View, at: &Path, parts: &[Part], depth: usize, found: &mut Vec<PathBuf>) {
    let Some((first, rest)) = parts.split_first() else {
        found.push(at.to_owned());
        return;
    };
    match first {
        Part::Name(name) => follow(view, &at.join(name), rest, depth, found),
        Part::Like(glob) => {
            for (name, _) in view.list(at) {
                if glob.is_match(&name) {
                    follow(view, &at.join(name), rest, depth, found);
                }
            }
        }
        Part::Any => {
            if !rest.is_empty() {
                follow(view, at, rest, depth, found);
            }
            if depth >= MOST_DEPTH {
                return;
            }
            for (name, is_directory) in view.list(at) {
                let below = at.join(name);
                if is_directory {
                    follow(view, &below, parts, depth + 1, found);
                } else if rest.is_empty() {
                    found.push(below);
                }
            }
        }
    }
}

/// What is at a path, if it is a file or socket as `wanted`.
fn look(view: &View, entry: &'static Entry, path: &Path, wanted: SFlag) -> Option<Found> {
    if !view.spend() || is_public(entry, path) {
        return None;
    }
    let opened = view.open(path, OFlag::O_PATH).ok()?;
    let stat = fstat(&opened).ok()?;
    if stat.st_mode & SFlag::S_IFMT.bits() != wanted.bits() {
        return None;
    }
    let place = Place {
        view: view.name.clone(),
        path: printable(&String::from_utf8_lossy(path.as_os_str().as_bytes())),
    };
    let mut found = Found::new(entry, place);
    describe(view, &mut found, &stat, wanted);
    found.acl = has_acl(&opened);
    if wanted == SFlag::S_IFREG {
        match read(&opened) {
            Ok(bytes) => found.items = material::inspect(&bytes),
            Err(error) => found.unread = Some(error.to_string()),
        }
        found.items.extend(material::by_name(path));
    }
    Some(found)
}

fn describe(view: &View, found: &mut Found, stat: &FileStat, wanted: SFlag) {
    let bit = if wanted == SFlag::S_IFSOCK { 2 } else { 4 };
    found.owner = view.names.user(stat.st_uid);
    found.group = view.names.group(stat.st_gid);
    found.mode = format!("{:04o}", stat.st_mode & 0o7777);
    found.modified = Timestamp::from_second(stat.st_mtime).ok();
    found.readers = view.names.with(bit, stat.st_uid, stat.st_gid, stat.st_mode);
    found.file = Some((stat.st_dev, stat.st_ino));
}

fn read(place: &OwnedFd) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_BYTES as usize));
    readable(place)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a POSIX access control list goes beyond the mode.
fn has_acl(place: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}\0", place.as_raw_fd());
    let name = c"system.posix_acl_access";
    // SAFETY: both strings end with NUL, and no buffer is given.
    let size =
        unsafe { libc::getxattr(path.as_ptr().cast(), name.as_ptr(), std::ptr::null_mut(), 0) };
    size > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_on_a_root_is_bounded_and_that_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("vault/secrets");
        std::fs::create_dir_all(&directory).expect("directories");
        for number in 0..50 {
            std::fs::write(directory.join(number.to_string()), "x").expect("written");
        }
        let view = |budget| {
            let name = "host".to_owned();
            let mut view = View::at(root.path(), name, true).expect("a root");
            view.limit(budget);
            let mut report = Report::default();
            search(&view, &mut report);
            report
        };
        let whole = view(100_000);
        assert_eq!((whole.credentials.len(), whole.incomplete.len()), (50, 0));
        let cut = view(100);
        assert!(cut.credentials.len() < 50, "{}", cut.credentials.len());
        assert_eq!(
            cut.incomplete,
            ["host: there are too many files to look at them all"]
        );
    }
}
