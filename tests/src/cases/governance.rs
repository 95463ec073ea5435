//! What governance says is so in the kernel: at once, for a time, and without it.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use enforcer_common::capacity;
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;

use super::{
    Scene, cases,
    clock::Stepped,
    entitled, other,
    restart::ANOTHER_BUILD,
    room::{LARGE, STARTED_AGAIN_BY, with_many_units},
};
use crate::{
    bench::scale,
    harness::{
        Allowed, Bundle, Refused, check,
        daemon::{status, version_in_force},
        governance::{Governance, URL, connected, revoked},
        spread, wait_for, wait_so_long, write,
    },
    peer,
};

cases![
    revocation_stops_what_is_open,
    grants_end_by_themselves,
    stale_entitlements_end,
    what_does_not_fit_is_refused,
    older_state_is_refused,
    older_state_is_refused_by_another_build,
    a_day_without_the_server,
    evidence_survives_kills,
];

const KEY: &str = "read /srv/t/key";
const HOME: &str = "tcp 10.20.0.2:9000";
const ENTITLED: &str = "executable: {path: /opt/t/entitled}";
const TO_HOME: &str = "destinations: [{cidr: 10.20.0.2, ports: [9000]}]";

/// One key, with an entitlement to it.
fn bundle(rest: &str) -> Bundle {
    Bundle::default()
        .file("key", "/srv/t/key")
        .workload("app", ENTITLED)
        .entitlement("E-key", "app", "key", &format!("{TO_HOME}{rest}"))
}

/// The scene with a server, and a daemon that follows it.
fn governed(scene: &mut Scene, bundle: &Bundle, freshness: &str) -> Result<Governance> {
    scene.off()?;
    let governance = Governance::start(bundle, freshness)?;
    scene.daemon = Some(governance.daemon()?);
    Ok(governance)
}

fn revocation_stops_what_is_open(scene: &mut Scene) -> Result<()> {
    const TWIN: &str = "read /srv/t/twin-key";
    write("/srv/t/twin-key", "another secret\n")?;
    let bundle = bundle("").file("twin", "/srv/t/twin-key");
    let bundle = bundle.entitlement("E-twin", "app", "twin", TO_HOME);
    let governance = governed(scene, &bundle, "5m")?;
    scene.check(&entitled(), &[(KEY, Allowed), (HOME, Allowed)])?;
    scene.check(&other(), &[(KEY, Refused("wrong-executable"))])?;
    let mut holder = entitled().start([
        "hold /srv/t/key",
        "pread-held",
        "dial 10.20.0.2:9000",
        "send",
        "pause",
        "pread-held",
        "send",
        KEY,
        HOME,
    ])?;
    holder.until("paused")?;
    let generation = generation()?;
    governance.ask(&["revoke", "E-key", "--reason", "a test", "--ticket", "T-1"])?;
    revoked(1)?;
    ensure!(
        self::generation()? == generation,
        "the whole bundle was put in force again, which takes as long as it is large"
    );
    let before = scene.outside.counts()?;
    holder.go_on()?;
    let outcome = holder.finish()?;
    let refused = Refused("revoked");
    let skip = outcome.steps.len().saturating_sub(4);
    let expected = [
        ("pread-held", refused),
        ("send", refused),
        (KEY, refused),
        (HOME, refused),
    ];
    scene.compare(&before, &outcome, skip, &expected)?;
    scene.check(&entitled(), &[(TWIN, Allowed), (HOME, Allowed)])?;

    // Once all of it is compiled anew, and for the next daemon, it is the same.
    scene.daemon()?.signal(Signal::SIGHUP)?;
    wait_for("the bundle once more", || {
        (self::generation().ok()? > generation).then_some(())
    })?;
    scene.check(&entitled(), &[(KEY, refused), (TWIN, Allowed)])?;
    scene.daemon()?.hand_over_to(|| governance.daemon())?;
    scene.check(&entitled(), &[(KEY, refused), (TWIN, Allowed)])?;

    governance.ask(&["restore", "E-key", "--reason", "a test"])?;
    wait_for("what was restored", || {
        let outcome = entitled().run([KEY]).ok()?;
        (outcome.last().ok()?.errno == 0).then_some(())
    })?;
    scene.check(&entitled(), &[(KEY, Allowed), (HOME, Allowed)])?;
    scene.off()
}

