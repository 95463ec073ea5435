//! What root does to the daemon, to its programs, maps and links, and to what they rest on.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Attack, attack,
    expected::{
        Expected,
        Seen::{Caught, NotCaught},
        hooks_only,
    },
    stage::{Goal, HOME, READ, Stage, Tried, pids, root, standard_bundle},
};
use crate::{
    bpf,
    cases::entitled,
    harness::{Bundle, Cgroup, Outcome, check, daemon, wait_for},
};

/// The switch that takes all hooks off.
const SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";
/// Where a unit's control files are.
const SLICE: &str = "/sys/fs/cgroup/system.slice";

const PROTECTED: Expected = hooks_only("no hooks: what root does to the daemon is not refused");

pub const ATTACKS: &[Attack] = &[
    attack(
        "D01",
        "signalled",
        "signals to the daemon, by root: kill, tgkill, sigqueue, pidfd",
        PROTECTED,
        |s| {
            for way in ["signal", "signal-thread", "signal-queued", "signal-handle"] {
                // Which does no harm; whoever may send it may send the others.
                s.harms(|pid| format!("{way} {pid} 28"))?;
            }
            if let Caught = s.seen {
                for signal in [9, 19, 15, 11] {
                    let pid = s.scene.daemon()?.pid();
                    tampers(s, &format!("signal {pid} {signal}"))?;
                }
            }
            ensure!(s.scene.daemon()?.is_alive(), "the daemon has gone");
            daemon::status().map(drop)
        },
    ),
    attack(
        "D01",
        "signalled_by_maintenance",
        "the same by the tool that the bundle names: allowed, and recorded; not by its copy",
        PROTECTED,
        |s| {
            s.on(&maintained()?)?;
            let pid = s.scene.daemon()?.pid();
            let outcome = s.works(&root("trusted"), &[&format!("signal {pid} 28")])?;
            if let Caught = s.seen {
                let events = s.scene.daemon()?.events.clone();
                wait_for("the event", || {
                    events.find(|event| {
                        event.kind() == "tamper"
                            && event.pid() == u64::from(outcome.pid)
                            && !event.is_denial()
                    })
                })?;
            }
            tampers(s, &format!("signal {pid} 28"))
        },
    ),
    attack(
        "D02",
        "stopped_by_its_cgroup",
        "cgroup.freeze and cgroup.kill of the daemon's cgroup, and of the one above",
        PROTECTED,
        |s| {
            s.alone()?;
            let pid = s.standard()?.pid();
            let group = Cgroup::unit("enforcer-under-test.service")?;
            let other = Cgroup::unit("enforcer-under-no-test.service")?;
            fs::write(group.directory().join("cgroup.procs"), pid.to_string())?;
            let result = stopped(s, &group, &other);
            fs::write("/sys/fs/cgroup/cgroup.procs", pid.to_string())?;
            result
        },
    ),
    attack(
        "D03",
        "limits_set",
        "another process sets the daemon's limits, priorities, processors",
        PROTECTED,
        |s| {
            for way in ["limit", "nice", "processors", "policy", "io-priority"] {
                s.harms(|pid| format!("{way} {pid}"))?;
            }
            s.harms(|pid| format!("put /proc/{pid}/oom_score_adj 0"))?;
            s.harms(|pid| format!("put /proc/{pid}/task/{pid}/oom_score_adj 0"))
        },
    ),
    attack(
        "D03",
        "daemon_traced",
        "another process traces the daemon, reads and writes its memory, takes its descriptors",
        PROTECTED,
        |s| {
            // That is what a refused open of /proc/PID/mem ends with.
            s.refusals = &[libc::EPERM, libc::EACCES];
            for way in ["trace", "mem-read", "vm-read", "vm-write"] {
                let at = |pid: u32| Ok(format!("{way} {pid} {}", stack_of(pid)?));
                s.harms_at(at).with_context(|| way.to_owned())?;
            }
            s.harms(|pid| format!("getfd {pid} 1"))
        },
    ),
    attack(
        "D06",
        "links_detached",
        "every cgroup program and link of one detached by number",
        PROTECTED,
        |s| {
            s.alone()?;
            s.standard()?;
            s.holds_to_account()?;
            let elsewhere = Cgroup::unit("elsewhere.service")?;
            let _twin = bpf::rewrite_connects(elsewhere.directory(), [127, 0, 0, 1])?;
            let root = Path::new("/sys/fs/cgroup");
            let detached = bpf::detach_links()? + bpf::detach_programs(root)?;
            if let Caught = s.seen {
                // The twin, and no other.
                ensure!(detached == 1, "{detached} links and programs were detached");
                told(s)?;
                return s.holds_to_account();
            }
            ensure!(detached > 1, "only {detached} were; better than expected?");
            let result = becomes(s, "degraded");
            // What is detached stays so.
            s.scene.off()?;
            result
        },
    ),
    attack(
        "D05",
        "pins_removed",
        "the pins opened, removed, renamed, and their file system unmounted",
        PROTECTED,
        |s| {
            s.standard()?;
            let set = pins()?;
            let place = "/sys/fs/bpf";
            s.works(
                &root("other"),
                &[
                    &format!("pin-map {place}/twin"),
                    &format!("open-pin {place}/twin"),
                    &format!("rename {place}/twin {place}/moved"),
                    &format!("unlink {place}/moved"),
                ],
            )?;
            tampers(s, &format!("open-pin {set}/maps/HOLDERS"))?;
            if let Caught = s.seen {
                fs::create_dir_all("/srv/t/bpf")?;
                s.works(
                    &root("other"),
                    &["mount-bpf /srv/t/bpf", "unmount /srv/t/bpf"],
                )?;
                for step in [
                    format!("unlink {set}/maps/HOLDERS"),
                    format!("unlink {set}/links/file_open"),
                    format!("rename {set} {place}/gone"),
                    format!("rename {place}/enforcer {place}/gone"),
                    format!("unmount {place}"),
                ] {
                    tampers(s, &step)?;
                }
                s.holds_to_account()?;
            }
            Ok(())
        },
    ),
    attack(
        "D07",
        "maps_changed",
        "the daemon's maps and programs opened by number, by root",
        PROTECTED,
        |s| {
            s.alone()?;
            s.standard()?;
            let (_twin, id) = bpf::new_map()?;
            let (maps, programs) = bpf::open_all();
            ensure!(maps.contains(&id), "the twin was not opened");
            if let Caught = s.seen {
                ensure!(
                    maps == [id] && programs.is_empty(),
                    "maps {maps:?} and programs {programs:?} were opened"
                );
                return told(s);
            }
            ensure!(
                maps.len() > 1 && !programs.is_empty(),
                "none was; better than expected?"
            );
            Ok(())
        },
    ),
    attack(
        "D08",
        "tracing_switched_off",
        "`ftrace_enabled` set to 0, which takes the hooks off",
        hooks_only("no hooks that could refuse it, nor any that it could take off"),
        |s| {
            s.alone()?;
            s.standard()?;
            s.works(&root("other"), &["put /proc/sys/kernel/kptr_restrict 1"])?;
            let tried = tampering(&root("other").run([format!("put {SWITCH} 0")])?)?;
            // Some kernels have reasons of their own to refuse, once programs are attached.
            let result = match s.seen {
                NotCaught(_) => Ok(()),
                _ => s.judge(&tried),
            };
            if tried.got {
                fs::write(SWITCH, "1")?;
            }
            // Whatever came of that, reads are refused as ever.
            s.seen = Caught;
            result.and_then(|()| s.reads_as_is(&[READ]))
        },
    ),
    attack(
        "D08",
        "tracing_switched_off_all_the_same",
        "the same by who may: the daemon says so within a second, and who holds may reach nothing until it is undone",
        hooks_only("there are no hooks that it could take off"),
        |s| {
            s.alone()?;
            s.on(&maintained()?)?;
            let mut holder = entitled().start([READ, HOME, "pause", HOME])?;
            holder.until("paused")?;
            let off = root("trusted")
                .run([format!("put {SWITCH} 0")])?
                .last()?
                .errno;
            if off != 0 || matches!(s.seen, NotCaught(_)) {
                // Before 6.0 it is busy while programs are attached; the newest kernels never do it.
                ensure!(
                    matches!(s.seen, NotCaught(_))
                        || [libc::EBUSY, libc::EOPNOTSUPP].contains(&off),
                    "it ended with {}",
                    check::name(off)
                );
                if off == 0 {
                    fs::write(SWITCH, "1")?;
                }
                holder.go_on()?;
                return holder.finish().map(drop);
            }
            let result = becomes(s, "degraded").and_then(|()| {
                holder.go_on()?;
                let last = holder.finish()?.last()?.errno;
                ensure!(
                    last == libc::EPERM,
                    "a holder reached something: {}",
                    check::name(last)
                );
                Ok(())
            });
            let on = root("trusted")
                .run([format!("put {SWITCH} 1")])?
                .last()?
                .errno;
            ensure!(on == 0, "it cannot be switched on: {}", check::name(on));
            result?;
            becomes(s, "enforcing")?;
            s.works(&entitled(), &[READ, HOME]).map(drop)
        },
    ),
];

