//! What is measured: small operations, each by itself, in a process of the program that is to do them.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::FileExt as _,
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use nix::{
    sys::wait::{self, WaitStatus},
    unistd::{self, ForkResult},
};

use crate::harness::Cgroup;

/// A file that is no credential, and the same far down.
pub const PLAIN: &str = "/srv/b/plain";
/// As above.
pub const DEEP: &str = "/srv/b/1/2/3/4/5/6/7/8/9/10/11/12/plain";
/// Credentials; some entitlement is to be in force for `HELD`, none for `DENIED`, one that has expired and is only monitored for
/// `MONITORED`.
pub const HELD: &str = "/srv/b/held";
/// As above.
pub const DENIED: &str = "/srv/b/denied";
/// As above.
pub const MONITORED: &str = "/srv/b/monitored";

/// What is done by one process, in this order.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Set {
    /// A process that has nothing to do with any credential.
    Stranger,
    /// The same in no unit, session or container.
    Loner,
    /// One that is refused.
    Refused,
    /// One whose uses are only recorded.
    Monitored,
    /// One that is entitled, and holds from its first read on.
    Holder,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Stranger,
        Self::Loner,
        Self::Refused,
        Self::Monitored,
        Self::Holder,
    ];

    /// The unit that it is in, if it is in one.
    fn unit(self) -> Option<String> {
        match self {
            Self::Loner => None,
            _ => Some(format!("bench-{self:?}.service").to_lowercase()),
        }
    }

    /// The program that it is a process of.
    pub fn program(self) -> &'static str {
        match self {
            Self::Stranger | Self::Loner => "/opt/b/stranger",
            Self::Refused => "/opt/b/refused",
            Self::Monitored => "/opt/b/monitored",
            Self::Holder => "/opt/b/holder",
        }
    }
}

/// Does a set, each operation so many times, and prints a line for each: its name, a tab, the median in nanoseconds.
pub fn run(set: Set, times: usize, peer: SocketAddr) -> Result<()> {
    let measure = |name: &str, operation: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        println!("{name}\t{}", median(times, operation)?);
        Ok(())
    };
    if let Some(unit) = set.unit() {
        fs::write(
            format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs"),
            "0",
        )
        .with_context(|| format!("cannot join {unit}"))?;
    }
    match set {
        Set::Stranger => {
            measure("open, unprotected", &mut || open(PLAIN))?;
            measure("open, unprotected, 12 directories down", &mut || open(DEEP))?;
            let file = File::options().read(true).write(true).open(PLAIN)?;
            let mut byte = [0];
            measure("read, unprotected", &mut || {
                Ok(file.read_exact_at(&mut byte, 0)?)
            })?;
            measure(
                "write, unprotected",
                &mut || Ok(file.write_all_at(b"n", 0)?),
            )?;
            network("non-holder", peer, &measure)?;
            measure("fork, exec and exit", &mut fork_and_exec)?;
            measure("fork and exit", &mut fork)
        }
        Set::Loner => network("non-holder in no unit", peer, &measure),
        Set::Refused => measure("open, protected, denied", &mut || {
            // Without a daemon it works; with one, the runner has seen that it does not.
            drop(File::open(DENIED));
            Ok(())
        }),
        Set::Monitored => measure("open, protected, monitored", &mut || open(MONITORED)),
        Set::Holder => {
            measure("open, protected, allowed", &mut || open(HELD))?;
            let file = File::open(HELD)?;
            let mut byte = [0];
            measure("read, protected, allowed", &mut || {
                Ok(file.read_exact_at(&mut byte, 0)?)
            })?;
            network("holder", peer, &measure)
        }
    }
}

type Measure<'a> = dyn Fn(&str, &mut dyn FnMut() -> Result<()>) -> Result<()> + 'a;

fn network(who: &str, peer: SocketAddr, measure: &Measure<'_>) -> Result<()> {
    let connect = || TcpStream::connect(peer).with_context(|| format!("cannot connect to {peer}"));
    measure(&format!("TCP connect and close, {who}"), &mut || {
        connect().map(drop)
    })?;
    let mut stream = connect()?;
    stream.set_nodelay(true)?;
    // Nobody reads; so much has room on the way.
    measure(&format!("TCP send of 16 bytes, {who}"), &mut || {
        Ok(stream.write_all(&[0; 16])?)
    })?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    measure(&format!("UDP send, {who}"), &mut || {
        socket.send_to(&[0; 16], peer)?;
        Ok(())
    })
}