/// Measures how long after the server's commit a read by an open descriptor and a send on an established connection
/// are first refused, as the kernel's clock has it, with so many entitlements beside the one that is revoked.
pub fn measure(count: usize, entitlements: usize) -> Result<bool> {
    let mut scene = Scene::set_up(false)?;
    let bundle = scale::beside(bundle(""), entitlements)?;
    let governance = governed(&mut scene, &bundle, "5m")?;
    let mut spans: [Vec<f64>; 2] = Default::default();
    for round in 1..=count {
        let steps = ["hold /srv/t/key", "dial 10.20.0.2:9000", "hammer-held 500"];
        let mut holder = entitled().start(steps)?;
        holder.until("hammering")?;
        thread::sleep(Duration::from_millis(round as u64 % 97));
        let committed = governance.commit(&["revoke", "E-key", "--reason", "a measurement"])?;
        let events = scene.daemon()?.events.clone();
        let pid = u64::from(holder.pid());
        for (kind, spans) in ["read", "reach"].into_iter().zip(&mut spans) {
            let refused = wait_for(kind, || {
                let mut of = events.of(holder.pid()).into_iter();
                of.find(|it| it.pid() == pid && it.kind() == kind && it.reason() == "revoked")
            })?;
            let at: Timestamp = refused.0["time"].as_str().unwrap_or_default().parse()?;
            spans.push(at.duration_since(committed).as_secs_f64() * 1000.0);
        }
        holder.finish()?;
        governance.ask(&["restore", "E-key", "--reason", "a measurement"])?;
        wait_for("what was restored", || {
            let outcome = entitled().run([KEY]).ok()?;
            (outcome.last().ok()?.errno == 0).then_some(())
        })?;
    }
    for (what, spans) in ["read by an open descriptor", "send on a connection"]
        .into_iter()
        .zip(spans)
    {
        println!(
            "{count} revocations beside {entitlements} entitlements, from the commit to the first refused {what}: {}",
            spread(spans)
        );
    }
    scene.off()?;
    Ok(true)
}

/// Tries over and over, and says when it was refused first.
fn first_refused(until: Timestamp) -> Result<Timestamp> {
    loop {
        let errno = entitled().run([KEY])?.last()?.errno;
        let now = Timestamp::now();
        match errno {
            libc::EPERM => return Ok(now),
            0 if now < until => thread::sleep(Duration::from_millis(100)),
            _ => anyhow::bail!("at {now} it was {}", check::name(errno)),
        }
    }
}

/// How often a bundle was put in force.
fn generation() -> Result<u64> {
    status()?["generation"]
        .as_u64()
        .context("the status has no generation")
}

fn grants_end_by_themselves(scene: &mut Scene) -> Result<()> {
    let (lasts, dies) = if scene.brief { (15, 2) } else { (60, 5) };
    let mut governance = governed(scene, &bundle(", activation: on-request"), "5m")?;
    scene.check(&entitled(), &[(KEY, Refused("no-entitlement"))])?;
    let span = format!("{lasts}s");
    let words = [
        "grant", "E-key", "--for", &span, "--reason", "a test", "--ticket", "T-2",
    ];
    let granted = governance.commit(&words)?;
    wait_for("what was granted", || {
        let outcome = entitled().run([KEY]).ok()?;
        (outcome.last().ok()?.errno == 0).then_some(())
    })?;
    let mut holder = entitled().start([KEY, HOME, "pause", HOME])?;
    holder.until("paused")?;
    while Timestamp::now() < granted + SignedDuration::from_secs(dies) {
        thread::sleep(Duration::from_millis(50));
    }
    let reads = status_tier().as_deref() != Some("fanotify");
    // Nobody is left to end it, and nobody can be asked.
    scene.daemon.take().context("no daemon")?.kill()?;
    governance.kill()?;
    peer::ip("link set lo down")?;
    let end = granted + SignedDuration::from_secs(lasts);
    let result = if reads {
        first_refused(end + SignedDuration::from_secs(5))
    } else {
        Ok(end)
    };
    peer::ip("link set lo up")?;
    let late = result?.duration_since(end);
    println!("  refused {:.2} s after the end", late.as_secs_f64());
    ensure!(
        late > SignedDuration::from_millis(-50) && late < SignedDuration::from_secs(3),
        "it was refused {late:#} after the end"
    );
    holder.go_on()?;
    let outcome = holder.finish()?;
    ensure!(outcome.last()?.errno == libc::EPERM, "{outcome:?}");
    scene.daemon = Some(governance.daemon()?);
    scene.check(&entitled(), &[(KEY, Refused("expired"))])?;
    scene.off()
}

