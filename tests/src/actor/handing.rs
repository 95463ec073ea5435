//! Ways to hand something on: from standard input to standard output, and into files.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Write as _},
    os::fd::AsFd as _,
};

use nix::{
    fcntl::{self, SpliceFFlags},
    sys::mman::{self, MapFlags, ProtFlags},
    unistd,
};

use super::{Done, PAYLOAD, Words, files, places::errno};

/// The steps of this file.
pub fn perform(verb: &str, words: &mut Words) -> Option<nix::Result<Done>> {
    let path: fn(&str) -> nix::Result<()> = match verb {
        "cat" => cat,
        "splice-on" => return Some(splice_on()),
        "tee-on" => return Some(tee_on()),
        "splice-file" => {
            return Some(
                words
                    .next()
                    .and_then(|from| splice_file(&from, &words.next()?)),
            );
        }
        "vmsplice-on" => vmsplice_on,
        "map-file" => map_file,
        "write-renamed" => write_renamed,
        _ => return None,
    };
    Some(
        words
            .next()
            .and_then(|it| path(&it).map(|()| Done::default())),
    )
}

const MUCH: usize = 4096;

/// Prints the file and nothing else, and ends: what it says is for the next one.
fn cat(path: &str) -> nix::Result<()> {
    let printed = fs::read(path).and_then(|bytes| io::stdout().write_all(&bytes));
    let printed = printed.and_then(|()| io::stdout().flush());
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(i32::from(printed.is_err())) }
}

fn splice_on() -> nix::Result<Done> {
    let (from, to) = (io::stdin(), io::stdout());
    let flags = SpliceFFlags::empty();
    fcntl::splice(from.as_fd(), None, to.as_fd(), None, MUCH, flags).map(|_| Done::default())
}

fn tee_on() -> nix::Result<Done> {
    fcntl::tee(
        io::stdin().as_fd(),
        io::stdout().as_fd(),
        MUCH,
        SpliceFFlags::empty(),
    )
    .map(|_| Done::default())
}

/// Reads the file, and lends memory to the pipe that standard output is. What is said after that goes nowhere.
fn vmsplice_on(path: &str) -> nix::Result<()> {
    files::read(path)?;
    let out = io::stdout();
    fcntl::vmsplice(out.as_fd(), &[IoSlice::new(PAYLOAD)], SpliceFFlags::empty())?;
    let nowhere = File::options().write(true).open("/dev/null");
    let nowhere = nowhere.map_err(|error| errno(&error))?;
    unistd::dup2_stdout(nowhere)
}

/// From file to file, by a pipe.
fn splice_file(from: &str, to: &str) -> nix::Result<Done> {
    let open = |file: io::Result<File>| file.map_err(|error| errno(&error));
    let from = open(File::open(from))?;
    let to = open(File::options().write(true).open(to))?;
    let (out, into) = unistd::pipe()?;
    let flags = SpliceFFlags::empty();
    let bytes = fcntl::splice(from, None, into, None, MUCH, flags)?;
    fcntl::splice(out, None, to, None, bytes, flags).map(|_| Done::default())
}

/// By a mapping of a file that is long enough.
fn map_file(path: &str) -> nix::Result<()> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.map_err(|error| errno(&error))?;
    let length = PAYLOAD
        .len()
        .try_into()
        .map_err(|_| nix::errno::Errno::EINVAL)?;
    // SAFETY: a mapping of a file that nobody shortens, unmapped at the end of the process.
    let address = unsafe {
        mman::mmap(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
            &file,
            0,
        )
    }?;
    // SAFETY: the mapping is as long.
    unsafe {
        address
            .as_ptr()
            .cast::<u8>()
            .copy_from(PAYLOAD.as_ptr(), PAYLOAD.len())
    };
    Ok(())
}

/// Beside it, and then in its place.
fn write_renamed(path: &str) -> nix::Result<()> {
    let new = format!("{path}.new");
    let written = File::create(&new).and_then(|mut file| file.write_all(PAYLOAD));
    let renamed = written.and_then(|()| fs::rename(&new, path));
    renamed.map_err(|error| errno(&error))
}
