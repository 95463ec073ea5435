//! The enforcer itself: killed, stopped, taken apart, fed nonsense.

use std::{
    fs, io,
    os::unix::fs::symlink,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::{
    Attack, attack,
    expected::{CAUGHT, CROWDED, Seen::NotRun, Tier, hooks_only},
    stage::{Goal, HOME, Mounted, READ, SEND, Stage, Tried, root, standard_bundle},
    untried,
};
use crate::{
    cases::{entitled, other, standard::DESTINATIONS},
    harness::{Bundle, Cgroup, daemon, wait_for, write},
};

pub const ATTACKS: &[Attack] = &[
    attack(
        "D02",
        "daemon_frozen",
        "the daemon's cgroup frozen: verdicts as before",
        CAUGHT,
        |s| with_daemon_still(s, |s| s.reads_as_is(&[READ])),
    ),
    attack(
        "D04",
        "killed",
        "the daemon killed: who may read and send then",
        hooks_only(
            "permission events that nobody answers let reads go on; the network gates stand",
        ),
        killed,
    ),
    attack(
        "D09",
        "compiler_switched_off",
        "`bpf_jit_enable` and the like changed",
        CAUGHT,
        |s| {
            s.alone()?;
            s.standard()?;
            let mut kept = Vec::new();
            for file in [
                "net/core/bpf_jit_enable",
                "kernel/bpf_stats_enabled",
                "kernel/kptr_restrict",
            ] {
                let path = format!("/proc/sys/{file}");
                if let Ok(before) = fs::read_to_string(&path) {
                    // Some kernels do not take it.
                    let _ = fs::write(&path, "0");
                    kept.push((path, before));
                }
            }
            let result = s.reads_as_is(&[READ]).and_then(|()| s.holds_to_account());
            for (path, before) in kept {
                let _ = fs::write(path, before);
            }
            result
        },
    ),
    untried(
        "D10",
        "kernel_code",
        "kernel modules, kexec, live patches",
        "code in the kernel wins; out of scope",
    ),
    untried(
        "D11",
        "boot_gap",
        "what runs before the daemon",
        "the guests have no init system; B14 tries what is left of it",
    ),
    attack(
        "D12",
        "crowd_while_stopped",
        "the daemon stopped under a crowd of readers: none gets through, all are answered when it goes on",
        CROWDED,
        |s| with_daemon_still(s, |s| s.reads_as_is(&["read-crowd /srv/t/key 100"])),
    ),
    attack(
        "D13",
        "mounted_anew",
        "the credential's file system unmounted and mounted anew",
        CAUGHT,
        |s| {
            let place = "/srv/t/volume";
            let bundle = standard_bundle()?
                .credential(&format!("id: volume, sources: [{{directory: {place}}}]"))
                .entitlement("E-volume", "app", "volume", DESTINATIONS);
            let first = Mounted::new("tmpfs", "tmpfs", place, "")?;
            write(format!("{place}/key"), "the secret itself\n")?;
            s.on(&bundle)?;
            let step = format!("read {place}/key");
            s.reads_as_is(&[&step])?;
            // It sees only what came of it, and the kernel gives the second mount the first one's numbers.
            s.scene.daemon()?.signal(Signal::SIGSTOP)?;
            drop(first);
            let second = Mounted::new("tmpfs", "tmpfs", place, "");
            s.scene.daemon()?.signal(Signal::SIGCONT)?;
            let _second = second?;
            write(format!("{place}/key"), "the secret itself\n")?;
            wait_for("the new file system to be protected", || {
                let outcome = other().run([step.as_str()]).ok()?;
                (outcome.last().ok()?.errno == libc::EPERM).then_some(())
            })?;
            s.reads_as_is(&[&step])
        },
    ),
    attack(
        "D14",
        "event_flood",
        "a flood of refusals before the one that counts",
        CAUGHT.on(
            Tier::Fanotify,
            NotRun(
                "the daemon's own channel has no shares yet: told or counted as lost, as it comes",
            ),
        ),
        |s| {
            s.standard()?;
            s.twin(&entitled(), Goal::Read, &[READ])?;
            let mut flood = other().start(["hammer /srv/t/key 0"])?;
            flood.until("hammering")?;
            thread::sleep(Duration::from_secs(2));
            let tried = Tried::read(&other().run(["read /srv/t/lone-key"])?)?;
            let refused = flood.finish()?.last()?.count("refused");
            ensure!(refused > 100, "the flood was {refused} refusals only");
            // It may be heard of late; not at all is what the flood is for.
            let late = wait_for("the event", || s.denial("read", &tried.pids).ok());
            late.and_then(|_| s.judge(&tried))
        },
    ),
    untried(
        "D15",
        "ring_starved",
        "a ring buffer that nobody reads",
        "the verifier refuses a record that is never given back",
    ),
    attack(
        "D16",
        "disk_full",
        "the event log's disk is full: verdicts and events as before",
        CAUGHT,
        |s| {
            s.scene.off()?;
            let logs = Mounted::new("tmpfs", "tmpfs", daemon::LOGS, "size=16k")?;
            let result = s.standard().map(drop).and_then(|()| {
                // Whatever is left of the disk.
                let _ = fs::write(format!("{}/rest", daemon::LOGS), vec![0; 1 << 16]);
                s.reads_as_is(&[READ])
            });
            s.scene.off()?;
            drop(logs);
            result
        },
    ),
    attack(
        "D17",
        "odd_names",
        "names with newlines, quotes and escapes in them: one event is one line",
        CAUGHT,
        |s| {
            s.standard()?;
            s.twin(&entitled(), Goal::Read, &["odd-name", READ])?;
            s.attack(&other(), Goal::Read, &["odd-name", READ])?;
            s.scene.daemon()?.events.all_parsed()
        },
    ),
    attack(
        "D18",
        "log_tampered",
        "the event log changed afterwards",
        CAUGHT,
        log_tampered,
    ),
    attack(
        "D19",
        "clock_set_back",
        "the clock set back to keep what has expired",
        CAUGHT,
        clock_set_back,
    ),
    attack(
        "D20",
        "older_bundle",
        "an older bundle put in the place of the newer",
        CAUGHT,
        |s| {
            s.standard()?;
            let generous = generous_bundle()?.text();
            let head = "apiVersion: enforcer.dev/v1\nkind: Bundle\nmetadata: {issuer: tests, version: 1}\n";
            refused_bundles(s, &[format!("{head}{generous}")])
        },
    ),
    attack(
        "D23",
        "malformed_bundles",
        "bundles cut off, with fields twice, unknown or flipped",
        CAUGHT,
        |s| {
            s.standard()?;
            let (_, head) = crate::bundle::head();
            let whole = format!("{head}{}", generous_bundle()?.text());
            let cut = |part: usize| whole[..whole.len() * part / 10].to_owned() + "\n  - {";
            refused_bundles(
                s,
                &[
                    cut(5),
                    cut(8),
                    format!("{whole}unknown: field\n"),
                    format!("{whole}credentials: []\n"),
                    whole.replace("kind: Bundle", "kind: Bumble"),
                    whole.replace("destinations: none", "destinations: *some"),
                ],
            )
        },
    ),
    attack(
        "D24",
        "between_two_bundles",
        "readers while one bundle replaces another",
        CROWDED,
        |s| {
            s.standard()?;
            let mut reader = other().start(["hammer /srv/t/key 2000"])?;
            reader.until("hammering")?;
            let mut twin = entitled().start(["hammer /srv/t/key 2000"])?;
            twin.until("hammering")?;
            for round in 0..10 {
                let bundle = standard_bundle()?.file(&format!("round-{round}"), "/srv/t/plain");
                s.on(&bundle)?;
            }
            crate::harness::check::readers_agree(&twin.finish()?, true)?;
            crate::harness::check::readers_agree(&reader.finish()?, false)?;
            s.standard().map(drop)
        },
    ),
    attack(
        "D25",
        "too_large_a_bundle",
        "a bundle beyond the limits: refused whole, the one in force stays",
        CAUGHT,
        |s| {
            s.standard()?;
            let mut bundle = generous_bundle()?;
            for number in 0..5 {
                bundle =
                    bundle.entitlement(&format!("E-more-{number}"), "all", "key", DESTINATIONS);
            }
            let (_, head) = crate::bundle::head();
            refused_bundles(s, &[format!("{head}{}", bundle.text())])
        },
    ),
    attack(
        "D26",
        "traps_in_paths",
        "credential paths that are pipes, devices, loops of links",
        CAUGHT,
        |s| {
            for (path, make) in TRAPS {
                let _ = fs::remove_file(path);
                make(path).with_context(|| format!("cannot make {path}"))?;
            }
            let mut bundle = standard_bundle()?;
            for (number, (path, _)) in TRAPS.iter().enumerate() {
                bundle = bundle.file(&format!("trap-{number}"), path);
            }
            s.on(&bundle)?;
            let asked = Instant::now();
            daemon::status()?;
            ensure!(asked.elapsed() < Duration::from_secs(3), "the daemon hangs");
            let result = s.reads_as_is(&[READ]);
            s.standard()?;
            for (path, _) in TRAPS {
                fs::remove_file(path)?;
            }
            result
        },
    ),
    untried(
        "D27",
        "other_kernels",
        "kernels whose hooks and structures differ",
        "the suite itself runs on each",
    ),
    untried(
        "D28",
        "missing_hooks",
        "kernels that lack a hook",
        "the suite itself runs on each",
    ),
    untried(
        "D29",
        "other_programs",
        "other security programs before and after",
        "the guests have none; C39 tries one that rewrites",
    ),
    untried(
        "D30",
        "skipped_runs",
        "programs skipped by recursion guards",
        "nobody could reproduce it",
    ),
    attack(
        "D31",
        "control_socket",
        "a user without rights talks to the control socket",
        CAUGHT,
        |s| {
            s.standard()?;
            s.works(&root("other"), &["unix-dial /run/enforcer/enforcer.sock"])?;
            let steps = ["unix-dial /run/enforcer/enforcer.sock"];
            let tried = s.act(&other(), Goal::Send, &steps, false)?;
            // The file's rights refuse it, before there is anything to record.
            ensure!(tried.errno == libc::EACCES, "it came to: {}", tried.text);
            Ok(())
        },
    ),
    untried(
        "D32",
        "own_files",
        "the program, its configuration, its keys",
        "files have their rights; what comes from governance is signed, and an older copy of it is not used",
    ),
    attack(
        "D33",
        "churn",
        "many short-lived holders: tables have room for the next",
        CAUGHT,
        |s| {
            s.standard()?;
            s.works(&entitled(), &["churn /srv/t/key 1000"])?;
            s.reads_as_is(&[READ])?;
            s.holds_to_account()
        },
    ),
    attack(
        "D34",
        "content_in_records",
        "content of credentials in anything that the daemon says",
        CAUGHT,
        |s| {
            s.standard()?;
            write("/srv/t/vault/tagged", "XYZZY-CONTENT-OF-A-CREDENTIAL\n")?;
            s.reads_as_is(&["read /srv/t/vault/tagged"])?;
            s.attack(&entitled(), Goal::Send, &["read /srv/t/vault/tagged", SEND])?;
            let mut said =
                fs::read_to_string(daemon::LOG)? + &fs::read_to_string(daemon::EVENT_LOG)?;
            for words in [&["status", "-o", "json"][..], &["explain", "--help"]] {
                said += &String::from_utf8_lossy(&daemon::enforcer(words)?.stdout);
            }
            ensure!(
                said.contains("tagged") || said.contains("vault"),
                "the record is of nothing"
            );
            ensure!(
                !said.contains("XYZZY") && !said.contains("a secret that must not"),
                "content is in the record"
            );
            Ok(())
        },
    ),
];

/// Root makes a denial in the log one that never was.
fn log_tampered(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    s.attack(&other(), Goal::Read, &[READ])?;
    s.scene.off()?;
    let verify = || Ok::<_, anyhow::Error>(daemon::enforcer(&["log", "verify"])?.status.code());
    ensure!(
        verify()? == Some(0),
        "the log is not whole before anybody touches it"
    );
    let denied = "\"verdict\":\"deny\"";
    for entry in fs::read_dir(daemon::NODE_LOG)? {
        let path = entry?.path();
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let changed = text.replacen(denied, "\"verdict\":\"allow\"", 1);
        if changed == text {
            continue;
        }
        fs::write(&path, &changed)?;
        let found = verify();
        fs::write(&path, &text)?;
        ensure!(
            found? == Some(3),
            "a changed record in {} is not found",
            path.display()
        );
        ensure!(verify()? == Some(0), "changed back, it is not whole");
        return Ok(());
    }
    bail!("no denial in {}", daemon::NODE_LOG)
}

type Make = fn(&str) -> io::Result<()>;

const TRAPS: &[(&str, Make)] = &[
    ("/srv/t/trap-pipe", |path| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).map_err(Into::into)
    }),
    ("/srv/t/trap-zeroes", |path| symlink("/dev/zero", path)),
    ("/srv/t/trap-loop", |path| symlink(path, path)),
    ("/srv/t/trap-terminal", |path| symlink("/dev/tty", path)),
    ("/srv/t/trap-proc", |path| symlink("/proc/kmsg", path)),
];

