//! The actor: a process that does one step after the other and says how each went.
//!
//! `PROGRAM STEP ARGS... STEP ARGS...`: one JSON object a line and step, and an exit status for the last one: 0 it
//! went well, 1 `EPERM`, 2 anything else. A step that makes a process or thread hands it all the steps that
//! follow, and then takes over its status.

use std::{
    collections::VecDeque, io::Write as _, net::SocketAddr, os::fd::OwnedFd, process::ExitCode,
};

use nix::{errno::Errno, sched::CloneFlags};
use serde_json::json;
use uring::How;

mod engines;
mod files;
mod handing;
mod inflight;
mod local;
mod memory;
mod odd;
mod packets;
mod places;
mod processes;
mod sockets;
mod steady;
mod sys;
mod tamper;
mod uring;

/// What is sent, so that arrived bytes can be counted.
pub const PAYLOAD: &[u8; 32] = b"a secret that must not get out!\n";

/// How a step went well.
#[derive(Debug, Default)]
pub struct Done {
    /// Bytes that were read.
    read: usize,
    /// Where bytes were sent to, by which protocol, and how many.
    sent: Option<(SocketAddr, &'static str, usize)>,
    /// Anything else to say.
    more: serde_json::Value,
}

impl Done {
    fn read(bytes: usize) -> Self {
        Self {
            read: bytes,
            ..Self::default()
        }
    }

    fn sent(to: SocketAddr, protocol: &'static str, bytes: usize) -> Self {
        Self {
            sent: Some((to, protocol, bytes)),
            ..Self::default()
        }
    }
}

/// What earlier steps leave to later ones.
#[derive(Default)]
struct State {
    /// The connection that `dial` opened.
    connection: Option<(OwnedFd, SocketAddr, &'static str)>,
    /// The file that `hold` opened.
    file: Option<OwnedFd>,
    /// Where `map-held` mapped it.
    map: Option<usize>,
}

/// The words still to come, and those of the current step.
struct Words {
    left: VecDeque<String>,
    step: Vec<String>,
}

impl Words {
    fn new(words: Vec<String>) -> Self {
        Self {
            left: words.into(),
            step: Vec::new(),
        }
    }

    fn next(&mut self) -> nix::Result<String> {
        let word = self.left.pop_front().ok_or(Errno::EINVAL)?;
        self.step.push(word.clone());
        Ok(word)
    }

    fn number(&mut self) -> nix::Result<u64> {
        self.next()?.parse().map_err(|_| Errno::EINVAL)
    }

    fn address(&mut self) -> nix::Result<SocketAddr> {
        self.next()?.parse().map_err(|_| Errno::EINVAL)
    }

