//! What may be done to another process: signals, limits, priorities; to where kernels are configured; and to pins.

use std::{fs, io::Write as _};

use nix::{
    errno::Errno,
    mount::{self, MntFlags, MsFlags},
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::{Done, Words, places::errno, sys};
use crate::bpf;

/// The steps of this file.
pub fn perform(verb: &str, words: &mut Words) -> Option<nix::Result<Done>> {
    let on: fn(Pid, &mut Words) -> nix::Result<()> = match verb {
        "signal" => kill,
        "signal-thread" => signal_thread,
        "signal-queued" => signal_queued,
        "signal-handle" => signal_handle,
        "limit" => limit,
        "nice" => nice,
        "processors" => processors,
        "policy" => policy,
        "io-priority" => io_priority,
        "put" => return Some(put(words)),
        "pin-map" => return Some(words.next().and_then(|path| pin_map(&path))),
        "open-pin" => return Some(words.next().and_then(|path| open_pin(&path))),
        "unlink" => return Some(words.next().and_then(|path| unlink(&path))),
        "rename" => return Some(rename(words)),
        "mount-bpf" => return Some(words.next().and_then(|path| mount_bpf(&path))),
        "unmount" => return Some(words.next().and_then(|path| unmount(&path))),
        _ => return None,
    };
    Some(pid(words).and_then(|pid| on(pid, words).map(|()| Done::default())))
}

fn pid(words: &mut Words) -> nix::Result<Pid> {
    Ok(Pid::from_raw(words.number()? as i32))
}

/// Writes to a file that is there.
fn put(words: &mut Words) -> nix::Result<Done> {
    let (path, text) = (words.next()?, words.next()?);
    let file = fs::File::options().write(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| errno(&error))?;
    Ok(Done::default())
}

/// Makes a map, and pins it.
fn pin_map(path: &str) -> nix::Result<Done> {
    let (map, _) = bpf::new_map().map_err(|_| Errno::EIO)?;
    let pinned = bpf::pin(&map, path);
    pinned.map_err(|error| errno(&error))?;
    Ok(Done::default())
}

fn open_pin(path: &str) -> nix::Result<Done> {
    bpf::open_pin(path).map_err(|error| errno(&error))?;
    Ok(Done::default())
}

fn unlink(path: &str) -> nix::Result<Done> {
    fs::remove_file(path).map_err(|error| errno(&error))?;
    Ok(Done::default())
}

fn rename(words: &mut Words) -> nix::Result<Done> {
    let (from, to) = (words.next()?, words.next()?);
    fs::rename(from, to).map_err(|error| errno(&error))?;
    Ok(Done::default())
}

fn mount_bpf(path: &str) -> nix::Result<Done> {
    let bpf = Some("bpf");
    mount::mount(bpf, path, bpf, MsFlags::empty(), None::<&str>)?;
    Ok(Done::default())
}

fn unmount(path: &str) -> nix::Result<Done> {
    mount::umount2(path, MntFlags::MNT_DETACH)?;
    Ok(Done::default())
}

fn kill(pid: Pid, words: &mut Words) -> nix::Result<()> {
    signal::kill(pid, Signal::try_from(words.number()? as i32)?)
}

fn signal_thread(pid: Pid, words: &mut Words) -> nix::Result<()> {
    let (pid, signal) = (pid.as_raw(), words.number()?);
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, signal) }).map(drop)
}

fn signal_queued(pid: Pid, words: &mut Words) -> nix::Result<()> {
    let value = libc::sigval {
        sival_ptr: std::ptr::null_mut(),
    };
    let signal = words.number()? as i32;
    // SAFETY: the value is a null pointer, and only handed on.
    Errno::result(unsafe { libc::sigqueue(pid.as_raw(), signal, value) }).map(drop)
}

fn signal_handle(pid: Pid, words: &mut Words) -> nix::Result<()> {
    let signal = words.number()?;
    // SAFETY: numbers only.
    let process = sys::owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let process = std::os::fd::AsRawFd::as_raw_fd(&process);
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no information is given.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, info, 0) })
        .map(drop)
}

/// Sets a limit to what it is.
fn limit(pid: Pid, _: &mut Words) -> nix::Result<()> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let (pid, core) = (pid.as_raw(), libc::RLIMIT_CORE);
    // SAFETY: both point to the same live limit, at different times.
    Errno::result(unsafe { libc::prlimit64(pid, core, std::ptr::null(), &raw mut limit) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::prlimit64(pid, core, &raw const limit, std::ptr::null_mut()) })
        .map(drop)
}

fn nice(pid: Pid, _: &mut Words) -> nix::Result<()> {
    let id = pid.as_raw().cast_unsigned();
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, id, 0) }).map(drop)
}

/// To those that it may run on.
fn processors(pid: Pid, _: &mut Words) -> nix::Result<()> {
    let all: CpuSet = sched_getaffinity(pid)?;
    sched_setaffinity(pid, &all)
}

fn policy(pid: Pid, _: &mut Words) -> nix::Result<()> {
    let ordinary = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter lives as long as the call.
    Errno::result(unsafe {
        libc::sched_setscheduler(pid.as_raw(), libc::SCHED_OTHER, &raw const ordinary)
    })
    .map(drop)
}

fn io_priority(pid: Pid, _: &mut Words) -> nix::Result<()> {
    /// `IOPRIO_WHO_PROCESS`.
    const PROCESS: i32 = 1;
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, pid.as_raw(), 0) })
        .map(drop)
}