fn killed(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    let mut holder = entitled().start([READ, "pause", HOME, SEND, "pause", HOME, SEND])?;
    holder.until("paused")?;
    kill(s)?;
    let tried = Tried::read(&other().run([READ])?)?;
    s.works(&entitled(), &[READ, HOME])?;
    holder.go_on()?;
    holder.until("paused")?;
    // The next one takes over, and tells what was refused in the meantime.
    s.standard()?;
    ensure!(
        daemon::status()?["takenOver"] == true,
        "the programs were not taken over"
    );
    holder.go_on()?;
    let outcome = holder.finish()?;
    let sends = (outcome.steps.iter()).filter(|step| step.text.starts_with("tcp"));
    let sends: Vec<i32> = sends.map(|step| step.errno).collect();
    ensure!(
        sends == [0, libc::EPERM, 0, libc::EPERM],
        "a holder's calls, two without a daemon and two with the next one, came to {sends:?}"
    );
    s.judge(&tried)
}

fn kill(s: &mut Stage<'_>) -> Result<()> {
    let daemon = s.scene.daemon()?;
    signal::kill(Pid::from_raw(daemon.pid().cast_signed()), Signal::SIGKILL)?;
    wait_for("the daemon's end", || {
        (!s.scene.daemon().ok()?.is_alive()).then_some(())
    })
}