/// Where the daemon's pins are.
fn pins() -> Result<String> {
    let status = daemon::status()?;
    let set = status["pins"].as_str().context("status names no pins")?;
    Ok(set.to_owned())
}

/// The bundle of most attacks, with a maintenance tool.
fn maintained() -> Result<Bundle> {
    Ok(standard_bundle()?.maintained_by("/opt/t/trusted"))
}

fn tampering(outcome: &Outcome) -> Result<Tried> {
    let last = outcome.last()?;
    Ok(Tried {
        goal: Goal::Tamper,
        got: last.errno == 0,
        errno: last.errno,
        pids: pids(outcome),
        text: check::summary(outcome),
    })
}

/// Root does something to the daemon.
fn tampers(s: &mut Stage<'_>, step: &str) -> Result<()> {
    let tried = tampering(&root("other").run([step])?)?;
    s.judge(&tried).with_context(|| step.to_owned())
}

impl Stage<'_> {
    /// Root does something to a process of no interest, and then to the daemon.
    fn harms(&mut self, step: impl Fn(u32) -> String) -> Result<()> {
        self.harms_at(|pid| Ok(step(pid)))
    }

    fn harms_at(&mut self, step: impl Fn(u32) -> Result<String>) -> Result<()> {
        let daemon = self.standard()?.pid();
        let twin = self.waiting(&root("other"), &[], &[])?;
        self.works(&root("other"), &[&step(twin.pid())?])?;
        tampers(self, &step(daemon)?)
    }
}