fn stale_entitlements_end(scene: &mut Scene) -> Result<()> {
    for name in ["denied-key", "monitored-key"] {
        write(format!("/srv/t/{name}"), "the secret itself\n")?;
    }
    let bundle = bundle("")
        .file("denied", "/srv/t/denied-key")
        .file("monitored", "/srv/t/monitored-key")
        .entitlement(
            "E-denied",
            "app",
            "denied",
            &format!("{TO_HOME}, onStale: deny"),
        )
        .entitlement(
            "E-monitored",
            "app",
            "monitored",
            &format!("{TO_HOME}, onStale: monitor"),
        );
    let mut governance = governed(scene, &bundle, "5s")?;
    let (denied, monitored) = ("read /srv/t/denied-key", "read /srv/t/monitored-key");
    let fresh = [
        (KEY, Allowed),
        (denied, Allowed),
        (monitored, Allowed),
        (HOME, Allowed),
    ];
    // A statement that nothing is newer comes each second.
    scene.check(&entitled(), &fresh)?;
    thread::sleep(Duration::from_secs(7));
    scene.check(&entitled(), &fresh)?;
    governance.kill()?;
    connected(false)?;
    thread::sleep(Duration::from_secs(6));
    scene.check(&entitled(), &[(KEY, Allowed), (HOME, Allowed)])?;
    scene.check(&entitled(), &[(denied, Refused("expired"))])?;
    let outcome = entitled().run([monitored])?;
    ensure!(outcome.last()?.errno == 0, "{outcome:?}");
    let events = scene.daemon()?.events.clone();
    let pid = u64::from(outcome.pid);
    let told = wait_for("what would have been refused", || {
        events.find(|event| event.pid() == pid && event.reason() == "expired")
    })?;
    ensure!(
        told.0["mode"]["effective"] == "monitor" && told.action_taken() == "none",
        "the event is {}",
        told.0
    );
    governance.serve()?;
    connected(true)?;
    wait_for("freshness", || {
        let outcome = entitled().run([denied]).ok()?;
        (outcome.last().ok()?.errno == 0).then_some(())
    })?;
    scene.check(&entitled(), &fresh)?;
    scene.off()
}

/// A credential that is so many endpoints, from this one on.
fn endpoints(from: u32, count: u32) -> String {
    let endpoint = |number| format!("{{endpoint: \"{}:80\"}}", Ipv4Addr::from_bits(number));
    let first = Ipv4Addr::new(10, 77, 0, 0).to_bits() + from;
    let all: Vec<String> = (first..first + count).map(endpoint).collect();
    format!("id: endpoints, sources: [{}]", all.join(", "))
}

