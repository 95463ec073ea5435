//! Sends that begin before the reading, and ways to send on a connection that is there.

use std::{
    io::{IoSlice, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{self, SpliceFFlags},
    sys::{eventfd::EventFd, memfd, sendfile},
    unistd::{self, Pid},
};
use serde_json::json;

use super::{
    Done, PAYLOAD, State, Words, files,
    places::errno,
    sys::{connect, family, set, socket},
    uring::{self, How},
};

/// More than what fits into the queues on both sides of a slow connection.
const LONG: usize = 4 << 20;
/// How long such a queue may take to empty, on an emulated machine.
const DRAINED: Duration = Duration::from_secs(10);
/// Who waits longer for what another process does is left over from a failure.
const PATIENCE_SECS: u32 = 30;

/// The steps of this file.
pub fn perform(verb: &str, state: &mut State, words: &mut Words) -> Option<nix::Result<Done>> {
    let on: Option<fn(&OwnedFd) -> nix::Result<()>> = match verb {
        "send-file" => Some(by_sendfile),
        "vmsplice" => Some(by_vmsplice),
        "uring-send" => Some(|fd| uring::send(fd, How::Inline)),
        "uring-send-async" => Some(|fd| uring::send(fd, How::Worker)),
        "uring-splice" => Some(|fd| uring::splice(&filled_pipe()?, fd)),
        _ => None,
    };
    if let Some(by) = on {
        let connection = state.connection.as_ref().ok_or(Errno::ENOTCONN);
        return Some(connection.and_then(|(fd, to, protocol)| {
            by(fd)?;
            Ok(Done::sent(*to, protocol, PAYLOAD.len()))
        }));
    }
    Some(match verb {
        "uring-all" => words.address().and_then(|to| uring::all(to, How::Inline)),
        "uring-all-sqpoll" => words.address().and_then(|to| uring::all(to, How::Polled)),
        "uring-tcp-sqpoll" => words
            .address()
            .and_then(|to| uring::connect(to, How::Polled)),
        "uring-udp" => words.address().and_then(|to| uring::udp(to, How::Inline)),
        "uring-udp-async" => words.address().and_then(|to| uring::udp(to, How::Worker)),
        "tcp-fast-open-connect" => words.address().and_then(fast_open_connect),
        "long-send" => straddle(words, false),
        "zero-copy" => straddle(words, true),
        "answer" => words.address().and_then(answer),
        "dial-storm" => words.address().and_then(|to| {
            let count = words.number()?;
            storm(to, count)
        }),
        "bomb" => words.address().and_then(|to| {
            let depth = words.number()?;
            bomb(to, depth)
        }),
        "churn" => words.next().and_then(|path| {
            let count = words.number()?;
            churn(&path, count)
        }),
        _ => return None,
    })
}

fn filled_pipe() -> nix::Result<OwnedFd> {
    let (out, into) = unistd::pipe()?;
    unistd::write(into, PAYLOAD)?;
    Ok(out)
}

fn by_sendfile(to: &OwnedFd) -> nix::Result<()> {
    let file = memfd::memfd_create(c"payload", memfd::MFdFlags::MFD_CLOEXEC)?;
    unistd::write(&file, PAYLOAD)?;
    let mut offset = 0;
    sendfile::sendfile(to, file, Some(&mut offset), PAYLOAD.len()).map(|_| ())
}

fn by_vmsplice(to: &OwnedFd) -> nix::Result<()> {
    let (out, into) = unistd::pipe()?;
    fcntl::vmsplice(into, &[IoSlice::new(PAYLOAD)], SpliceFFlags::empty())?;
    fcntl::splice(out, None, to, None, PAYLOAD.len(), SpliceFFlags::empty()).map(|_| ())
}

/// Connects in name only: the first data make the connection.
fn fast_open_connect(to: SocketAddr) -> nix::Result<Done> {
    let fd = socket(family(to), libc::SOCK_STREAM, 0)?;
    set(&fd, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1)?;
    connect(&fd, to)?;
    send_to_connected(&fd, PAYLOAD, 0)?;
    Ok(Done::sent(to, "tcp", PAYLOAD.len()))
}

fn send_to_connected(fd: &OwnedFd, bytes: &[u8], flags: i32) -> nix::Result<usize> {
    // SAFETY: the buffer is as long as said.
    let sent = Errno::result(unsafe {
        libc::send(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags | libc::MSG_NOSIGNAL,
        )
    })?;
    Ok(sent.cast_unsigned())
}

/// Begins to send much to somebody slow, then reads the file, and then puts it where what is still to be sent is.
fn straddle(words: &mut Words, zero_copy: bool) -> nix::Result<Done> {
    let to = words.address()?;
    let path = words.next()?;
    // No pipe, by which it would hold what is read in the meantime.
    let word = EventFd::new()?;
    let waker = child(false, &|| wake(&word, to))?;
    let fd = socket(family(to), libc::SOCK_STREAM, 0)?;
    connect(&fd, to)?;
    let mut flags = 0;
    if zero_copy {
        set(&fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1)?;
        flags = libc::MSG_ZEROCOPY;
    }
    let length = if zero_copy { LONG / 4 } else { LONG };
    let buffer: &'static mut [u8] = Vec::leak(vec![0; length]);
    let (start, length) = (buffer.as_mut_ptr().addr(), buffer.len());
    let connection = fd.try_clone().map_err(|error| errno(&error))?;
    let connection = TcpStream::from(connection);
    let port = connection
        .local_addr()
        .map_err(|error| errno(&error))?
        .port();
    let sender = thread::spawn(move || {
        // SAFETY: the buffer is never freed; the other thread changes it meanwhile, which is the attack, and
        // the kernel copies whatever is there.
        let buffer = unsafe { std::slice::from_raw_parts(start as *const u8, length) };
        let mut sent = 0;
        while sent < buffer.len() {
            sent += send_to_connected(&fd, &buffer[sent..], flags)?;
        }
        Ok(())
    });
    thread::sleep(Duration::from_millis(500));
    files::read(&path)?;
    // Over and over, so that one frame more or less seen makes no difference. What has gone is not changed by it.
    for at in (0..length).step_by(PAYLOAD.len()) {
        // SAFETY: within the buffer, whose length is a multiple of the payload's.
        unsafe { ((start + at) as *mut u8).copy_from(PAYLOAD.as_ptr(), PAYLOAD.len()) };
    }
    word.write(port.into())?;
    let result: nix::Result<()> = sender.join().map_err(|_| Errno::ECANCELED)?;
    ended(waker)?;
    drain(&connection)?;
    result.map(|()| Done::default())
}

/// Tells the slow one to read from the port that somebody says: a process of its own, which holds nothing.
fn wake(word: &EventFd, slow: SocketAddr) -> nix::Result<()> {
    unistd::alarm::set(PATIENCE_SECS);
    let port = word.read()? as u16;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| errno(&error))?;
    let sent = socket.send_to(&port.to_be_bytes(), slow);
    sent.map(drop).map_err(|error| errno(&error))
}

