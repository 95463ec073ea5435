//! Ways to read what is open already, and odd ways to open.

use std::{
    fs::{self, File},
    io::Read as _,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    ptr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{self, AtFlags, OFlag, SpliceFFlags},
    sys::{
        mman::{self, MapFlags, ProtFlags},
        sendfile,
        stat::{self, Mode},
    },
    unistd,
};
use serde_json::json;

use super::{
    Done, State, Words, files,
    places::errno,
    sys,
    uring::{self, How},
};

const PAGE: usize = 4096;
/// The number of what is kept open over an exec.
const KEPT: i32 = 9;

/// The steps of this file.
pub fn perform(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    let held: Option<fn(&OwnedFd) -> nix::Result<usize>> = match verb {
        "pread-held" => Some(|file| nix::sys::uio::pread(file, &mut [0; PAGE], 0)),
        "sendfile-held" => Some(by_sendfile),
        "splice-held" => Some(by_splice),
        "copy-held" => Some(by_copy),
        "aio-held" => Some(by_aio),
        "uring-held" => Some(|file| uring::read_held(file, How::Inline)),
        "uring-held-async" => Some(|file| uring::read_held(file, How::Worker)),
        "uring-held-fixed" => Some(|file| uring::read_held(file, How::Fixed)),
        "uring-held-sqpoll" => Some(|file| uring::read_held(file, How::Polled)),
        _ => None,
    };
    if let Some(read) = held {
        let file = state.file.as_ref().ok_or(Errno::EBADF);
        return Some(file.and_then(|file| {
            // Each from the start.
            unistd::lseek(file, 0, unistd::Whence::SeekSet)?;
            read(file).map(Done::read)
        }));
    }
    Some(match verb {
        "map-held" => map_held(state),
        "read-map" => state.map.ok_or(Errno::EBADF).map(|address| {
            // SAFETY: `map-held` mapped it, nobody unmaps it, and the file has a byte.
            let byte = unsafe { (address as *const u8).read_volatile() };
            Done::read(usize::from(byte != 0))
        }),
        "keep" => keep(state),
        "take-fd" => words.number().and_then(|fd| {
            state.file = Some(sys::owned(fd)?);
            Ok(Done::default())
        }),
        "open" => words
            .next()
            .and_then(|path| files::open(&path).map(|_| Done::default())),
        "open-close" => words.next().and_then(|path| {
            // Not a byte is read.
            drop(files::open(&path)?);
            Ok(Done::default())
        }),
        "read-nothing" => words.next().and_then(|path| {
            unistd::read(files::open(&path)?, &mut [])?;
            Ok(Done::default())
        }),
        "read-beyond" => words.next().and_then(|path| {
            nix::sys::uio::pread(files::open(&path)?, &mut [0; 8], 1 << 30)?;
            Ok(Done::default())
        }),
        "place" => words.next().and_then(|path| {
            fcntl::open(
                path.as_str(),
                OFlag::O_PATH | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            Ok(Done::default())
        }),
        "stat" => words.next().and_then(|path| {
            let size = stat::stat(path.as_str())?.st_size;
            Ok(Done::read(size as usize))
        }),
        "truncate" => words.next().and_then(|path| {
            unistd::truncate(path.as_str(), 4)?;
            Ok(Done::read(4))
        }),
        "touch-up" => words.next().and_then(|path| {
            // Only its mode: on an overlay this copies it up all the same.
            let mode = Mode::from_bits_retain(0o640);
            stat::fchmodat(
                fcntl::AT_FDCWD,
                path.as_str(),
                mode,
                stat::FchmodatFlags::FollowSymlink,
            )?;
            Ok(Done::default())
        }),
        "read-tree" => words.next().and_then(|path| read_tree(&path)),
        "read-deep" => words.next().and_then(|path| read_deep(&path)),
        "read-odd-name" => words.next().and_then(|path| read_odd_name(&path)),
        "read-flipping" => words.next().and_then(|path| {
            let other = words.next()?;
            read_flipping(&path, &other)
        }),
        "uring-read-sqpoll" => words
            .next()
            .and_then(|path| uring::read(&path, How::Polled)),
        "run" => words.next().and_then(|program| run_program(&program)),
        "swap-on" => words.next().and_then(|path| {
            let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
            // SAFETY: the path ends with NUL.
            Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) })?;
            Ok(Done::default())
        }),
        "load-module" => words.next().and_then(|path| {
            let file = files::open(&path)?;
            // SAFETY: a descriptor, a string that ends with NUL, and a number.
            Errno::result(unsafe {
                libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0)
            })?;
            Ok(Done::default())
        }),
        "loop-held" => words.next().and_then(|device| loop_held(state, &device)),
        "loop-release" => words.next().and_then(|device| {
            let device = files::open(&device)?;
            // SAFETY: no argument.
            Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) })?;
            Ok(Done::default())
        }),
        "read-crowd" => words.next().and_then(|path| {
            let count = words.number()?;
            read_crowd(&path, count)
        }),
        "say" => words.next().and_then(|path| {
            // The way of a log.
            let text = fs::read_to_string(path).map_err(|error| errno(&error))?;
            Ok(Done {
                more: json!({"text": text}),
                ..Done::default()
            })
        }),
        _ => return None,
    })
}