fn open(path: &str) -> Result<()> {
    File::open(path)
        .map(drop)
        .with_context(|| format!("cannot open {path}"))
}

fn fork() -> Result<()> {
    // SAFETY: the child does nothing but end; this process has one thread.
    match unsafe { unistd::fork() }? {
        // SAFETY: ends the process at once.
        ForkResult::Child => unsafe { libc::_exit(0) },
        ForkResult::Parent { child } => ended(wait::waitpid(child, None)?),
    }
}

fn fork_and_exec() -> Result<()> {
    // SAFETY: the child calls nothing but exec and exit; this process has one thread.
    match unsafe { unistd::fork() }? {
        ForkResult::Child => {
            let _ = unistd::execv(c"/opt/b/nothing", &[c"nothing"]);
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(1) }
        }
        ForkResult::Parent { child } => ended(wait::waitpid(child, None)?),
    }
}

fn ended(status: WaitStatus) -> Result<()> {
    ensure!(
        matches!(status, WaitStatus::Exited(_, 0)),
        "a child ended with {status:?}"
    );
    Ok(())
}

/// The median over so many, after a few that do not count.
fn median(times: usize, operation: &mut dyn FnMut() -> Result<()>) -> Result<u64> {
    for _ in 0..times / 10 + 1 {
        operation()?;
    }
    let mut spans_ns = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        operation()?;
        spans_ns.push(u64::try_from(start.elapsed().as_nanos())?);
    }
    spans_ns.sort_unstable();
    Ok(spans_ns[times / 2])
}

/// Runs a set in a process of its program, and reads what it printed, in order.
pub fn of(set: Set, times: usize, peer: SocketAddr) -> Result<Vec<(String, u64)>> {
    use std::os::unix::process::CommandExt as _;
    let name = set.to_possible_value().context("a set without a name")?;
    let unit = set.unit();
    let _unit = unit.as_deref().map(Cgroup::unit).transpose()?;
    let output = Command::new(set.program())
        .arg0("enforcer-tests")
        .args([
            "measure",
            name.get_name(),
            &times.to_string(),
            &peer.to_string(),
        ])
        .output()
        .with_context(|| format!("cannot start {}", set.program()))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            set.program(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8(output.stdout)?;
    let line = |line: &str| {
        let (name, median) = line.split_once('\t').context("not a measurement")?;
        Ok((name.to_owned(), median.parse()?))
    };
    text.lines().map(line).collect()
}

/// Files and programs of the operations.
pub fn set_up() -> Result<()> {
    for path in [PLAIN, DEEP, HELD, DENIED, MONITORED] {
        crate::harness::write(path, "n\n")?;
    }
    for set in Set::ALL {
        crate::harness::copy_program(set.program())?;
    }
    // A program that ends at once and needs no library.
    fs::write("/opt/b/nothing", NOTHING)?;
    fs::set_permissions(
        "/opt/b/nothing",
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    Ok(())
}

/// An ELF program for x86-64 whose whole text is `exit(0)`: one loaded segment, the header and all.
const NOTHING: &[u8] = &{
    let mut elf = [0_u8; 0x84];
    let header: [u8; 0x78] = [
        0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ident
        2, 0, 0x3e, 0, 1, 0, 0, 0, // executable, x86-64
        0x78, 0, 0x40, 0, 0, 0, 0, 0, // entry
        0x40, 0, 0, 0, 0, 0, 0, 0, // program headers
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0x38, 0, 1, 0, 0, 0, 0, 0, 0, 0, //
        1, 0, 0, 0, 5, 0, 0, 0, // load, readable and executable
        0, 0, 0, 0, 0, 0, 0, 0, // offset
        0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, // addresses
        0x84, 0, 0, 0, 0, 0, 0, 0, 0x84, 0, 0, 0, 0, 0, 0, 0, // sizes
        0, 0x10, 0, 0, 0, 0, 0, 0, // alignment
    ];
    let text: [u8; 9] = [
        0x31, 0xff, // xor edi, edi
        0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
        0x0f, 0x05, // syscall
    ];
    let mut at = 0;
    while at < header.len() {
        elf[at] = header[at];
        at += 1;
    }
    at = 0;
    while at < text.len() {
        elf[header.len() + at] = text[at];
        at += 1;
    }
    elf
};
