//! The world outside: a process in a network namespace of its own that counts the bytes that reach it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{self, CloneFlags},
    sys::{
        socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::harness::wait_for;

mod others;
mod sniffer;

/// Where holders of most credentials may go.
pub const ALLOWED: &str = "10.20.0.2:9000";
/// The same by IPv6.
pub const ALLOWED6: &str = "[fd20::2]:9000";
/// Where no holder may go.
pub const FORBIDDEN: &str = "10.20.0.66:9000";
/// The same by IPv6.
pub const FORBIDDEN6: &str = "[fd20::66]:9000";
/// In the bundle's baseline.
pub const BASELINE: &str = "10.20.0.53:9000";
/// Hands out secrets, as a cloud's metadata service does.
pub const ENDPOINT: &str = "10.20.0.80:80";

/// Who is not named by then goes on all the same.
const PATIENCE: Duration = Duration::from_secs(30);
/// Accepts, and reads only after it was sent a datagram.
pub const SLOW: &str = "10.20.0.66:9001";
/// Where clouds hand out secrets.
pub const METADATA: [&str; 7] = [
    "169.254.169.254:80",
    "169.254.170.2:80",
    "169.254.170.23:80",
    "168.63.129.16:80",
    "100.100.100.200:80",
    "192.0.0.192:80",
    "[fd00:ec2::254]:80",
];

const LISTENED: [&str; 6] = [ALLOWED, ALLOWED6, FORBIDDEN, FORBIDDEN6, BASELINE, ENDPOINT];

/// Client and server, without cookies, on all listeners.
pub const FAST_OPEN: &str = "1543";

/// Numbers by what they count.
pub type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// Runs as the peer: says `ready`, gets the interface's name, says `up`, and answers each further line: `counts`
/// with the bytes by protocol and address, as in `tcp 10.20.0.2:9000`; `frames` and `asked` with what the sniffer
/// saw; `pull FROM TO` with what it was sent there.
pub fn run() -> Result<()> {
    sched::unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    say("ready")?;
    let mut lines = io::stdin().lock().lines();
    let interface = lines.next().context("got no interface")??;
    set_up(interface.trim())?;
    let counts = Counts::default();
    for address in LISTENED.iter().chain(&METADATA) {
        listen(address.parse()?, &counts)?;
    }
    listen_slowly(SLOW.parse()?)?;
    others::listen(FORBIDDEN.parse()?);
    let seen = sniffer::start(interface.trim())?;
    say("up")?;
    for line in lines {
        say(&answer(&line?, &counts, &seen)?)?;
    }
    Ok(())
}

fn answer(line: &str, counts: &Counts, seen: &sniffer::Seen) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    seen.catch_up()?;
    let map = match words[..] {
        ["frames"] => &seen.frames,
        ["asked"] => &seen.asked,
        ["pull", from, to] => return Ok(serde_json::to_string(&pull(from, to)?)?),
        _ => counts,
    };
    let map = map
        .lock()
        .map_err(|_| anyhow::anyhow!("a counter panicked"))?;
    Ok(serde_json::to_string(&*map)?)
}

/// Connects from one address to another and counts what comes.
fn pull(from: &str, to: &str) -> Result<Option<u64>> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse()?, to.parse()?);
    let fd = socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(2))?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
    if socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).is_err() {
        return Ok(None);
    }
    let mut stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut sum = 0;
    let mut buffer = [0; 1024];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        sum += bytes as u64;
    }
    Ok(Some(sum))
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// Runs `ip` with these words.
pub fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .context("cannot run ip")?;
    ensure!(
        output.status.success(),
        "`ip {words}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn set_up(interface: &str) -> Result<()> {
    // Without this an IPv6 address is good only after a second.
    fs::write(
        format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"),
        "0",
    )
    .context("cannot switch off address detection")?;
    fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN)
        .context("cannot switch on TCP fast open")?;
    ip("link set lo up")?;
    ip(&format!("link set {interface} up"))?;
    for address in LISTENED {
        let address: SocketAddr = address.parse()?;
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        ip(&format!(
            "addr add {}/{prefix} dev {interface}",
            address.ip()
        ))?;
    }
    for address in METADATA {
        let address = address.parse::<SocketAddr>()?.ip();
        ip(&format!("addr add {address} dev {interface}"))?;
        // An IPv6 address is tentative until the kernel gets round to it.
        wait_for("the address to be good", || {
            UdpSocket::bind((address, 0)).ok()
        })?;
    }
    Ok(())
}

/// Keeps those who connect waiting, so that their sends block, until a datagram names their port.
fn listen_slowly(address: SocketAddr) -> Result<()> {
    let tcp = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    look_for_the_dead(&tcp)?;
    let udp = UdpSocket::bind(address).with_context(|| format!("cannot bind to {address}"))?;
    let named = Arc::<Mutex<BTreeSet<u16>>>::default();
    let names = Arc::clone(&named);
    thread::spawn(move || {
        let mut port = [0; 2];
        while udp.recv_from(&mut port).is_ok() {
            if let Ok(mut names) = names.lock() {
                names.insert(u16::from_be_bytes(port));
            }
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            // One that has ended meanwhile comes from nowhere.
            let Ok(from) = stream.peer_addr() else {
                continue;
            };
            let named = Arc::clone(&named);
            thread::spawn(move || {
                let is_named = || (named.lock()).is_ok_and(|mut it| it.remove(&from.port()));
                let end = Instant::now() + PATIENCE;
                while !is_named() && Instant::now() < end {
                    thread::sleep(Duration::from_millis(5));
                }
                // It ends when the other side ends it.
                io::copy(&mut stream, &mut io::sink())
            });
        }
    });
    Ok(())
}

/// Ends the connections that this accepts when the other side has gone without a word, as one does whose packets are
/// refused.
fn look_for_the_dead(listener: &TcpListener) -> Result<()> {
    socket::setsockopt(listener, sockopt::KeepAlive, &true)?;
    socket::setsockopt(listener, sockopt::TcpKeepIdle, &5)?;
    socket::setsockopt(listener, sockopt::TcpKeepInterval, &1)?;
    socket::setsockopt(listener, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

fn listen(address: SocketAddr, counts: &Counts) -> Result<()> {
    let tcp = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let queue: libc::c_int = 16;
    // SAFETY: the option's value is an integer, and its size is given.
    let set = unsafe {
        libc::setsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            size_of_val(&queue) as libc::socklen_t,
        )
    };
    ensure!(set == 0, "no TCP fast open: {}", io::Error::last_os_error());
    look_for_the_dead(&tcp)?;
    let udp = UdpSocket::bind(address).with_context(|| format!("cannot bind to {address}"))?;
    let (tcp_counts, udp_counts) = (Arc::clone(counts), Arc::clone(counts));
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let counts = Arc::clone(&tcp_counts);
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    add(&counts, &format!("tcp {address}"), bytes);
                }
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((bytes, _)) = udp.recv_from(&mut buffer) {
            add(&udp_counts, &format!("udp {address}"), bytes);
        }
    });
    Ok(())
}

pub(crate) fn add(counts: &Counts, key: &str, bytes: usize) {
    if let Ok(mut counts) = counts.lock() {
        *counts.entry(key.to_owned()).or_default() += bytes as u64;
    }
}

/// Says an IPv4-mapped address as what it is.
pub fn plain(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