/// Waits until all was acknowledged, or the connection is no more: the end of the process would cut it off.
fn drain(connection: &TcpStream) -> nix::Result<()> {
    let end = Instant::now() + DRAINED;
    let mut queued: libc::c_int = 1;
    while queued > 0 && is_established(connection)? && Instant::now() < end {
        thread::sleep(Duration::from_millis(20));
        // SAFETY: the request writes one integer.
        Errno::result(unsafe {
            libc::ioctl(connection.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued)
        })?;
    }
    Ok(())
}

fn is_established(connection: &TcpStream) -> nix::Result<bool> {
    /// `TCP_ESTABLISHED`.
    const ESTABLISHED: u8 = 1;
    // The first byte of `struct tcp_info` is the state.
    let mut state = 0_u8;
    let mut length: libc::socklen_t = 1;
    // SAFETY: the kernel writes at most the given length.
    Errno::result(unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    })?;
    Ok(state == ESTABLISHED)
}

/// Answers one who connects, with the payload.
fn answer(at: SocketAddr) -> nix::Result<Done> {
    let listener = TcpListener::bind(at).map_err(|error| errno(&error))?;
    super::report("serving", Ok(Done::default()));
    nix::poll::poll(
        &mut [nix::poll::PollFd::new(
            listener.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )],
        nix::poll::PollTimeout::from(5000_u16),
    )?;
    listener
        .set_nonblocking(true)
        .map_err(|error| errno(&error))?;
    let (mut stream, _) = listener.accept().map_err(|error| match errno(&error) {
        // Nobody came through.
        Errno::EAGAIN => Errno::EPERM,
        other => other,
    })?;
    stream.write_all(PAYLOAD).map_err(|error| errno(&error))?;
    thread::sleep(Duration::from_millis(500));
    Ok(Done::default())
}