    fn rest(&mut self) -> Vec<String> {
        self.left.drain(..).collect()
    }
}

/// Does the steps.
pub fn main(words: Vec<String>) -> ExitCode {
    ExitCode::from(run(State::default(), words))
}

fn run(mut state: State, words: Vec<String>) -> u8 {
    let mut words = Words::new(words);
    let mut status = 0;
    while let Ok(verb) = {
        words.step.clear();
        words.next()
    } {
        if let Some(status) = hand_on(&verb, &mut state, &mut words) {
            return status;
        }
        let result = perform(&verb, &mut state, &mut words);
        status = report(&words.step.join(" "), result);
    }
    status
}

/// Steps that give all that follow to somebody else.
fn hand_on(verb: &str, state: &mut State, words: &mut Words) -> Option<u8> {
    let hand: fn(State, Vec<String>) -> nix::Result<u8> = match verb {
        "fork" => processes::fork,
        "double-fork" => processes::double_fork,
        "thread" => processes::thread,
        "leaderless" => processes::leaderless,
        "vfork" => processes::vfork,
        "clone-vm" => processes::clone_vm,
        "spawn" => processes::spawn,
        "exec" => processes::exec,
        "exec-as" => processes::exec_as,
        "exec-named" => processes::exec_named,
        "exec-traced" => processes::exec_traced,
        "exec-with" => processes::exec_with,
        "exec-crowded" => processes::exec_crowded,
        "exec-memory" => processes::exec_memory,
        "into-cgroup" => processes::into_cgroup,
        "with-number" => processes::with_number,
        "thread-exec" => processes::thread_exec,
        "shell" => processes::shell,
        _ => return None,
    };
    report(verb, Ok(Done::default()));
    let result = hand(std::mem::take(state), words.rest());
    Some(result.unwrap_or_else(|errno| report(&format!("{verb} itself"), Err(errno))))
}

fn perform(verb: &str, state: &mut State, words: &mut Words) -> nix::Result<Done> {
    match verb {
        "read" => files::read(&words.next()?),
        "hold" => files::hold(state, &words.next()?),
        "read-held" => files::read_held(state),
        "reopen" => files::reopen(&words.next()?),
        "read-handle" => files::read_handle(&words.next()?),
        "map" => files::map(&words.next()?),
        "hammer" => {
            let path = words.next()?;
            files::hammer_reads(&path, words.number()?)
        }
        "hammer-udp" => {
            let to = words.address()?;
            files::hammer(words.number()?, || sockets::udp(to).map(|_| 0))
        }
        "hammer-held" => {
            let pause_us = words.number()?;
            files::hammer(pause_us, || {
                // Both are tried, whatever comes of the one.
                let read = engines::read_again(state);
                sockets::send(state)?;
                read
            })
        }
        "uring-read" => uring::read(&words.next()?, How::Inline),
        "uring-read-async" => uring::read(&words.next()?, How::Worker),
        "uring-tcp" => uring::connect(words.address()?, How::Inline),
        "uring-tcp-async" => uring::connect(words.address()?, How::Worker),
        "tcp" => sockets::tcp(words.address()?),
        "tcp-fast-open" => sockets::tcp_fast_open(words.address()?),
        "udp" => sockets::udp(words.address()?),
        "udp-connected" => sockets::udp_connected(words.address()?),
        "udp-many" => sockets::udp_many(words.address()?),
        "dial" => sockets::dial(state, words.address()?),
        "dial-udp" => sockets::dial_udp(state, words.address()?),
        "send" => sockets::send(state),
        "write" => sockets::write(state),
        "splice" => sockets::splice(state),
        "steady" => steady::work(words),
        "keep-reading" => steady::keep_reading(words),
        "join" => places::join(&words.next()?),
        "user" => places::user(words.number()?),
        "private-mounts" => places::private_mounts(),
        "bind" => {
            let from = words.next()?;
            places::bind(&from, &words.next()?)
        }
        "sleep" => places::sleep(words.number()?),
        "pause" => places::pause(),
        "child" => processes::child(state, words, CloneFlags::empty()),
        "child-vm" => processes::child(state, words, CloneFlags::CLONE_VM),
        "child-vfork" => {
            let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
            processes::child(state, words, flags)
        }
        _ => places::perform(verb, words)
            .or_else(|| engines::perform(verb, state, words))
            .or_else(|| local::perform(verb, state, words))
            .or_else(|| memory::perform(verb, state, words))
            .or_else(|| handing::perform(verb, words))
            .or_else(|| tamper::perform(verb, words))
            .or_else(|| odd::perform(verb, state, words))
            .or_else(|| packets::perform(verb, state, words))
            .or_else(|| inflight::perform(verb, state, words))
            .unwrap_or(Err(Errno::EINVAL)),
    }
}

/// Says how a step went, in one write, so that lines of several processes do not mix.
fn report(step: &str, result: nix::Result<Done>) -> u8 {
    let (errno, done) = match result {
        Ok(done) => (0, done),
        Err(errno) => (errno as i32, Done::default()),
    };
    let mut line = json!({
        "step": step,
        "pid": std::process::id(),
        "ok": errno == 0,
        "errno": errno,
        "read": done.read,
        "more": done.more,
    });
    if let Some((to, protocol, bytes)) = done.sent {
        line["sent"] = json!({"to": to.to_string(), "protocol": protocol, "bytes": bytes});
    }
    // Nobody is left to tell if this fails.
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
    match errno {
        0 => 0,
        libc::EPERM => 1,
        _ => 2,
    }
}
