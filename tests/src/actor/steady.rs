//! A workload that does its ordinary work for as long as it is let, and counts what went wrong.

use std::{net::SocketAddr, path::Path, sync::atomic::Ordering, thread, time::Duration};

use nix::{errno::Errno, sys::socket::SockType};
use serde_json::json;

use super::{Done, Words, files, places, report, sockets};

/// Between two pieces of work.
const PAUSE: Duration = Duration::from_millis(50);
/// As many failures are told in words.
const TOLD: usize = 10;

/// `PATH ADDRESS`: reads its key and connects to its service, over and over until standard input ends.
pub fn work(words: &mut Words) -> nix::Result<Done> {
    let path = words.next()?;
    let to = words.address()?;
    let over = places::input_ends();
    report("working", Ok(Done::default()));
    let (mut done, mut failed) = (0_u64, 0_u64);
    let mut told = Vec::new();
    while !over.load(Ordering::Relaxed) {
        done += 1;
        if let Err(failure) = once(&path, to) {
            failed += 1;
            if told.len() < TOLD {
                told.push(format!("number {done}: {failure}"));
            }
        }
        thread::sleep(PAUSE);
    }
    Ok(Done {
        more: json!({"done": done, "failed": failed, "told": told}),
        ..Done::default()
    })
}

/// `PATH STOP`: reads the file over and over until there is one at the other path, and counts what came of it.
pub fn keep_reading(words: &mut Words) -> nix::Result<Done> {
    let path = words.next()?;
    let stop = words.next()?;
    report("reading", Ok(Done::default()));
    let (mut read, mut refused, mut other) = (0_u64, 0_u64, 0_u64);
    while !Path::new(&stop).exists() {
        match files::read(&path) {
            Ok(done) if done.read > 0 => read += 1,
            Err(Errno::EPERM) => refused += 1,
            // It is being replaced.
            _ => other += 1,
        }
    }
    Ok(Done {
        more: json!({"read": read, "refused": refused, "other": other}),
        ..Done::default()
    })
}

/// Sends nothing that is counted outside.
fn once(path: &str, to: SocketAddr) -> Result<(), String> {
    let read = files::read(path).map_err(|error| format!("reading {path}: {error}"))?;
    if read.read == 0 {
        return Err(format!("reading {path}: nothing"));
    }
    sockets::connected(to, SockType::Stream)
        .map(drop)
        .map_err(|error| format!("connecting to {to}: {error}"))
}
