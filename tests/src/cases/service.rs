//! The daemon under a service manager: what it tells it, and what a reload changes.

use std::{
    fs::{self, File},
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;

use super::{Scene, cases, entitled, other, room::LARGE};
use crate::harness::{
    Bundle,
    daemon::{clean_up, enforcer, enforcer_json},
    wait_for, write,
};

cases![
    service_manager_is_told,
    reload_changes_what_it_can,
    more_files_than_ordinary_tables_hold,
];

const KEY: &str = "/srv/t/key";
const DIRECTORY: &str = "/run/enforcer-service";
const SOCKET: &str = "/run/enforcer-service/enforcer.sock";
const NOTIFY: &str = "/run/enforcer-service/notify";
const CONFIG: &str = "/etc/enforcer/service.yaml";
const LOG: &str = "/var/log/enforcer/service.log";

/// What the service manager says of its watchdog: 30 s, as in the unit.
const WATCHDOG_USEC: &str = "30000000";

/// In emulation, loading the programs takes the better part of a minute.
const STARTED_BY: Duration = Duration::from_secs(180);

/// What the unit lets the daemon have.
const UNIT: &str = include_str!("../../../deploy/systemd/enforcer.service");
/// The kernel's numbers of the capabilities that the unit names.
const CAPABILITIES: [(&str, libc::c_ulong); 8] = [
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_KILL", 5),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// The capabilities that the unit takes from the daemon.
fn taken() -> Result<Vec<libc::c_ulong>> {
    let words = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("the unit bounds no capabilities")?;
    let mut taken: Vec<libc::c_ulong> = (0..=40).collect();
    for word in words.split(' ') {
        let known = CAPABILITIES.iter().find(|(name, _)| *name == word);
        let (_, number) =
            known.with_context(|| format!("the number of {word} is not known here"))?;
        taken.retain(|it| it != number);
    }
    Ok(taken)
}

/// A daemon with the unit's capabilities, and a socket for what it tells.
struct Service {
    child: Child,
    told: UnixDatagram,
}

impl Service {
    fn start(scene: &mut Scene) -> Result<Self> {
        scene.off()?;
        fs::create_dir_all(DIRECTORY)?;
        fs::create_dir_all("/var/log/enforcer")?;
        let _ = fs::remove_file(NOTIFY);
        let told = UnixDatagram::bind(NOTIFY).context("cannot listen for what it tells")?;
        told.set_read_timeout(Some(STARTED_BY))?;
        let mut command = Command::new("enforcer");
        command
            .args(["run", "--config", CONFIG, "--socket", SOCKET])
            .env("NOTIFY_SOCKET", NOTIFY)
            .env("WATCHDOG_USEC", WATCHDOG_USEC)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(LOG)?);
        let taken = taken()?;
        let give_up = move || {
            for capability in &taken {
                // SAFETY: takes numbers only; of a capability that the kernel does not know it says so.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *capability, 0, 0, 0) };
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls, and nothing else.
        unsafe { command.pre_exec(give_up) };
        let child = command.spawn().context("cannot start the daemon")?;
        Ok(Self { child, told })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .context("the daemon has gone")
    }

    /// The next message, its lines.
    fn next(&self) -> Result<Vec<String>> {
        let mut bytes = [0; 4096];
        let length =
            (self.told.recv(&mut bytes)).with_context(|| format!("it tells nothing; {}", log()))?;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Everything up to a line with this beginning.
    fn until(&self, start: &str) -> Result<Vec<String>> {
        let end = Instant::now() + STARTED_BY;
        let mut all = Vec::new();
        loop {
            let lines = self
                .next()
                .with_context(|| format!("no {start}, only {all:?}"))?;
            let found = lines.iter().any(|line| line.starts_with(start));
            all.extend(lines);
            if found {
                return Ok(all);
            }
            ensure!(Instant::now() < end, "no {start}, only {all:?}; {}", log());
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Err(error) = clean_up() {
            eprintln!("enforcer-tests: {error:#}");
        }
    }
}

fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

fn status() -> Result<Value> {
    enforcer_json(&["status", "-o", "json", "--socket", SOCKET])
}

/// Whether a probe of this kind says yes.
fn probe(kind: &str) -> Result<bool> {
    Ok(enforcer(&["status", kind, "--socket", SOCKET])?
        .status
        .success())
}

/// Writes a bundle. The result is its version.
fn give(path: &str, entitled: bool) -> Result<u64> {
    let mut bundle = Bundle::default()
        .file("key", KEY)
        .workload("app", "executable: {path: /opt/t/entitled}");
    if entitled {
        bundle = bundle.entitlement("E-key", "app", "key", "destinations: none");
    }
    let (version, head) = crate::bundle::head();
    write(path, &format!("{head}{}", bundle.text()))?;
    Ok(version)
}

fn service_manager_is_told(scene: &mut Scene) -> Result<()> {
    let bundle = "/etc/enforcer/service-bundle.yaml";
    let version = give(bundle, true)?;
    write(CONFIG, &format!("bundle: {bundle}\n"))?;
    let service = Service::start(scene)?;

    let before = service.until("READY=1")?;
    let state = status()?["state"].as_str().unwrap_or_default().to_owned();
    ensure!(state.starts_with("enforcing/"), "ready, and {state}");
    let expected = format!("STATUS={state}, bundle version {version}");
    ensure!(
        before.contains(&expected),
        "no {expected:?} before READY: {before:?}"
    );
    let outcome = other().run([format!("read {KEY}")])?;
    ensure!(
        outcome.last()?.errno == libc::EPERM,
        "ready, and {outcome:?}"
    );
    ensure!(
        probe("--ready")? && probe("--live")?,
        "ready, and a probe says no"
    );
    for _ in 0..3 {
        service.until("WATCHDOG=1")?;
    }

    service.signal(Signal::SIGHUP)?;
    let reload = service.until("RELOADING=1")?;
    let since = reload
        .iter()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    let since: u64 = since.context("no MONOTONIC_USEC with RELOADING")?.parse()?;
    ensure!(since > 0);
    service.until("READY=1")?;

    // What is refused is in the status that people read.
    write(bundle, "kind: Nonsense\n")?;
    service.signal(Signal::SIGHUP)?;
    let after = service.until("STATUS=")?;
    let said = after.iter().find(|line| line.starts_with("STATUS="));
    ensure!(
        said.is_some_and(|line| line.contains("kind")),
        "it said {after:?}"
    );

    // One that has ended is in force, and not ready.
    let (_, head) = crate::bundle::head();
    let head = head.replace(
        "issuer: tests",
        "issuer: tests, expiresAt: 2026-01-01T00:00:00Z",
    );
    write(bundle, &head)?;
    service.signal(Signal::SIGHUP)?;
    wait_for("a stale bundle", || {
        (status().ok()?["stale"] == true).then_some(())
    })?;
    ensure!(
        !probe("--ready")? && probe("--live")?,
        "stale, and {}",
        status()?
    );

    service.signal(Signal::SIGTERM)?;
    service.until("STOPPING=1")?;
    Ok(())
}

fn reload_changes_what_it_can(scene: &mut Scene) -> Result<()> {
    let (first, second) = ("/etc/enforcer/first.yaml", "/etc/enforcer/second.yaml");
    give(first, true)?;
    let version = give(second, false)?;
    let events = "/var/log/enforcer/service-events.jsonl";
    let configure = |bundle: &str, rest: &str| {
        write(
            CONFIG,
            &format!("bundle: {bundle}\neventLog: {events}\n{rest}"),
        )
    };
    configure(first, "")?;
    let service = Service::start(scene)?;
    service.until("READY=1")?;
    let read = format!("read {KEY}");
    let allowed = |expected: bool| -> Result<()> {
        let outcome = entitled().run([&read])?;
        ensure!((outcome.last()?.errno == 0) == expected, "{outcome:?}");
        Ok(())
    };
    allowed(true)?;

    // Refused whole: the other bundle in it does not count either.
    configure(second, "teir: lsm\n")?;
    service.signal(Signal::SIGHUP)?;
    let mistake = format!("{CONFIG}:3:1: teir: unknown setting");
    wait_for("the refusal", || log().contains(&mistake).then_some(()))?;
    allowed(true)?;

    // One setting can change, the other cannot; and the moved event log is written anew.
    fs::rename(events, format!("{events}.1"))?;
    configure(second, "holders: 4096\n")?;
    service.signal(Signal::SIGHUP)?;
    wait_for("the other bundle", || {
        (status().ok()?["bundle"]["version"] == version).then_some(())
    })?;
    allowed(false)?;
    let said = log();
    let line = said.lines().find(|line| line.contains("holders"));
    ensure!(
        line.is_some_and(|line| line.contains("counts from the next start on")),
        "of `holders` it said {line:?}"
    );
    wait_for("an event in the new log", || {
        let text = fs::read_to_string(events).ok()?;
        text.contains("\"deny\"").then_some(())
    })
}

/// Files that appear are not in any bundle: the daemon sees that its tables are half full, and starts again. The service
/// manager's watchdog waits for so long.
fn more_files_than_ordinary_tables_hold(scene: &mut Scene) -> Result<()> {
    const MANY: &str = "/srv/t/many";
    const COUNT: usize = 4200;
    if fs::exists(LARGE)? {
        fs::remove_file(LARGE)?;
    }
    fs::create_dir_all(MANY)?;
    let bundle = "/etc/enforcer/service-bundle.yaml";
    let parts =
        Bundle::default().credential(&format!("id: many, sources: [{{directory: {MANY}}}]"));
    let (_, head) = crate::bundle::head();
    write(bundle, &format!("{head}{}", parts.text()))?;
    write(CONFIG, &format!("bundle: {bundle}\n"))?;
    let service = Service::start(scene)?;
    service.until("READY=1")?;
    if status()?["room"] == "large" {
        ensure!(
            status()?["tier"] == "fanotify",
            "large tables from the start"
        );
        return Ok(fs::remove_dir_all(MANY)?);
    }
    for number in 0..COUNT {
        fs::write(format!("{MANY}/{number}"), "the secret itself\n")?;
    }
    let again = service.until("RELOADING=1")?;
    ensure!(
        again.contains(&"WATCHDOG_USEC=180000000".to_owned()),
        "the watchdog is not told to wait: {again:?}"
    );
    let ready = service.until("READY=1")?;
    ensure!(
        ready.contains(&format!("WATCHDOG_USEC={WATCHDOG_USEC}")),
        "the watchdog is not told to wait no longer: {ready:?}"
    );
    ensure!(status()?["room"] == "large", "the status is {}", status()?);
    for number in [0, COUNT / 2, COUNT - 1] {
        let outcome = other().run([format!("read {MANY}/{number}")])?;
        ensure!(
            outcome.last()?.errno == libc::EPERM,
            "file {number}: {outcome:?}"
        );
    }
    drop(service);
    fs::remove_dir_all(MANY)?;
    Ok(fs::remove_file(LARGE)?)
}
