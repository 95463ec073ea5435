//! Ways into another process, and what it has besides files.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use nix::{
    errno::Errno,
    sys::{ptrace, wait},
    unistd::{self, ForkResult, Pid},
};
use serde_json::json;

use super::{Done, PAYLOAD, State, Words, places::errno, sys};

/// The steps of this file.
pub fn perform(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    let at: fn(Pid, usize) -> nix::Result<usize> = match verb {
        "vm-read" => vm_read,
        "vm-write" => vm_write,
        "mem-read" => mem_read,
        "trace" => trace,
        _ => return other(verb, state, words),
    };
    Some(process(words).and_then(|pid| {
        let address = words.number()? as usize;
        at(pid, address).map(Done::read)
    }))
}

fn other(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    Some(match verb {
        "expose" => Ok(expose()),
        "getfd" => process(words).and_then(|pid| {
            state.file = Some(get_fd(pid, words.number()?)?);
            Ok(Done::default())
        }),
        "dump" => words.next().and_then(|directory| dump(&directory)),
        "perf" => process(words).and_then(perf),
        "hide-in-memory" => hide(),
        _ => return None,
    })
}

fn process(words: &mut Words) -> nix::Result<Pid> {
    Ok(Pid::from_raw(words.number()? as i32))
}

/// Says where in its memory it has something.
fn expose() -> Done {
    let secret: &'static [u8; 32] = Box::leak(Box::new(*PAYLOAD));
    Done {
        more: json!({"address": secret.as_ptr() as u64}),
        ..Done::default()
    }
}

fn slices(buffer: &mut [u8; 32], address: usize) -> (libc::iovec, libc::iovec) {
    let ours = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let theirs = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: buffer.len(),
    };
    (ours, theirs)
}

fn found(buffer: &[u8]) -> usize {
    if PAYLOAD.starts_with(buffer) {
        buffer.len()
    } else {
        0
    }
}

fn vm_read(pid: Pid, address: usize) -> nix::Result<usize> {
    let mut buffer = [0; 32];
    let (ours, theirs) = slices(&mut buffer, address);
    // SAFETY: our side is the buffer; the other is the other process's.
    Errno::result(unsafe {
        libc::process_vm_readv(pid.as_raw(), &raw const ours, 1, &raw const theirs, 1, 0)
    })?;
    Ok(found(&buffer))
}

fn vm_write(pid: Pid, address: usize) -> nix::Result<usize> {
    let mut buffer = *PAYLOAD;
    let (ours, theirs) = slices(&mut buffer, address);
    // SAFETY: our side is the buffer; the other is the other process's.
    let written = Errno::result(unsafe {
        libc::process_vm_writev(pid.as_raw(), &raw const ours, 1, &raw const theirs, 1, 0)
    })?;
    Ok(written.cast_unsigned())
}

fn mem_read(pid: Pid, address: usize) -> nix::Result<usize> {
    let memory = fs::File::open(format!("/proc/{pid}/mem")).map_err(|error| errno(&error))?;
    let mut buffer = [0; 32];
    memory
        .read_exact_at(&mut buffer, address as u64)
        .map_err(|error| errno(&error))?;
    Ok(found(&buffer))
}

fn trace(pid: Pid, address: usize) -> nix::Result<usize> {
    ptrace::attach(pid)?;
    wait::waitpid(pid, None)?;
    let word = ptrace::read(pid, address as ptrace::AddressType)?;
    ptrace::detach(pid, None)?;
    Ok(found(&word.to_ne_bytes()))
}

fn get_fd(pid: Pid, fd: u64) -> nix::Result<std::os::fd::OwnedFd> {
    // SAFETY: numbers only.
    let process = sys::owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let process = std::os::fd::AsRawFd::as_raw_fd(&process);
    // SAFETY: numbers only.
    sys::owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd as i32, 0) })
}

/// A child with all we have in memory dies, and leaves what the kernel writes of it in this directory.
fn dump(directory: &str) -> nix::Result<Done> {
    unistd::chdir(directory)?;
    // SAFETY: an actor has no other threads, so its child may do anything.
    match unsafe { unistd::fork()? } {
        ForkResult::Child => {
            // In the child: the daemon takes the limit of who has read a credential away, at some time after that.
            let raised = nix::sys::resource::setrlimit(
                nix::sys::resource::Resource::RLIMIT_CORE,
                nix::sys::resource::RLIM_INFINITY,
                nix::sys::resource::RLIM_INFINITY,
            );
            super::report("child", raised.map(|()| Done::default()));
            std::process::abort()
        }
        ForkResult::Parent { child } => wait::waitpid(child, None)?,
    };
    let size = Path::new(directory).join("core").metadata();
    match size.map(|metadata| metadata.len()) {
        Ok(bytes @ 1..) => Ok(Done::read(bytes as usize)),
        _ => Err(Errno::EPERM),
    }
}

/// Samples another process's registers.
fn perf(pid: Pid) -> nix::Result<Done> {
    /// `struct perf_event_attr`, its first version and zeroes: a software clock.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 14],
    }
    let attributes = Attributes {
        kind: 1,
        size: size_of::<Attributes>() as u32,
        ..Attributes::default()
    };
    // SAFETY: the attributes are as long as they say.
    sys::owned(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            pid.as_raw(),
            -1,
            -1,
            0,
        )
    })?;
    Ok(Done::read(1))
}

/// Memory that even the kernel does not see, where there is such.
fn hide() -> nix::Result<Done> {
    // SAFETY: numbers only.
    let fd = sys::owned(unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) });
    match fd {
        Ok(_) | Err(Errno::ENOSYS) => Ok(Done::default()),
        Err(error) => Err(error),
    }
}