/// An address in a process's memory.
fn stack_of(pid: u32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let stack = maps.lines().find(|line| line.ends_with("[stack]"));
    let (_, rest) = (stack.and_then(|line| line.split_once('-'))).context("it has no stack")?;
    let end = rest.split(' ').next().unwrap_or_default();
    Ok(u64::from_str_radix(end, 16)? - 64)
}

/// The daemon is in one of these cgroups, and nobody in the other.
fn stopped(s: &mut Stage<'_>, group: &Cgroup, other: &Cgroup) -> Result<()> {
    for (file, text) in [("cgroup.freeze", "1"), ("cgroup.kill", "1")] {
        let twin = other.directory().join(file);
        if !twin.exists() {
            // cgroup.kill is there from 5.14 on.
            continue;
        }
        s.works(&root("other"), &[&format!("put {} {text}", twin.display())])?;
        if let (NotCaught(_), "cgroup.kill") = (s.seen, file) {
            // Nobody would be left to go on with.
            continue;
        }
        let above = PathBuf::from(SLICE);
        for directory in [group.directory(), &above] {
            let path = directory.join(file);
            tampers(s, &format!("put {} {text}", path.display()))?;
            if file == "cgroup.freeze" {
                fs::write(&path, "0")?;
            }
        }
    }
    ensure!(s.scene.daemon()?.is_alive(), "the daemon has gone");
    Ok(())
}

/// There is an event of what this process did to the enforcer.
fn told(s: &mut Stage<'_>) -> Result<()> {
    s.denial("tamper", &[std::process::id()]).map(drop)
}

/// The state becomes one that begins like this, and there is an event of it.
fn becomes(s: &mut Stage<'_>, state: &str) -> Result<()> {
    let begun = Instant::now();
    let events = s.scene.daemon()?.events.clone();
    wait_for(&format!("the state to be {state}"), || {
        let status = daemon::status().ok()?;
        let now = status["state"].as_str()?;
        now.starts_with(state).then_some(())
    })?;
    println!("  {state} after {} ms", begun.elapsed().as_millis());
    let told = |event: &crate::harness::Event| {
        event.kind() == "state"
            && event.0["state"]
                .as_str()
                .is_some_and(|it| it.starts_with(state))
    };
    wait_for("the event", || events.find(told)).map(drop)
}
