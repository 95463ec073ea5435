//! Ways to other processes of the same machine.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
            SockType, UnixAddr,
        },
        stat::Mode,
    },
    unistd,
};

use super::{
    Done, PAYLOAD, State, Words,
    places::errno,
    sys::{bind_raw, receive, send},
};

/// How long it is tried to reach somebody who may not be there yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// The steps of this file.
pub fn perform(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    Some(match verb {
        "unix" => words.next().and_then(|name| tell(&name, SockType::Stream)),
        "unix-packets" => words
            .next()
            .and_then(|name| tell(&name, SockType::SeqPacket)),
        "unix-datagram" => words.next().and_then(|name| datagram(&name)),
        "unix-serve" => words
            .next()
            .and_then(|name| serve_unix(&name, SockType::Stream)),
        "unix-serve-packets" => words
            .next()
            .and_then(|name| serve_unix(&name, SockType::SeqPacket)),
        "unix-serve-datagram" => words.next().and_then(|name| serve_datagram(&name)),
        "unix-dial" => words.next().and_then(|name| {
            state.file = Some(dial(&name, SockType::Stream)?);
            Ok(Done::default())
        }),
        "write-held" => state
            .file
            .as_ref()
            .ok_or(Errno::EBADF)
            .and_then(|file| unistd::write(file, PAYLOAD))
            .map(|_| Done::default()),
        "serve" => words.address().and_then(serve_tcp),
        "give-file" => words
            .next()
            .and_then(|name| give(&name, state.file.as_ref())),
        "take-file" => words.next().and_then(|name| {
            state.file = Some(take(&name)?);
            Ok(Done::default())
        }),
        "give-connection" => words.next().and_then(|name| {
            let connection = state.connection.as_ref().map(|(fd, ..)| fd);
            give(&name, connection)
        }),
        "take-connection" => words.next().and_then(|name| {
            let to: SocketAddr = words.address()?;
            state.connection = Some((take(&name)?, to, "tcp"));
            Ok(Done::default())
        }),
        "make-fifo" => words.next().and_then(|path| {
            unistd::mkfifo(Path::new(&path), Mode::from_bits_retain(0o666))?;
            Ok(Done::default())
        }),
        "write-file" => words.next().and_then(|path| write_file(&path)),
        "share-put" => words.number().and_then(share_put),
        "share-get" => words.number().and_then(share_get),
        "key-add" => words.next().and_then(|name| key_add(&name)),
        "key-read" => words.next().and_then(|name| key_read(&name)),
        _ => return None,
    })
}

/// `@name` is an abstract one.
fn address(name: &str) -> nix::Result<UnixAddr> {
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(name),
    }
}

fn open(kind: SockType) -> nix::Result<OwnedFd> {
    socket::socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)
}

/// Connects, waiting for the other side.
fn dial(name: &str, kind: SockType) -> nix::Result<OwnedFd> {
    let address = address(name)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let fd = open(kind)?;
        match socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(fd),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) if Instant::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error),
        }
    }
}

fn tell(name: &str, kind: SockType) -> nix::Result<Done> {
    send(&dial(name, kind)?, PAYLOAD)?;
    Ok(Done::default())
}

fn datagram(name: &str) -> nix::Result<Done> {
    let address = address(name)?;
    let fd = open(SockType::Datagram)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match socket::sendto(fd.as_raw_fd(), PAYLOAD, &address, MsgFlags::empty()) {
            Ok(_) => return Ok(Done::default()),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) if Instant::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error),
        }
    }
}

fn listener(name: &str, kind: SockType) -> nix::Result<OwnedFd> {
    let fd = open(kind)?;
    socket::bind(fd.as_raw_fd(), &address(name)?)?;
    if kind != SockType::Datagram {
        socket::listen(&fd, Backlog::new(4)?)?;
    }
    Ok(fd)
}

