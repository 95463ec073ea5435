//! Sees every frame that comes in, so that a protocol that nobody listens to is seen, too.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, sockopt},
};

use super::{Counts, add};
use crate::actor::PAYLOAD;

/// A frame may be as long as the two ends of a pair of devices agree on.
const LONGEST: usize = 1 << 17;
/// Bytes of frames that wait to be looked at.
const QUEUE: usize = 16 << 20;

/// What it saw.
#[derive(Clone)]
pub struct Seen {
    socket: Arc<OwnedFd>,
    /// Frames with the payload, by protocol and destination.
    pub frames: Counts,
    /// Requests for addresses, by address.
    pub asked: Counts,
}

/// Starts to look.
pub fn start(interface: &str) -> Result<Seen> {
    let fd = socket::socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("cannot make a packet socket")?;
    // More than what is let go at once.
    socket::setsockopt(&fd, sockopt::RcvBufForce, &QUEUE).context("cannot have a long queue")?;
    let index = i32::try_from(if_nametoindex(interface)?)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is of the given size.
    Errno::result(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    })
    .context("cannot look at the interface")?;
    let seen = Seen {
        socket: Arc::new(fd),
        frames: Counts::default(),
        asked: Counts::default(),
    };
    let ours = seen.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; LONGEST];
        loop {
            let mut from = address;
            let mut length = size_of_val(&from) as u32;
            // SAFETY: buffer and address are as long as said.
            let bytes = unsafe {
                libc::recvfrom(
                    ours.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            let Ok(bytes) = usize::try_from(bytes) else {
                continue;
            };
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                look(&buffer[..bytes], &ours);
            }
        }
    });
    Ok(seen)
}

impl Seen {
    /// Waits until all frames that have come in are counted.
    pub fn catch_up(&self) -> Result<()> {
        let waiting = || {
            poll(
                &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
                PollTimeout::ZERO,
            )
        };
        while waiting()? > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn look(frame: &[u8], seen: &Seen) {
    let (kind, packet) = match frame.get(12..14) {
        Some(kind) => (u16::from_be_bytes([kind[0], kind[1]]), &frame[14..]),
        None => return,
    };
    if i32::from(kind) == libc::ETH_P_ARP {
        if let Some(address) = v4(packet, 24) {
            add(&seen.asked, &address.to_string(), 1);
        }
    } else if frame.windows(PAYLOAD.len()).any(|window| window == PAYLOAD) {
        let to = match i32::from(kind) {
            libc::ETH_P_IP => v4(packet, 16).map(IpAddr::V4),
            libc::ETH_P_IPV6 => packet
                .get(24..40)
                .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
                .map(IpAddr::from),
            _ => None,
        };
        let to = to.map_or_else(|| format!("frame {kind:#06x}"), |to| to.to_string());
        add(&seen.frames, &to, 1);
    }
}

fn v4(packet: &[u8], at: usize) -> Option<std::net::Ipv4Addr> {
    let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(bytes.into())
}
