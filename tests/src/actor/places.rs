//! Who and where an actor is.

use std::{
    ffi::CString,
    fs, io,
    io::Read as _,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{self, MsFlags},
    sched::{self, CloneFlags},
    sys::prctl,
    unistd::{self, Gid, Uid},
};

use super::{Done, Words};

/// The rarer steps of this file.
pub fn perform(verb: &str, words: &mut Words) -> Option<nix::Result<Done>> {
    Some(match verb {
        "chroot" => words.next().and_then(|place| {
            unistd::chroot(place.as_str())?;
            unistd::chdir("/")?;
            Ok(Done::default())
        }),
        "user-namespace" => user_namespace(),
        "terminal" => terminal(),
        "leave-terminal" => unistd::setsid().map(|_| Done::default()),
        "enter-mounts" => words.number().and_then(enter_mounts),
        "overlay" => words.next().and_then(|lower| {
            let upper = words.next()?;
            overlay(&lower, &upper, &words.next()?)
        }),
        "name" => words.next().and_then(|name| {
            let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
            prctl::set_name(&name)?;
            Ok(Done::default())
        }),
        "odd-name" => {
            // As long as a name may be, and nothing that is text.
            prctl::set_name(c"\n\"\x1b[31m{}\xff\xfe\\").map(|()| Done::default())
        }
        "memory-name" => rename_arguments(),
        _ => return None,
    })
}

/// The first of a session of its own, with a terminal that stays as long as it does.
fn terminal() -> nix::Result<Done> {
    unistd::setsid()?;
    let master = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/ptmx")
        .map_err(|error| errno(&error))?;
    let unlocked: libc::c_int = 0;
    // SAFETY: calls on a terminal that is open; what one of them reads is there.
    unsafe {
        Errno::result(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCSPTLCK,
            &raw const unlocked,
        ))?;
        let slave = libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY,
        );
        Errno::result(libc::ioctl(Errno::result(slave)?, libc::TIOCSCTTY, 0))?;
    }
    std::mem::forget(master);
    Ok(Done::default())
}

/// Root in a user namespace of its own, with the mounts that allows, and its cgroup for the root of all.
fn user_namespace() -> nix::Result<Done> {
    let (user, group) = (unistd::getuid(), unistd::getgid());
    // After a change of user the files below would be root's.
    prctl::set_dumpable(true)?;
    let mounts_and_cgroups = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    sched::unshare(CloneFlags::CLONE_NEWUSER | mounts_and_cgroups)?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| errno(&error))?;
    }
    Ok(Done::default())
}

/// Into another process's mount namespace.
fn enter_mounts(pid: u64) -> nix::Result<Done> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).map_err(|error| errno(&error))?;
    sched::setns(namespace, CloneFlags::CLONE_NEWNS)?;
    Ok(Done::default())
}

/// An overlay with these lower and upper directories.
fn overlay(lower: &str, upper: &str, place: &str) -> nix::Result<Done> {
    let kind = Some("overlay");
    // What `userxattr` is for is not needed, and older kernels do not know it.
    let options = format!("lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work");
    mount::mount(kind, place, kind, MsFlags::empty(), Some(options.as_str()))?;
    Ok(Done::default())
}

/// Writes another program's name over the first argument, where `ps` looks.
fn rename_arguments() -> nix::Result<Done> {
    let stat = fs::read_to_string("/proc/self/stat").map_err(|error| errno(&error))?;
    // arg_start is the 48th field, the 46th after the name.
    let start: usize = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(45)?.parse().ok())
        .ok_or(Errno::EINVAL)?;
    let name = b"/opt/t/entitled\0";
    // SAFETY: the arguments' memory is writable, and longer than this since the steps follow.
    unsafe { (start as *mut u8).copy_from(name.as_ptr(), name.len()) };
    Ok(Done::default())
}

/// The errno behind an I/O error.
pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Into this cgroup, given by its directory below the cgroup root.
pub fn join(cgroup: &str) -> nix::Result<Done> {
    let procs = Path::new("/sys/fs/cgroup")
        .join(cgroup)
        .join("cgroup.procs");
    fs::write(procs, "0").map_err(|error| errno(&error))?;
    Ok(Done::default())
}

/// From now on as this user, for good.
pub fn user(id: u64) -> nix::Result<Done> {
    let id = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
    unistd::setgroups(&[])?;
    unistd::setgid(Gid::from_raw(id))?;
    unistd::setuid(Uid::from_raw(id))?;
    Ok(Done::default())
}

/// Into a mount namespace of its own.
pub fn private_mounts() -> nix::Result<Done> {
    sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    mount::mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )?;
    Ok(Done::default())
}

/// Mounts a file or directory at a second place.
pub fn bind(from: &str, to: &str) -> nix::Result<Done> {
    let nothing = None::<&str>;
    mount::mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing)?;
    Ok(Done::default())
}

/// Waits so many milliseconds.
pub fn sleep(ms: u64) -> nix::Result<Done> {
    thread::sleep(Duration::from_millis(ms));
    Ok(Done::default())
}

/// Set once standard input has ended, whatever ended it.
pub fn input_ends() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
        }
    });
    over
}

/// Says so, and waits for a line on standard input.
pub fn pause() -> nix::Result<Done> {
    super::report("paused", Ok(Done::default()));
    let mut byte = [0];
    while byte != *b"\n" {
        if io::stdin().read(&mut byte).map_err(|error| errno(&error))? == 0 {
            break;
        }
    }
    Ok(Done::default())
}
