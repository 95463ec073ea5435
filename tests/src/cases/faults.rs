//! What happens to a daemon on a bad day: no memory, files that were cut short, calls that are interrupted over and over.
//! A full disk is in `log.rs`, full tables and rings in `overload.rs`, half-made pins in `restart.rs`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Scene, cases, entitled, other, restart::Crowd, standard};
use crate::bundle;
use crate::harness::{Accounts, Allowed, Bundle, Cgroup, Daemon, Refused, daemon, wait_for};

cases![out_of_memory, state_cut_short, interrupted_over_and_over];

const KEY: &str = "read /srv/t/key";
const STATE: &str = "/var/lib/enforcer";

/// The kernel kills the daemon for want of memory: what was in force goes on, and the next one takes over.
fn out_of_memory(scene: &mut Scene) -> Result<()> {
    /// What the daemon may take beyond what it has.
    const ROOM: &str = "2M";
    /// So many credentials take more.
    const CREDENTIALS: usize = 20_000;
    scene.standard()?;
    let crowd = Crowd::gather()?;
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
        .context("the kernel limits no memory")?;
    let narrow = Cgroup::new("narrow")?;
    fs::write(narrow.directory().join("memory.max"), ROOM)?;
    let daemon = scene.daemon()?;
    let procs = narrow.directory().join("cgroup.procs");
    fs::write(procs, daemon.pid().to_string())?;
    let many = (0..CREDENTIALS).fold(Bundle::default(), |bundle, number| {
        bundle.file(&format!("many-{number}"), &format!("/srv/t/many/{number}"))
    });
    let (_, head) = bundle::head();
    daemon.give(&format!("{head}{}", many.text()))?;
    wait_for("the daemon to be killed", || {
        (!scene.daemon().ok()?.is_alive()).then_some(())
    })?;
    let kills = fs::read_to_string(narrow.directory().join("memory.events"))?;
    ensure!(
        kills.lines().any(|line| line == "oom_kill 1"),
        "the daemon ended, and the kernel says {kills}"
    );
    let outcome = other().run([KEY])?;
    ensure!(outcome.last()?.errno == libc::EPERM, "{outcome:?}");
    scene.daemon = Some(Daemon::start(&standard::bundle()?, &[])?);
    ensure!(daemon::status()?["takenOver"] == true);
    crowd.agrees()?;
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)]).map(drop)
}

/// Each file of the daemon's cut short by itself: the next one starts and enforces, and the log is found to have been cut.
fn state_cut_short(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(&entitled(), &[(KEY, Allowed)])?;
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.take().context("no daemon")?.hand_over()?;
    let files = files_below(Path::new(STATE))?;
    for name in ["usage.json", "head.json", "key.pem"] {
        ensure!(
            files.iter().any(|path| path.ends_with(name)),
            "no {name} among {files:?}"
        );
    }
    for path in files {
        let whole = fs::read(&path)?;
        for length in [whole.len() as u64 / 2, 0] {
            File::options().write(true).open(&path)?.set_len(length)?;
            let what = || format!("{} cut to {length} bytes", path.display());
            scene.daemon = Some(Daemon::start(&standard::bundle()?, &[]).with_context(what)?);
            scene
                .check(&other(), &[(KEY, Refused(""))])
                .with_context(what)?;
            scene
                .check(&entitled(), &[(KEY, Allowed)])
                .with_context(what)?;
            let daemon = scene.take().context("no daemon")?;
            daemon.hand_over().with_context(what)?;
        }
    }
    // The log tells what was done to it.
    let report = daemon::enforcer(&["log", "verify", daemon::NODE_LOG])?;
    ensure!(
        report.status.code() == Some(3),
        "`log verify` ended with {} and said {}",
        report.status,
        String::from_utf8_lossy(&report.stdout)
    );
    fs::remove_dir_all(daemon::NODE_LOG)?;
    scene.standard().map(drop)
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Stopped and let go on a thousand times, and told to read its bundle meanwhile: whatever call that interrupts goes on.
fn interrupted_over_and_over(scene: &mut Scene) -> Result<()> {
    let times = if scene.brief { 200 } else { 1_000 };
    scene.standard()?;
    let accounts = Accounts::open()?;
    let crowd = Crowd::gather()?;
    let pids = crowd.pids();
    let daemon = scene.daemon()?;
    for number in 0..times {
        daemon.signal(Signal::SIGSTOP)?;
        daemon.signal(Signal::SIGCONT)?;
        if number % 20 == 0 {
            daemon.signal(Signal::SIGHUP)?;
        }
        thread::sleep(Duration::from_millis(2));
    }
    ensure!(scene.daemon()?.is_alive(), "{}", daemon::log_tail());
    accounts.have(crowd.agrees()?, Some(&pids))?;
    scene.check(&other(), &[(KEY, Refused(""))])?;
    scene.check(&entitled(), &[(KEY, Allowed)]).map(drop)
}