const LOOP_SET_FD: libc::Ioctl = 0x4c00;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;

fn by_sendfile(file: &OwnedFd) -> nix::Result<usize> {
    let (_out, into) = unistd::pipe()?;
    sendfile::sendfile(into, file, None, PAGE)
}

fn by_splice(file: &OwnedFd) -> nix::Result<usize> {
    let (_out, into) = unistd::pipe()?;
    fcntl::splice(file, None, into, None, PAGE, SpliceFFlags::empty())
}

/// Between files of one file system, as newer kernels want it.
fn by_copy(file: &OwnedFd) -> nix::Result<usize> {
    let place = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|error| errno(&error))?;
    let directory = place.parent().ok_or(Errno::EINVAL)?;
    let target = fcntl::open(
        directory,
        OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::S_IRUSR,
    )?;
    fcntl::copy_file_range(file, None, target, None, PAGE)
}

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    rest: [u64; 2],
}

fn by_aio(file: &OwnedFd) -> nix::Result<usize> {
    let mut context: u64 = 0;
    let mut buffer = [0_u8; PAGE];
    let mut request = Iocb {
        fd: file.as_raw_fd().cast_unsigned(),
        buffer: buffer.as_mut_ptr() as u64,
        bytes: PAGE as u64,
        ..Iocb::default()
    };
    let mut requests = [&raw mut request];
    let mut event = [0_i64; 4];
    // SAFETY: request, buffer and event live until the request is done, which is waited for.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_io_setup, 1, &raw mut context))?;
        Errno::result(libc::syscall(
            libc::SYS_io_submit,
            context,
            1,
            requests.as_mut_ptr(),
        ))?;
        Errno::result(libc::syscall(
            libc::SYS_io_getevents,
            context,
            1,
            1,
            event.as_mut_ptr(),
            ptr::null::<u8>(),
        ))?;
    }
    // data, obj, res, res2.
    usize::try_from(event[2]).map_err(|_| Errno::from_raw(-event[2] as i32))
}

fn map_held(state: &mut State) -> nix::Result<Done> {
    let file = state.file.as_ref().ok_or(Errno::EBADF)?;
    // SAFETY: a private, read-only mapping at an address of the kernel's choice touches no other memory.
    let address = unsafe {
        mman::mmap(
            None,
            std::num::NonZeroUsize::MIN,
            ProtFlags::PROT_READ,
            MapFlags::MAP_PRIVATE,
            file,
            0,
        )?
    };
    state.map = Some(address.addr().get());
    Ok(Done::read(1))
}

/// Keeps the held file open over an exec, under a number of its own too, and says the first.
fn keep(state: &State) -> nix::Result<Done> {
    let file = state.file.as_ref().ok_or(Errno::EBADF)?;
    fcntl::fcntl(
        file.as_fd(),
        fcntl::FcntlArg::F_SETFD(fcntl::FdFlag::empty()),
    )?;
    // SAFETY: nothing of ours has this number.
    Errno::result(unsafe { libc::dup2(file.as_raw_fd(), KEPT) })?;
    Ok(Done {
        more: json!({"fd": file.as_raw_fd()}),
        ..Done::default()
    })
}

/// Opens below a copy of the mount that has no place in any tree.
fn read_tree(path: &str) -> nix::Result<Done> {
    let (directory, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
    let directory = std::ffi::CString::new(directory).map_err(|_| Errno::EINVAL)?;
    const OPEN_TREE_CLONE: u32 = 1;
    // SAFETY: the path ends with NUL.
    let tree = sys::owned(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            directory.as_ptr(),
            OPEN_TREE_CLONE | libc::O_CLOEXEC as u32,
        )
    })?;
    let file = fcntl::openat(
        tree,
        name,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    files::take(file).map(Done::read)
}