fn what_does_not_fit_is_refused(scene: &mut Scene) -> Result<()> {
    // More than half of the table of endpoints.
    let most = capacity::ENDPOINTS / 2 + 100;
    let governance = governed(scene, &bundle("").credential(&endpoints(0, most)), "5m")?;
    let version = version_in_force()?;
    // If anything of these counted, the other one could read, and the one that is entitled could not.
    let turned = || {
        Bundle::default()
            .file("key", "/srv/t/key")
            .workload("app", "executable: {path: /opt/t/other}")
            .entitlement("E-0", "app", "key", TO_HOME)
    };
    // Each of these two has few enough entitlements; whoever is both at once has not.
    let both = turned()
        .workload("outer", "cgroup: /within")
        .workload("inner", "cgroup: /within/it");
    let both = (1..=capacity::GRANTS_PER_PAIR + 1).fold(both, |bundle, number| {
        let workload = if number % 2 == 0 { "outer" } else { "inner" };
        bundle.entitlement(&format!("E-{number}"), workload, "key", TO_HOME)
    });
    let too_many = capacity::ENDPOINTS + 1;
    let beside_others = endpoints(most, most);
    for (bundle, words) in [
        (both, "expected at most 4"),
        (
            turned().credential(&endpoints(0, too_many)),
            "expected at most 1024",
        ),
        // It would fit, but not beside what is in force: that shows when it is written.
        (
            turned().credential(&beside_others),
            "cannot write to table ENDPOINTS",
        ),
    ] {
        governance.issue(&bundle)?;
        let node = wait_for(&format!("a refusal with {words:?}"), || {
            let node = governance.node_as_known().ok()?;
            node["refused"].as_str()?.contains(words).then_some(node)
        })
        .with_context(|| format!("the server knows {:?}", governance.node_as_known()))?;
        ensure!(
            node["version"] == version && version_in_force()? == version,
            "version {version} was in force, and the server knows {node}"
        );
        scene.check(&entitled(), &[(KEY, Allowed), (HOME, Allowed)])?;
        scene.check(&other(), &[(KEY, Refused("wrong-executable"))])?;
    }
    // This one fits into large tables, for which the daemon starts again.
    governance.issue(&with_many_units(turned()))?;
    wait_so_long(STARTED_AGAIN_BY, "the version that fits", || {
        let node = governance.node_as_known().ok()?;
        (node["version"].as_u64()? > version && node["refused"].is_null()).then_some(())
    })
    .with_context(|| format!("the server knows {:?}", governance.node_as_known()))?;
    let room = &status()?["room"];
    ensure!(*room == "large", "the tables are {room}");
    scene.check(&entitled(), &[(KEY, Refused("wrong-executable"))])?;
    scene.check(&other(), &[(KEY, Allowed), (HOME, Allowed)])?;
    scene.off()?;
    match fs::exists(LARGE)? {
        true => Ok(fs::remove_file(LARGE)?),
        // Large from the start on this tier.
        false => Ok(()),
    }
}

/// Copies the files of a directory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn older_state_is_refused(scene: &mut Scene) -> Result<()> {
    older_state(scene, &[])
}

fn older_state_is_refused_by_another_build(scene: &mut Scene) -> Result<()> {
    older_state(scene, ANOTHER_BUILD)
}

/// The next daemon has these options.
fn older_state(scene: &mut Scene, options: &[&str]) -> Result<()> {
    let mut governance = governed(scene, &bundle(""), "5m")?;
    let (kept, saved) = (
        governance.node().join("governance"),
        governance.path("saved"),
    );
    connected(true)?;
    wait_for("a freshness statement", || {
        let now = status().ok()?;
        now["governance"]["freshUntil"]
            .as_str()?
            .starts_with("20")
            .then_some(())
    })?;
    copy(&kept, &saved)?;
    // Then the entitlement goes.
    let without = Bundle::default()
        .file("key", "/srv/t/key")
        .workload("app", ENTITLED);
    governance.issue(&without)?;
    wait_for("the new bundle", || {
        let outcome = entitled().run([KEY]).ok()?;
        (outcome.last().ok()?.errno == libc::EPERM).then_some(())
    })?;
    governance.kill()?;
    scene.daemon.take().context("no daemon")?.hand_over()?;
    // With its files as they were before, the next daemon would bring it back.
    fs::remove_dir_all(&kept)?;
    copy(&saved, &kept)?;
    let start = Instant::now();
    scene.daemon = Some(governance.launch(options)?);
    let refused = wait_for("that it is refused", || {
        let now = status().ok()?;
        now["refused"].as_str().map(str::to_owned)
    })?;
    ensure!(
        refused.contains("older copy"),
        "it is refused because {refused}"
    );
    let reads_go_on = status_tier().as_deref() == Some("fanotify");
    let outcome = entitled().run([KEY])?;
    ensure!(
        reads_go_on || outcome.last()?.errno == libc::EPERM,
        "{outcome:?}"
    );
    println!(
        "  refused {:.1} s after the start",
        start.elapsed().as_secs_f64()
    );
    governance.serve()?;
    connected(true)?;
    wait_for("what is newer", || {
        let now = status().ok()?;
        now["bundle"]["entitlements"]
            .as_u64()
            .filter(|count| *count == 0)
    })?;
    scene.check(&entitled(), &[(KEY, Refused("no-entitlement"))])?;
    scene.off()
}

