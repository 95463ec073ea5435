//! The log: without a gap whatever becomes of the daemon, whole unless somebody has changed it, and no condition for
//! anything that is enforced.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{self, MsFlags};
use serde_json::Value;

use super::{Scene, cases, entitled, other, standard};
use crate::harness::{Accounts, Allowed, Daemon, Refused, check, daemon, wait_for};

cases![
    records_survive_kills,
    events_are_filtered,
    mode_is_set,
    tampering_is_found,
    disk_full,
];

const KEY: &str = "read /srv/t/key";

/// Somebody who keeps the keys of what was received, and goes on after the last.
#[derive(Default)]
struct Receiver {
    epoch: String,
    records: BTreeMap<u64, String>,
}

impl Receiver {
    /// From now on.
    fn new() -> Result<Self> {
        let mut receiver = Self::default();
        let last = events(&["--last", "1"])?;
        receiver.take(last)?;
        Ok(receiver)
    }

    /// Takes what is new: each record follows the one before.
    fn receive(&mut self) -> Result<()> {
        let next = self.last() + 1;
        let new = events(&["--from", &next.to_string()])?;
        self.take(new)
    }

    fn take(&mut self, new: Vec<Value>) -> Result<()> {
        for record in new {
            let number = record["sequence"].as_u64().context("no sequence")?;
            let epoch = record["epoch"].as_str().unwrap_or_default();
            if self.records.is_empty() {
                self.epoch = epoch.to_owned();
            } else {
                ensure!(
                    number == self.last() + 1 && epoch == self.epoch,
                    "after {} of {} came {number} of {epoch}",
                    self.last(),
                    self.epoch
                );
                let before = &self.records[&(number - 1)];
                ensure!(
                    record["previous"] == before.as_str(),
                    "record {number} follows another one than was received"
                );
            }
            let hash = record["hash"].as_str().context("no hash")?;
            self.records.insert(number, hash.to_owned());
        }
        Ok(())
    }

    fn last(&self) -> u64 {
        self.records.keys().next_back().copied().unwrap_or(0)
    }
}

/// What `enforcer events` says with these words.
fn events(words: &[&str]) -> Result<Vec<Value>> {
    let output = daemon::enforcer(&[&["events", "-o", "json"], words].concat())?;
    ensure!(
        output.status.success(),
        "`enforcer events` ended with {} and said {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout)?;
    lines
        .lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn records_survive_kills(scene: &mut Scene) -> Result<()> {
    let kills = if scene.brief { 4 } else { 50 };
    scene.standard()?;
    let mut receiver = Receiver::new()?;
    let accounts = Accounts::open()?;
    let mut flood = other().start(["hammer /srv/t/key 500"])?;
    flood.patiently(Duration::from_secs(3600));
    flood.until("hammering")?;
    let mut moments = 7_u64;
    for _ in 0..kills {
        moments = moments
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        thread::sleep(Duration::from_millis((moments >> 33) % 300));
        receiver.receive()?;
        scene.daemon.take().context("no daemon")?.kill()?;
        scene.daemon = Some(Daemon::start(&standard::bundle()?, &[])?);
    }
    let pid = flood.pid();
    let refused = check::readers_agree(&flood.finish()?, false)?;
    accounts.have(refused, Some(&BTreeSet::from([pid])))?;
    receiver.receive()?;
    let report = verified(&[])?;
    ensure!(
        report["faults"] == serde_json::json!([]),
        "the log has faults: {report}"
    );
    println!(
        "  {} records over {kills} kills, {refused} reads refused meanwhile",
        receiver.records.len()
    );
    Ok(())
}

fn events_are_filtered(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let from = Receiver::new()?.last() + 1;
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)])?;
    let from = from.to_string();
    let of = |words: &[&str]| events(&[&["--from", &from], words].concat());
    let all = wait_for("both records", || {
        let all = of(&["--credential", "key"]).ok()?;
        let verdicts = ["deny", "allow"].map(|it| all.iter().any(|record| record["verdict"] == it));
        (verdicts == [true, true]).then_some(all)
    })?;
    let denied = of(&["--verdict", "deny", "--executable", "*"])?;
    let kept = of(&["--credential", "key", "--exclude", "verdict=allow"])?;
    for (what, records) in [("--verdict deny", &denied), ("--exclude", &kept)] {
        ensure!(
            !records.is_empty() && records.iter().all(|it| it["verdict"] == "deny"),
            "with {what} came {records:?} of {all:?}"
        );
    }
    let record = &denied[0];
    for field in ["epoch", "boot", "misfit", "node", "hash"] {
        ensure!(record[field].is_string(), "no {field} in {record}");
    }
    ensure!(
        record["process"]["key"]
            .as_str()
            .is_some_and(|key| !key.is_empty())
            && record["instance"]["cgroup"].is_string(),
        "who it was is missing in {record}"
    );
    let text = daemon::enforcer(&["events", "--from", &from, "--verdict", "deny"])?;
    let text = String::from_utf8(text.stdout)?;
    ensure!(
        text.contains("deny") && text.contains("/srv/t/key") && !text.contains('\x1b'),
        "for people it says {text:?}"
    );
    for list in ["credentials", "workloads", "entitlements", "holders"] {
        let listed = daemon::enforcer_json(&[list, "-o", "json"])?;
        ensure!(
            listed
                .as_array()
                .is_some_and(|it| !it.is_empty() || list == "holders"),
            "`enforcer {list}` says {listed}"
        );
    }
    Ok(())
}

