//! The tier without hooks: reads are gated by permission events, which the daemon answers. Its own daemon, on
//! its own socket, whatever tier the other cases run on.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{self, MntFlags, MsFlags},
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::Value;

use super::{Scene, cases, entitled, other};
use crate::harness::{
    Actor, Bundle, Outcome, PROGRAMS,
    daemon::{clean_up, enforcer, enforcer_json},
    events::Events,
    wait_for, write,
};

cases![
    waiting_readers_go_on_when_the_daemon_dies,
    many_gated_opens,
    own_opens_do_not_wait,
    new_files_in_watched_directories,
    new_directory_a_moment_later,
    moved_away_and_waited,
    secret_volume_swapped,
    writing_is_not_reading,
    killed_at_the_read,
    what_is_sent_is_told,
    status_is_honest,
];

const DIRECTORY: &str = "/srv/t/fanotify";
const SOCKET: &str = "/run/enforcer-fanotify/enforcer.sock";
const BUNDLE: &str = "/etc/enforcer/fanotify.yaml";
/// Longer than the daemon takes to look at everything again.
const RECONCILED: Duration = Duration::from_secs(12);

/// A daemon on this tier.
struct Gated {
    child: Child,
    events: Events,
}

impl Gated {
    fn start(scene: &mut Scene, bundle: &Bundle) -> Result<Self> {
        // Two daemons would both be right, and nobody could tell whose answer it was.
        scene.off()?;
        let (_, head) = crate::bundle::head();
        write(BUNDLE, &format!("{head}{}", bundle.text()))?;
        let mut child = Command::new("enforcer")
            .args(["run", "--tier", "fanotify", "--bundle", BUNDLE])
            .args(["--socket", SOCKET])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the daemon")?;
        let events = Events::follow(child.stdout.take().context("no standard output")?);
        let gated = Self { child, events };
        let output = enforcer(&["status", "--wait", "60s", "--socket", SOCKET])?;
        ensure!(
            output.status.success(),
            "the daemon does not enforce: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        ensure!(status()?["state"] == "enforcing/fanotify");
        Ok(gated)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        signal::kill(pid, signal).context("the daemon has gone")
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGCONT);
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

fn status() -> Result<Value> {
    enforcer_json(&["status", "-o", "json", "--socket", SOCKET])
}

fn bundle() -> Bundle {
    Bundle::default()
        .file("key", &format!("{DIRECTORY}/key"))
        .file("globbed", &format!("{DIRECTORY}/globbed/*.key"))
        .file("deep", &format!("{DIRECTORY}/deep/**/secret"))
        .credential(&format!(
            "id: volume, sources: [{{directory: {DIRECTORY}/volume}}]"
        ))
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E-key", "app", "key", "destinations: none")
        .entitlement("E-globbed", "app", "globbed", "destinations: none")
        .entitlement("E-deep", "app", "deep", "destinations: none")
        .entitlement("E-volume", "app", "volume", "destinations: none")
}

/// The daemon on the bundle of most of these cases, and its files as they were.
fn gated(scene: &mut Scene) -> Result<Gated> {
    let _ = fs::remove_dir_all(DIRECTORY);
    for file in ["key", "globbed/first.key", "deep/a/secret", "volume/plain"] {
        write(format!("{DIRECTORY}/{file}"), "the secret itself\n")?;
    }
    Gated::start(scene, &bundle())
}

fn read_by(actor: &Actor, path: &str) -> Result<Outcome> {
    actor.run([format!("read {path}")])
}

fn refused(path: &str) -> Result<()> {
    let outcome = read_by(&other(), path)?;
    let step = outcome.last()?;
    ensure!(
        step.errno == libc::EPERM && step.read == 0,
        "a reader without an entitlement got {step:?}"
    );
    Ok(())
}

fn allowed(actor: &Actor, path: &str) -> Result<()> {
    let outcome = read_by(actor, path)?;
    let step = outcome.last()?;
    ensure!(
        step.errno == 0 && step.read > 0,
        "{actor:?} reading {path} got {step:?}"
    );
    Ok(())
}

/// As docs/limits.md says: this tier fails open.
fn waiting_readers_go_on_when_the_daemon_dies(scene: &mut Scene) -> Result<()> {
    let mut daemon = gated(scene)?;
    let key = format!("{DIRECTORY}/key");
    refused(&key)?;
    let said = status()?["notCovered"].to_string();
    ensure!(
        said.contains("while no daemon answers"),
        "status says {said}"
    );
    daemon.signal(Signal::SIGSTOP)?;
    let reader = other().start([format!("read {key}")])?;
    thread::sleep(Duration::from_millis(500));
    ensure!(
        is_alive(reader.pid()),
        "a reader did not wait for the answer"
    );
    daemon.child.kill()?;
    daemon.child.wait()?;
    let outcome = reader.finish()?;
    let step = outcome.last()?;
    ensure!(
        step.errno == 0 && step.read > 0,
        "the reader that waited when the daemon died got {step:?}; docs/limits.md says that it goes on"
    );
    allowed(&other(), &key).context("nobody gates any more")?;
    drop(daemon);
    // The next one gates again.
    let _daemon = Gated::start(scene, &bundle())?;
    refused(&key)
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|it| it.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

fn many_gated_opens(scene: &mut Scene) -> Result<()> {
    let opens = if scene.brief { 1_000 } else { 10_000 };
    let _daemon = gated(scene)?;
    let key = format!("{DIRECTORY}/key");
    let start = Instant::now();
    for number in 0..opens {
        match File::open(&key) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => bail!("open {number} came to {other:?}"),
        }
    }
    let each = start.elapsed() / opens;
    println!("  {opens} refused opens, {} us each", each.as_micros());
    let status = status()?;
    ensure!(status["readGate"]["unclear"] == 0, "status says {status}");
    ensure!(
        status["state"] == "enforcing/fanotify",
        "status says {status}"
    );
    Ok(())
}

/// The daemon reads files that are credentials: while it scans, and even its own bundle.
fn own_opens_do_not_wait(scene: &mut Scene) -> Result<()> {
    let _ = fs::remove_dir_all(DIRECTORY);
    write(format!("{DIRECTORY}/key"), "the secret itself\n")?;
    let mut bundle = bundle().file("bundle", BUNDLE);
    for number in 0..200 {
        write(format!("{DIRECTORY}/many/{number}"), "a secret\n")?;
    }
    bundle = bundle.file("many", &format!("{DIRECTORY}/many/*"));
    let daemon = Gated::start(scene, &bundle)?;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = other().start([format!("hammer {DIRECTORY}/many/7 100")])?;
        reader.until("hammering")?;
        readers.push(reader);
    }
    for _ in 0..10 {
        daemon.signal(Signal::SIGHUP)?;
        thread::sleep(Duration::from_millis(50));
        ensure!(status()?["state"] == "enforcing/fanotify");
    }
    for reader in readers {
        let outcome = reader.finish()?;
        let step = outcome.last()?;
        ensure!(
            step.count("refused") > 0 && step.count("opened") == 0 && step.count("other") == 0,
            "a reader got {step:?}"
        );
    }
    Ok(())
}

fn new_files_in_watched_directories(scene: &mut Scene) -> Result<()> {
    let _daemon = gated(scene)?;
    for round in 0..20 {
        let created = format!("{DIRECTORY}/globbed/created-{round}.key");
        write(&created, "a new secret\n")?;
        refused(&created).with_context(|| created.clone())?;
        let moved = format!("{DIRECTORY}/globbed/moved-{round}.key");
        write(format!("{DIRECTORY}/aside"), "a new secret\n")?;
        fs::rename(format!("{DIRECTORY}/aside"), &moved)?;
        refused(&moved).with_context(|| moved.clone())?;
        // Known by its inode from its first open on.
        let away = format!("{DIRECTORY}/away-{round}");
        fs::rename(&created, &away)?;
        refused(&away).with_context(|| away.clone())?;
        allowed(&entitled(), &moved)?;
    }
    write(format!("{DIRECTORY}/globbed/notes.txt"), "no secret\n")?;
    allowed(&other(), &format!("{DIRECTORY}/globbed/notes.txt"))
}

/// Not without a window, as docs/limits.md says.
fn new_directory_a_moment_later(scene: &mut Scene) -> Result<()> {
    let _daemon = gated(scene)?;
    let path = format!("{DIRECTORY}/deep/b/c/secret");
    write(&path, "a new secret\n")?;
    let start = Instant::now();
    wait_for("the file in the new directory to be gated", || {
        refused(&path).ok()
    })?;
    let took = start.elapsed();
    println!("  gated {} ms after it was there", took.as_millis());
    allowed(&entitled(), &path)?;
    // In place by then, however busy the machine is, so that the next one has no window.
    let next = format!("{DIRECTORY}/deep/b/c/d");
    fs::create_dir(&next)?;
    thread::sleep(Duration::from_millis(500) + 20 * took);
    write(format!("{next}/secret"), "a new secret\n")?;
    refused(&format!("{next}/secret"))
}

fn moved_away_and_waited(scene: &mut Scene) -> Result<()> {
    let _daemon = gated(scene)?;
    let away = format!("{DIRECTORY}/away");
    fs::rename(format!("{DIRECTORY}/globbed/first.key"), &away)?;
    refused(&away)?;
    thread::sleep(RECONCILED);
    refused(&away).context("after the daemon looked at everything again")
}

/// Kubernetes writes a secret volume so: a new directory, a link to it, renamed over the old one.
fn secret_volume_swapped(scene: &mut Scene) -> Result<()> {
    let _ = fs::remove_dir_all(DIRECTORY);
    let volume = format!("{DIRECTORY}/volume");
    fs::create_dir_all(&volume)?;
    mount::mount(
        Some("tmpfs"),
        volume.as_str(),
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context("cannot mount a volume")?;
    let result = swap_volume(scene, &volume);
    mount::umount2(volume.as_str(), MntFlags::MNT_DETACH)?;
    result
}

fn swap_volume(scene: &mut Scene, volume: &str) -> Result<()> {
    let swap = |round: u32| -> Result<()> {
        write(format!("{volume}/..{round}/token"), "a secret\n")?;
        symlink(format!("..{round}"), format!("{volume}/..data.new"))?;
        fs::rename(format!("{volume}/..data.new"), format!("{volume}/..data"))?;
        Ok(())
    };
    swap(0)?;
    symlink("..data/token", format!("{volume}/token"))?;
    let _daemon = Gated::start(scene, &bundle())?;
    let token = format!("{volume}/token");
    for round in 1..20 {
        refused(&token).with_context(|| format!("before swap {round}"))?;
        swap(round)?;
        // At once: nobody has told the daemon yet.
        ensure!(
            File::open(&token).is_err_and(|it| it.raw_os_error() == Some(libc::EPERM)),
            "the new file was readable after swap {round}"
        );
        allowed(&entitled(), &token)?;
        fs::remove_dir_all(format!("{volume}/..{}", round - 1))?;
    }
    Ok(())
}

fn writing_is_not_reading(scene: &mut Scene) -> Result<()> {
    let _daemon = gated(scene)?;
    let said = status()?["notCovered"].to_string();
    if said.contains("opening for writing counts as reading") {
        bail!(crate::harness::Skipped(
            "this kernel does not show how a file is opened".to_owned()
        ));
    }
    let key = format!("{DIRECTORY}/key");
    let mut file = File::options().append(true).open(&key)?;
    file.write_all(b"more\n")?;
    let both = File::options().read(true).write(true).open(&key);
    ensure!(
        both.is_err_and(|it| it.raw_os_error() == Some(libc::EPERM)),
        "opened for both"
    );
    refused(&key)
}

fn killed_at_the_read(scene: &mut Scene) -> Result<()> {
    let _ = fs::remove_dir_all(DIRECTORY);
    let key = format!("{DIRECTORY}/key");
    write(&key, "the secret itself\n")?;
    let bundle = Bundle::default()
        .front("defaults: {action: kill}\n")
        .file("key", &key);
    let daemon = Gated::start(scene, &bundle)?;
    let outcome = read_by(&other(), &key)?;
    ensure!(outcome.was_killed(), "it ended with {}", outcome.status);
    let event = wait_for("the event", || {
        daemon
            .events
            .find(|event| event.pid() == u64::from(outcome.pid) && event.is_denial())
    })?;
    ensure!(event.action_taken() == "kill", "the event is {event:?}");
    Ok(())
}

/// No hook tells what a holder sends.
fn what_is_sent_is_told(scene: &mut Scene) -> Result<()> {
    let _ = fs::remove_dir_all(DIRECTORY);
    let (key, watched) = (format!("{DIRECTORY}/key"), format!("{DIRECTORY}/watched"));
    write(&key, "the secret itself\n")?;
    write(&watched, "the secret itself\n")?;
    let destinations = "destinations: [{cidr: 10.20.0.2, ports: [9000]}]";
    let bundle = Bundle::default()
        .file("key", &key)
        .file("watched", &watched)
        .workload("app", &format!("executable: {{path: {PROGRAMS}/entitled}}"))
        .entitlement("E-key", "app", "key", destinations)
        .entitlement(
            "E-watched",
            "app",
            "watched",
            &format!("{destinations}, mode: monitor"),
        );
    let daemon = Gated::start(scene, &bundle)?;
    let (tcp, udp) = ("tcp 10.20.0.2:9000", "udp 10.20.0.2:9000");
    let read = format!("read {key}");
    let outcome = entitled().run([read.as_str(), tcp, tcp, udp, udp, udp])?;
    ensure!(
        outcome.steps.iter().all(|step| step.errno == 0),
        "who is entitled saw {outcome:?}"
    );
    wait_for("a read and five sends to be counted", || {
        let asked = [
            "usage",
            "--entitlement",
            "E-key",
            "-o",
            "json",
            "--socket",
            SOCKET,
        ];
        let usage = enforcer_json(&asked).ok()?;
        (usage["entitlements"][0]["used"]["count"] == 6).then_some(())
    })?;

    let read = format!("read {watched}");
    let outcome = entitled().run([read.as_str(), "tcp 10.20.0.66:9000", "udp 10.20.0.66:9000"])?;
    ensure!(
        outcome.steps.iter().all(|step| step.errno == 0),
        "who is only watched saw {outcome:?}"
    );
    for protocol in ["tcp", "udp"] {
        wait_for("the record of what would have been refused", || {
            daemon.events.find(|event| {
                event.pid() == u64::from(outcome.pid)
                    && event.reason() == "outside-destination"
                    && event.0["destination"]["protocol"] == protocol
                    && event.0["mode"]["effective"] == "monitor"
                    && event.action_taken() != "block"
            })
        })
        .with_context(|| {
            format!(
                "{protocol}: the events are {:?}",
                daemon.events.of(outcome.pid)
            )
        })?;
    }
    Ok(())
}

fn status_is_honest(scene: &mut Scene) -> Result<()> {
    let _daemon = gated(scene)?;
    let status = status()?;
    let marks = &status["readGate"]["marks"];
    ensure!(
        marks["wanted"].as_u64() > Some(3) && marks["wanted"] == marks["effective"],
        "status says {status}"
    );
    let kernel = &status["readGate"]["kernel"];
    let said = status["notCovered"].to_string();
    for (ability, words) in [
        ("olderDescriptor", "older than its mark"),
        ("throughOverlay", "through an overlay"),
    ] {
        let there = kernel[ability] == true;
        ensure!(
            there != said.contains(words),
            "{ability} is {}, and what is not covered is {said}",
            kernel[ability]
        );
    }
    println!("  this kernel: {kernel}");
    Ok(())
}