/// While the daemon stands still; from the third second on it goes on, so that whoever waits for it is answered.
fn with_daemon_still(
    s: &mut Stage<'_>,
    act: impl FnOnce(&mut Stage<'_>) -> Result<()>,
) -> Result<()> {
    let pid = s.standard()?.pid();
    let group = Cgroup::unit("enforcer-under-test.service")?;
    let home = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(!home.is_empty(), "the daemon is in no cgroup");
    fs::write(group.directory().join("cgroup.procs"), pid.to_string())?;
    let freeze = group.directory().join("cgroup.freeze");
    fs::write(&freeze, "1")?;
    let thaw = freeze.clone();
    let waker = thread::spawn(move || {
        thread::sleep(Duration::from_secs(3));
        fs::write(thaw, "0")
    });
    let result = act(s);
    let woken = waker
        .join()
        .map_err(|_| anyhow::anyhow!("the waker panicked"))?;
    fs::write("/sys/fs/cgroup/cgroup.procs", pid.to_string())?;
    woken?;
    result
}

fn clock_set_back(s: &mut Stage<'_>) -> Result<()> {
    use nix::time::{ClockId, clock_gettime, clock_settime};
    s.alone()?;
    // So that it ends after the twin's use, however slow the machine is.
    let started = Instant::now();
    s.on(&Bundle::of_key(DESTINATIONS))?;
    s.twin(&entitled(), Goal::Read, &[READ])?;
    let end = jiff::Timestamp::now() + 2 * started.elapsed();
    s.on(&Bundle::of_key(&format!(
        "{DESTINATIONS}, validUntil: {end}"
    )))?;
    s.twin(&entitled(), Goal::Read, &[READ])?;
    while jiff::Timestamp::now() <= end {
        thread::sleep(Duration::from_millis(100));
    }
    let day = nix::sys::time::TimeSpec::from_duration(Duration::from_secs(24 * 60 * 60));
    clock_settime(
        ClockId::CLOCK_REALTIME,
        clock_gettime(ClockId::CLOCK_REALTIME)? - day,
    )?;
    s.reasons = "expired";
    let result = s.attack(&entitled(), Goal::Read, &[READ]);
    clock_settime(
        ClockId::CLOCK_REALTIME,
        clock_gettime(ClockId::CLOCK_REALTIME)? + day,
    )?;
    result
}

/// One that entitles everybody.
fn generous_bundle() -> Result<Bundle> {
    Ok(standard_bundle()?
        .workload("all", "executable: {path: /opt/t/other}")
        .entitlement("E-all", "all", "key", DESTINATIONS))
}

/// The daemon is given each of these, and nobody is entitled by any.
fn refused_bundles(s: &mut Stage<'_>, texts: &[String]) -> Result<()> {
    for text in texts {
        s.scene.daemon()?.give(text)?;
        thread::sleep(Duration::from_millis(400));
        let result = s
            .attack(&other(), Goal::Read, &[READ])
            .and_then(|()| s.twin(&entitled(), Goal::Read, &[READ]));
        result.with_context(|| format!("after {text:?}"))?;
    }
    // The same bundle, well written, does entitle.
    s.on(&generous_bundle()?)?;
    s.twin(&other(), Goal::Read, &[READ])?;
    s.standard().map(drop)
}