fn mode_is_set(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let said = daemon::enforcer(&["mode", "monitor", "--because", "a test"])?;
    ensure!(
        said.status.success(),
        "it said {}",
        String::from_utf8_lossy(&said.stderr)
    );
    let outcome = other().run([KEY])?;
    ensure!(
        outcome.last()?.errno == 0,
        "in monitor mode a read came to {}",
        check::summary(&outcome)
    );
    let pid = u64::from(outcome.pid);
    let events = scene.daemon()?.events.clone();
    let record = wait_for("the event", || {
        events.find(|it| it.pid() == pid && it.is_denial())
    })?;
    ensure!(
        record.0["mode"] == serde_json::json!({"requested": "enforce", "effective": "monitor"}),
        "the event is {}",
        record.0
    );
    let said = daemon::enforcer(&["mode", "enforce", "--because", "the test is over"])?;
    ensure!(
        said.status.success(),
        "it said {}",
        String::from_utf8_lossy(&said.stderr)
    );
    scene.check(&other(), &[(KEY, Refused(""))])?;
    Ok(())
}

/// What `enforcer log verify` says of a log, or of this one's.
fn verified(words: &[&str]) -> Result<Value> {
    let output = daemon::enforcer(&[&["log", "verify", "-o", "json"], words].concat())?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("it said {}", String::from_utf8_lossy(&output.stderr)))?;
    let expected = if report["faults"] == serde_json::json!([]) {
        0
    } else {
        3
    };
    ensure!(
        output.status.code() == Some(expected),
        "`enforcer log verify` ended with {} and {report}",
        output.status
    );
    Ok(report)
}

fn tampering_is_found(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for _ in 0..5 {
        scene.check(&other(), &[(KEY, Refused(""))])?;
    }
    // What is new is signed when it ends.
    scene.off()?;
    let copy = PathBuf::from("/srv/t/log-copy");
    fs::create_dir_all(&copy)?;
    let mut newest = None;
    for entry in fs::read_dir(daemon::NODE_LOG)? {
        let path = entry?.path();
        if path.is_file() {
            let to = copy.join(path.file_name().context("no name")?);
            fs::copy(&path, &to)?;
            if to.extension().is_some_and(|it| it == "jsonl") {
                let mode = fs::metadata(&path)?.permissions().mode();
                ensure!(
                    mode & 0o777 == 0o600,
                    "{} has the mode {mode:o}",
                    path.display()
                );
                newest = newest.max(Some(to));
            }
        }
    }
    let newest = newest.context("no records")?;
    let place = copy.display().to_string();
    ensure!(
        verified(&[&place])?["faults"] == serde_json::json!([]),
        "the copy is not whole"
    );
    let text = fs::read_to_string(&newest)?;
    let lines: Vec<&str> = text.lines().collect();
    let count = lines.len();
    let mut edited: Vec<String> = lines.iter().map(ToString::to_string).collect();
    let Some(denial) = edited
        .iter_mut()
        .rfind(|it| it.contains("\"verdict\":\"deny\""))
    else {
        bail!("no denial in {}", newest.display());
    };
    *denial = denial.replace("\"verdict\":\"deny\"", "\"verdict\":\"allow\"");
    let cut = [&lines[..count - 4], &lines[count - 2..]].concat();
    let end = lines[..count - 2].to_vec();
    let mut swapped = lines.clone();
    swapped.swap(count - 2, count - 3);
    let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect::<Vec<_>>();
    for (what, lines) in [
        ("edited", edited),
        ("cut out", owned(cut)),
        ("end was cut", owned(end)),
        ("order is another", owned(swapped)),
    ] {
        fs::write(&newest, lines.join("\n") + "\n")?;
        let report = verified(&[&place])?.to_string();
        ensure!(report.contains(what), "what was {what} is told as {report}");
    }
    fs::remove_dir_all(&copy)?;
    Ok(())
}

fn disk_full(scene: &mut Scene) -> Result<()> {
    const STATE: &str = "/srv/small";
    scene.off()?;
    fs::create_dir_all(STATE)?;
    let size = Some("size=1m,mode=700");
    mount::mount(Some("tmpfs"), STATE, Some("tmpfs"), MsFlags::empty(), size)?;
    let result = on_a_full_disk(scene, STATE);
    scene.off()?;
    mount::umount(STATE)?;
    result
}

fn on_a_full_disk(scene: &mut Scene, state: &str) -> Result<()> {
    let daemon = scene.small(&standard::bundle()?, &["--state", state])?;
    let events = daemon.events.clone();
    let filler = format!("{state}/filler");
    // Whatever room there is.
    let _ = fs::write(&filler, vec![0; 2 << 20]);
    const READS: usize = 20;
    for _ in 0..READS {
        let outcome = other().run([KEY])?;
        ensure!(
            outcome.last()?.errno == libc::EPERM,
            "with a full disk, {}",
            check::summary(&outcome)
        );
    }
    let outcome = entitled().run([KEY])?;
    ensure!(
        outcome.last()?.errno == 0,
        "with a full disk, {}",
        check::summary(&outcome)
    );
    fs::remove_file(&filler)?;
    let lost = wait_for("the loss to be told", || {
        events.find(|it| it.kind() == "lost" && it.0["stage"] == "log")
    })?;
    ensure!(
        lost.0["denials"].as_u64().is_some_and(|it| it > 0),
        "it is told as {}",
        lost.0
    );
    // One of the refusals may have found the last room.
    scene.check(&other(), &[(KEY, Refused(""))])?;
    let report = verified(&[&format!("{state}/log")])?;
    ensure!(
        report["faults"] == serde_json::json!([]),
        "the log has faults: {report}"
    );
    Ok(())
}