/// So many children, each of which sends at once. `EPERM` if all were refused.
fn storm(to: SocketAddr, count: u64) -> nix::Result<Done> {
    let statuses = children(count, || super::sockets::udp(to).map(|_| ()))?;
    let refused = statuses.iter().filter(|status| **status == 1).count();
    if refused == statuses.len() {
        return Err(Errno::EPERM);
    }
    Ok(Done {
        more: json!({"refused": refused}),
        ..Done::default()
    })
}

/// Two children that each have two, and so on; the last ones send. `EPERM` if all were refused.
fn bomb(to: SocketAddr, depth: u64) -> nix::Result<Done> {
    if depth == 0 {
        return super::sockets::udp(to);
    }
    let statuses = at_once(2, || bomb(to, depth - 1).map(|_| ()))?;
    if statuses.iter().all(|status| *status == 1) {
        return Err(Errno::EPERM);
    }
    Ok(Done::default())
}

/// So many children, each of which reads. `EPERM` if all were refused.
fn churn(path: &str, count: u64) -> nix::Result<Done> {
    let statuses = children(count, || files::read(path).map(|_| ()))?;
    if statuses.iter().all(|status| *status == 1) {
        return Err(Errno::EPERM);
    }
    Ok(Done::read(
        statuses.iter().filter(|status| **status == 0).count(),
    ))
}

/// Makes children one after the other, and says how each did: 0 well, 1 refused, 2 otherwise.
fn children(count: u64, act: impl Fn() -> nix::Result<()>) -> nix::Result<Vec<i32>> {
    (0..count)
        .map(|number| ended(child(number == 0, &act)?))
        .collect()
}

/// Makes them all at once.
fn at_once(count: u64, act: impl Fn() -> nix::Result<()>) -> nix::Result<Vec<i32>> {
    let children: nix::Result<Vec<_>> = (0..count).map(|_| child(false, &act)).collect();
    children?.into_iter().map(ended).collect()
}

/// A child; one that is named says its number.
fn child(named: bool, act: &impl Fn() -> nix::Result<()>) -> nix::Result<Pid> {
    // SAFETY: an actor has no other threads, so its child may do anything.
    match unsafe { unistd::fork()? } {
        unistd::ForkResult::Child => {
            if named {
                super::report("child", Ok(Done::default()));
            }
            let status = match act() {
                Ok(()) => 0,
                Err(Errno::EPERM) => 1,
                Err(_) => 2,
            };
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(status) }
        }
        unistd::ForkResult::Parent { child } => Ok(child),
    }
}

/// How a child did.
fn ended(child: Pid) -> nix::Result<i32> {
    Ok(match nix::sys::wait::waitpid(child, None)? {
        nix::sys::wait::WaitStatus::Exited(_, status) => status,
        _ => 2,
    })
}
