//! What a large bundle costs, and what the programs cost in the kernel.

use std::{
    fs,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{self, MsFlags};

use crate::{
    actor::PAYLOAD,
    bpf,
    harness::{Bundle, Daemon, Outside, daemon, write},
    peer,
};

const DIRECTORY: &str = "/srv/load";
/// Under this name the measuring program itself is entitled.
const SELF: &str = "/usr/bin/enforcer-tests";

/// Measures with `size` credentials and entitlements, and `operations` of each kind.
pub fn run(size: usize, operations: usize) -> Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    mount::mount(
        Some("tmpfs"),
        DIRECTORY,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context("cannot mount a tmpfs")?;
    // It looks at the daemon's programs.
    let mut bundle = Bundle::default()
        .maintained_by(SELF)
        .workload("app", &format!("executable: {{path: {SELF}}}"));
    for number in 0..size {
        let path = format!("{DIRECTORY}/{}/key-{number}", number % 100);
        write(&path, "a secret\n")?;
        bundle = bundle.file(&format!("key-{number}"), &path).entitlement(
            &format!("ENT-{number}"),
            "app",
            &format!("key-{number}"),
            &format!(
                "destinations: [{{cidr: 10.20.0.2, ports: [9000]}}, {{cidr: 10.{}.{}.0/24, ports: [443]}}]",
                30 + number / 250,
                number % 250
            ),
        );
    }
    write(format!("{DIRECTORY}/plain"), "no secret\n")?;
    let _outside = Outside::start()?;
    let (maps, before) = bpf::map_bytes()?;
    println!("before: {maps} maps, {:.1} MiB", mib(before));
    let start = Instant::now();
    let daemon = Daemon::start(&bundle, &[])?;
    println!(
        "{size} credentials and {size} entitlements in force after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let (maps, bytes) = bpf::map_bytes()?;
    println!(
        "maps: {maps}, {:.1} MiB as the kernel counts it",
        mib(bytes)
    );
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    for line in status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
    {
        println!("daemon: {line}");
    }

    fs::write("/proc/sys/kernel/bpf_stats_enabled", "1").context("cannot count the runs")?;
    let allowed: SocketAddr = peer::ALLOWED.parse()?;
    let plain = format!("{DIRECTORY}/plain");
    let connect = move |_| drop(TcpStream::connect(allowed));
    measure("unprotected open", operations, |_| {
        drop(fs::File::open(&plain))
    })?;
    measure("connect by a non-holder", operations, connect)?;
    datagrams("datagram by a non-holder", operations, allowed)?;
    // From here on this process holds.
    let path = |number: usize| format!("{DIRECTORY}/0/key-{}", number % 4 * 100);
    ensure!(
        fs::read(path(0)).is_ok(),
        "this program is not entitled to read {}",
        path(0)
    );
    measure("protected open, allowed", operations, |number| {
        drop(fs::File::open(path(number)))
    })?;
    measure("connect by a holder", operations, connect)?;
    datagrams("datagram by a holder", operations, allowed)?;

    let start = Instant::now();
    let mut daemon = daemon;
    daemon.swap(&bundle.entitlement("ENT-last", "app", "key-0", "destinations: none"))?;
    println!(
        "one entitlement more in force after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    println!("events: {}; {}", daemon.events.total(), daemon::status()?);
    daemon.stop()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn datagrams(what: &str, operations: usize, to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    measure(what, operations, |_| drop(socket.send_to(PAYLOAD, to)))
}

/// Does it so many times, and prints which programs ran how often, and how long each time.
fn measure(what: &str, operations: usize, mut operation: impl FnMut(usize)) -> Result<()> {
    let before = bpf::programs()?;
    let start = Instant::now();
    (0..operations).for_each(&mut operation);
    let elapsed = start.elapsed() / u32::try_from(operations)?;
    // The packets of the last ones.
    std::thread::sleep(Duration::from_millis(100));
    println!("{what}: {} ns each over {operations}", elapsed.as_nanos());
    for (name, after) in bpf::programs()? {
        let before = before.get(&name).copied().unwrap_or_default();
        let (count, time_ns) = (after.count - before.count, after.time_ns - before.time_ns);
        // Others do something now and then, too.
        if count >= operations as u64 / 2 {
            println!(
                "  {name:<20} {:>6.1} runs each, {:>6} ns a run",
                count as f64 / operations as f64,
                time_ns / count
            );
        }
    }
    Ok(())
}