fn a_day_without_the_server(scene: &mut Scene) -> Result<()> {
    write("/srv/t/denied-key", "the secret itself\n")?;
    let denied = "read /srv/t/denied-key";
    let stale = bundle("").file("denied", "/srv/t/denied-key").entitlement(
        "E-denied",
        "app",
        "denied",
        &format!("{TO_HOME}, onStale: deny"),
    );
    let mut governance = governed(scene, &stale, "5m")?;
    connected(true)?;
    wait_for("freshness", || {
        let outcome = entitled().run([denied]).ok()?;
        (outcome.last().ok()?.errno == 0).then_some(())
    })?;
    governance.kill()?;
    let stepped = Stepped::by_a_day(true)?;
    wait_for("staleness", || {
        let outcome = entitled().run([denied]).ok()?;
        (outcome.last().ok()?.errno == libc::EPERM).then_some(())
    })?;
    scene.check(&entitled(), &[(denied, Refused("expired")), (KEY, Allowed)])?;
    // What has changed meanwhile comes as a delta.
    governance.issue(&stale.file("second", "/srv/t/second-key"))?;
    governance.serve()?;
    connected(true)?;
    let second = "read /srv/t/second-key";
    wait_for("the new version", || {
        let outcome = entitled().run([second]).ok()?;
        (outcome.last().ok()?.errno == libc::EPERM).then_some(())
    })?;
    wait_for("freshness", || {
        let outcome = entitled().run([denied]).ok()?;
        (outcome.last().ok()?.errno == 0).then_some(())
    })?;
    let chain = wait_for("it on disk", || {
        let text = fs::read(governance.node().join("governance/bundle.json")).ok()?;
        let chain: Vec<serde_json::Value> = serde_json::from_slice(&text).ok()?;
        (chain.len() == 2).then_some(chain)
    })?;
    let is_delta =
        |it: &serde_json::Value| it["payloadType"].as_str().unwrap_or("").contains("delta");
    ensure!(
        chain.iter().map(is_delta).eq([false, true]),
        "it came by other ways"
    );
    let done = scene.off();
    drop(stepped);
    done
}

/// A process that is killed when dropped.
struct Reporter(Child);

impl Reporter {
    fn start(governance: &Governance) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .arg0("enforcer-tests")
            .arg("report")
            .arg(governance.path(""))
            .args([URL, REPORTER])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the reporter")?;
        Ok(Self(child))
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const REPORTER: &str = "reporter";

/// How many records a file has, which must be those from 1 on.
fn whole(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let mut next = 1;
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        ensure!(record["number"] == next, "record {next} is {line}");
        next += 1;
    }
    Ok(next - 1)
}

fn evidence_survives_kills(scene: &mut Scene) -> Result<()> {
    scene.off()?;
    let kills = if scene.brief { 5 } else { 50 };
    let mut governance = Governance::start(&bundle(""), "5m")?;
    fs::create_dir_all(governance.path(REPORTER))?;
    governance.admit(REPORTER, "reporter/token")?;
    let mut reporter = Reporter::start(&governance)?;
    let file = governance.evidence_of(REPORTER)?;
    let mut moments = 7_u64;
    for _ in 0..kills {
        moments = moments
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        thread::sleep(Duration::from_millis(50 + (moments >> 33) % 250));
        if moments >> 62 & 1 == 0 {
            governance.kill()?;
            governance.serve()?;
        } else {
            drop(reporter);
            reporter = Reporter::start(&governance)?;
        }
    }
    fs::write(governance.path("reporter/enough"), "")?;
    // All of it arrives, once.
    let (mut last, mut same) = (0, 0);
    while same < 10 {
        thread::sleep(Duration::from_millis(300));
        let now = whole(&file)?;
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    let evidence = governance.path("reporter/log");
    let cursor = fs::read_to_string(evidence.join("cursors/governance"))?;
    let (_, stored) = cursor.trim().split_once(' ').context("no position")?;
    let stored: u64 = stored.parse()?;
    let mut segments: Vec<_> = fs::read_dir(&evidence)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
        .collect();
    segments.sort();
    let newest = segments.last().context("no spool")?;
    let text = fs::read_to_string(newest)?;
    let written: serde_json::Value = serde_json::from_str(text.lines().last().context("empty")?)?;
    ensure!(
        written["number"] == last && stored == last,
        "the node wrote {written}, has receipts up to {stored}, and the server has {last}"
    );
    println!("  {last} records over {kills} kills");
    drop(reporter);
    Ok(())
}

/// By what means the daemon gates.
fn status_tier() -> Option<String> {
    Some(status().ok()?["tier"].as_str()?.to_owned())
}