fn accept(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: no address is asked for.
    let accepted = unsafe {
        libc::accept4(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    super::sys::owned(accepted)
}

/// Takes one connection and says what came.
fn serve_unix(name: &str, kind: SockType) -> nix::Result<Done> {
    let fd = listener(name, kind)?;
    super::report("serving", Ok(Done::default()));
    receive(&accept(&fd)?).map(Done::read)
}

fn serve_datagram(name: &str) -> nix::Result<Done> {
    let fd = listener(name, SockType::Datagram)?;
    super::report("serving", Ok(Done::default()));
    receive(&fd).map(Done::read)
}

/// Takes one connection on a socket of any kind and says what came.
pub fn serve<T>(fd: &OwnedFd, address: &T) -> nix::Result<Done> {
    bind_raw(fd, address)?;
    socket::listen(fd, Backlog::new(4)?)?;
    super::report("serving", Ok(Done::default()));
    receive(&accept(fd)?).map(Done::read)
}

/// Takes one TCP connection and says what came.
fn serve_tcp(at: SocketAddr) -> nix::Result<Done> {
    let listener = std::net::TcpListener::bind(at).map_err(|error| errno(&error))?;
    super::report("serving", Ok(Done::default()));
    let (mut stream, _) = listener.accept().map_err(|error| errno(&error))?;
    let bytes = stream.read(&mut [0; 4096]).map_err(|error| errno(&error))?;
    Ok(Done::read(bytes))
}

/// Passes a descriptor.
fn give(name: &str, fd: Option<&OwnedFd>) -> nix::Result<Done> {
    let fd = fd.ok_or(Errno::EBADF)?;
    let to = dial(name, SockType::Stream)?;
    let fds = [fd.as_raw_fd()];
    socket::sendmsg::<UnixAddr>(
        to.as_raw_fd(),
        &[std::io::IoSlice::new(b"x")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )?;
    // The other side reads when it likes.
    let _ = receive(&to);
    Ok(Done::default())
}

/// Gets a descriptor passed; `EPERM` if the kernel kept it.
fn take(name: &str) -> nix::Result<OwnedFd> {
    let listener = listener(name, SockType::Stream)?;
    super::report("serving", Ok(Done::default()));
    let from = accept(&listener)?;
    let mut space = nix::cmsg_space!(std::os::fd::RawFd);
    let mut byte = [0];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    let message = socket::recvmsg::<UnixAddr>(
        from.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut messages = match message.cmsgs() {
        // What was kept back counts as what there was no room for.
        Err(Errno::ENOBUFS) => return Err(Errno::EPERM),
        messages => messages?,
    };
    let fds = messages.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    super::sys::owned(fds.ok_or(Errno::EPERM)?)
}

fn write_file(path: &str) -> nix::Result<Done> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| errno(&error))?;
    file.write_all(PAYLOAD).map_err(|error| errno(&error))?;
    Ok(Done::default())
}

/// System V shared memory by number.
fn share(number: u64) -> nix::Result<*mut u8> {
    let key = i32::try_from(number).map_err(|_| Errno::EINVAL)?;
    // SAFETY: numbers only.
    let id = Errno::result(unsafe { libc::shmget(key, 4096, libc::IPC_CREAT | 0o666) })?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if address.addr() == usize::MAX {
        return Err(Errno::last());
    }
    Ok(address.cast())
}

fn share_put(number: u64) -> nix::Result<Done> {
    let address = share(number)?;
    // SAFETY: the mapping is a page long.
    unsafe { address.copy_from(PAYLOAD.as_ptr(), PAYLOAD.len()) };
    Ok(Done::default())
}

fn share_get(number: u64) -> nix::Result<Done> {
    let address = share(number)?;
    // SAFETY: the mapping is a page long.
    let there = unsafe { std::slice::from_raw_parts(address, PAYLOAD.len()) } == PAYLOAD;
    let key = i32::try_from(number).map_err(|_| Errno::EINVAL)?;
    // SAFETY: numbers only; it goes when its last user does.
    unsafe {
        libc::shmctl(
            libc::shmget(key, 0, 0),
            libc::IPC_RMID,
            std::ptr::null_mut(),
        )
    };
    Ok(Done::read(if there { PAYLOAD.len() } else { 0 }))
}

const USER_KEYRING: i32 = -4;

fn key_add(name: &str) -> nix::Result<Done> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: strings end with NUL, the payload is as long as said.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            PAYLOAD.as_ptr(),
            PAYLOAD.len(),
            USER_KEYRING,
        )
    })?;
    Ok(Done::default())
}

fn key_read(name: &str) -> nix::Result<Done> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    let mut buffer = [0_u8; 64];
    // SAFETY: strings end with NUL, the buffer is as long as said.
    let bytes = Errno::result(unsafe {
        // Link the user's keyring to ours, so that we possess what is in it.
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_LINK, USER_KEYRING, -2);
        let key = libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SEARCH,
            USER_KEYRING,
            c"user".as_ptr(),
            name.as_ptr(),
            0,
        );
        if key < 0 {
            return Err(Errno::last());
        }
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_READ,
            key,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    })?;
    Ok(Done::read(bytes as usize))
}