/// By a hard link so deep that its path is longer than any path may be.
fn read_deep(path: &str) -> nix::Result<Done> {
    let (directory, _) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
    let step = "d".repeat(250);
    let mut at = fcntl::open(directory, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    for _ in 0..20 {
        match stat::mkdirat(&at, step.as_str(), Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
        at = fcntl::openat(
            at,
            step.as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
    }
    match unistd::linkat(fcntl::AT_FDCWD, path, &at, "deep", AtFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error),
    }
    let file = fcntl::openat(
        at,
        "deep",
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    files::take(file).map(Done::read)
}

/// By a hard link whose name is no text.
fn read_odd_name(path: &str) -> nix::Result<Done> {
    let (directory, _) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe\n\"\x1b[31m{}");
    let odd = std::path::Path::new(directory).join(name);
    let _ = fs::remove_file(&odd);
    fs::hard_link(path, &odd).map_err(|error| errno(&error))?;
    let result = File::open(&odd).and_then(|mut file| file.read(&mut [0; PAGE]));
    fs::remove_file(&odd).map_err(|error| errno(&error))?;
    result.map(Done::read).map_err(|error| errno(&error))
}

/// Opens a path that another thread keeps changing, so that what is checked may be another than what is opened.
/// Says how many bytes longer than the other's were read.
/// Two threads come to run at once within this.
const LONG_ENOUGH: Duration = Duration::from_secs(20);

fn read_flipping(path: &str, other: &str) -> nix::Result<Done> {
    if path.len() != other.len() {
        return Err(Errno::EINVAL);
    }
    let shared: &'static [std::sync::atomic::AtomicU8] = Vec::leak(
        path.bytes()
            .chain([0])
            .map(std::sync::atomic::AtomicU8::new)
            .collect(),
    );
    let over = AtomicBool::new(false);
    let (mut read, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for text in [other, path] {
                    for (place, byte) in shared.iter().zip(text.bytes()) {
                        place.store(byte, Ordering::Relaxed);
                    }
                }
            }
        });
        let end = Instant::now() + LONG_ENOUGH;
        let mut tries = 0;
        // Until both threads had their turns.
        while tries < 2000 || read == 0 && refused == 0 && Instant::now() < end {
            tries += 1;
            // SAFETY: the bytes end with NUL whatever the other thread does to those before.
            let fd =
                unsafe { libc::open(shared.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
            match sys::owned(fd) {
                Err(Errno::EPERM) => refused += 1,
                Err(_) => {}
                Ok(file) => {
                    let mut text = [0; 64];
                    let bytes = unistd::read(&file, &mut text).unwrap_or(0);
                    if text[..bytes].windows(6).any(|window| window == b"secret") {
                        read += bytes;
                    }
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    match (read, refused) {
        (0, 1..) => Err(Errno::EPERM),
        _ => Ok(Done::read(read)),
    }
}

/// Many threads open at once. Says `EPERM` if all were refused.
fn read_crowd(path: &str, count: u64) -> nix::Result<Done> {
    let readers: Vec<_> = (0..count)
        .map(|_| {
            let path = path.to_owned();
            thread::spawn(move || files::read(&path))
        })
        .collect();
    let mut read = 0;
    for reader in readers {
        match reader.join().map_err(|_| Errno::ECANCELED)? {
            Ok(done) => read += done.read,
            Err(Errno::EPERM) => {}
            Err(error) => return Err(error),
        }
    }
    if read == 0 {
        return Err(Errno::EPERM);
    }
    Ok(Done::read(read))
}

/// Runs a file as a program, which reads it. The child says that it is there, so that its number is known.
fn run_program(program: &str) -> nix::Result<Done> {
    let program = std::ffi::CString::new(program).map_err(|_| Errno::EINVAL)?;
    // SAFETY: an actor has no other threads, so its child may do anything.
    match unsafe { unistd::fork()? } {
        unistd::ForkResult::Child => {
            super::report("child", Ok(Done::default()));
            let failed = unistd::execv(&program, &[&program]).err();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(failed.map_or(0, |errno| errno as i32)) }
        }
        unistd::ForkResult::Parent { child } => match nix::sys::wait::waitpid(child, None)? {
            nix::sys::wait::WaitStatus::Exited(_, 0) => Ok(Done::read(1)),
            nix::sys::wait::WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
            _ => Err(Errno::ECHILD),
        },
    }
}

/// Makes the held file a disk.
fn loop_held(state: &State, device: &str) -> nix::Result<Done> {
    let file = state.file.as_ref().ok_or(Errno::EBADF)?;
    let device = files::open(device)?;
    // SAFETY: the argument is a descriptor.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) })?;
    Ok(Done::default())
}

/// Reads the file that is held from its beginning.
pub fn read_again(state: &State) -> nix::Result<usize> {
    let file = state.file.as_ref().ok_or(Errno::EBADF)?;
    nix::sys::uio::pread(file, &mut [0; PAGE], 0)
}
