//! Getting at what somebody else has read: descriptors, memory, what the kernel reads.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    Attack, attack,
    expected::{CAUGHT, Seen, hooks_only, open},
    stage::{Goal, READ, Stage, Tried, root},
    untried,
};
use crate::harness::{Actor, Event, check, wait_for};

const NO_MEMORY_GATE: &str = "permission events say nothing of other processes' memory";

pub const ATTACKS: &[Attack] = &[
    attack(
        "A20",
        "descriptor_sent",
        "a holder sends its descriptor over a unix socket",
        CAUGHT,
        descriptor_sent,
    ),
    attack(
        "A21",
        "descriptor_taken",
        "a descriptor taken out of a holder by pidfd_getfd",
        CAUGHT.before((5, 6), Seen::NotRun("pidfd_getfd came with 5.6")),
        |s| {
            s.standard()?;
            let holder = s.waiting(&root("entitled"), &["hold /srv/t/key", "keep"], &[])?;
            let getfd = format!("getfd {} 9", holder.pid());
            s.twin_and_other(|_, program| {
                Tried::read(&root(program).run([getfd.as_str(), "pread-held"])?)
            })
        },
    ),
    attack(
        "A24",
        "descriptor_inherited",
        "a descriptor that another program has after exec",
        CAUGHT,
        |s| {
            s.standard()?;
            s.twin_and_other(|_, program| {
                let run = format!("exec-as /opt/t/{program}");
                let steps = ["hold /srv/t/key", "keep", &run, "take-fd 9", "read-held"];
                Tried::read(&root("entitled").run(steps)?)
            })
        },
    ),
    attack(
        "A25",
        "by_way_of_proc",
        "a holder's descriptor, root and mapping below /proc/PID",
        CAUGHT,
        by_way_of_proc,
    ),
    attack(
        "A26",
        "memory_of_a_holder",
        "process_vm_readv, /proc/PID/mem and ptrace on a holder",
        hooks_only(NO_MEMORY_GATE),
        memory_of_a_holder,
    ),
    attack(
        "A26",
        "traced_from_the_start",
        "the entitled program, started by a tracer",
        CAUGHT,
        |s| {
            s.standard()?;
            s.twin(
                &root("other"),
                Goal::Read,
                &["exec-as /opt/t/entitled", READ],
            )?;
            s.attack(
                &root("other"),
                Goal::Read,
                &["exec-traced /opt/t/entitled", READ],
            )
        },
    ),
    attack(
        "A29",
        "perf_of_a_holder",
        "samples of a holder's registers by perf_event_open",
        open("perf and uprobes are for root, and look without attaching"),
        |s| {
            s.standard()?;
            let clean = s.waiting(&root("entitled"), &[], &[])?;
            s.twin(
                &root("other"),
                Goal::Read,
                &[&format!("perf {}", clean.pid())],
            )?;
            let holder = s.waiting(&root("entitled"), &[READ], &[])?;
            s.attack(
                &root("other"),
                Goal::Read,
                &[&format!("perf {}", holder.pid())],
            )
        },
    ),
    attack(
        "A30",
        "core_dump",
        "a holder's core in a file",
        hooks_only(NO_MEMORY_GATE),
        |s| {
            s.alone()?;
            s.standard()?;
            fs::write("/proc/sys/kernel/core_pattern", "core")?;
            fs::create_dir_all("/srv/t/clean")?;
            fs::create_dir_all("/srv/t/held")?;
            s.twin(&root("entitled"), Goal::Read, &["dump /srv/t/clean"])?;
            let dump = s.act(
                &root("entitled"),
                Goal::Read,
                &[READ, "dump /srv/t/held"],
                false,
            )?;
            // It would go out of the process, and is told as that.
            s.judge(&Tried {
                goal: Goal::Send,
                ..dump
            })
        },
    ),
    attack(
        "A31",
        "raw_device",
        "the disk below the file system",
        open("block devices below a file system are not gated"),
        |s| {
            s.alone()?;
            s.standard()?;
            // The disk is a loop device here, over a file with the secret and much else.
            fs::write("/srv/t/image", vec![b's'; 1 << 16])?;
            s.works(
                &root("entitled"),
                &["hold /srv/t/image", "loop-held /dev/loop5"],
            )?;
            let result = s.twin(&root("entitled"), Goal::Read, &["read /dev/loop5"]);
            let attacked = s.attack(&root("other"), Goal::Read, &["read /dev/loop5"]);
            s.works(&root("entitled"), &["loop-release /dev/loop5"])?;
            result.and(attacked)
        },
    ),
    attack(
        "A32",
        "loop_device",
        "a holder makes its descriptor a disk, and the kernel reads for whoever reads the disk",
        open("from 6.8 on a loop device reads past the hook").before((6, 8), Seen::Caught),
        loop_device,
    ),
    attack(
        "A33",
        "kernel_reads",
        "the kernel asked to read it: swap file, module",
        CAUGHT,
        |s| {
            s.alone()?;
            s.standard()?;
            for step in ["swap-on /srv/t/vault/key", "load-module /srv/t/vault/key"] {
                // It is neither, and the kernel has read it to say so.
                let twin = s.act(&root("entitled"), Goal::Read, &[step], false)?;
                ensure!(
                    [libc::EINVAL, libc::ENOEXEC].contains(&twin.errno),
                    "the entitled twin's `{step}` ended with {}",
                    check::name(twin.errno)
                );
                s.attack(&root("other"), Goal::Read, &[step])?;
            }
            Ok(())
        },
    ),
    untried(
        "A34",
        "swap_and_snapshots",
        "swap, hibernation, checkpoints, backups",
        "out of scope: the operator's storage",
    ),
    untried(
        "A35",
        "other_superblock",
        "the same file by NFS, FUSE or virtiofs",
        "the guests have no file server; what the server opens is judged as its own",
    ),
    attack(
        "A44",
        "asked_of_the_api",
        "whoever may reach an API may ask it for more",
        open("what is said to a destination is not looked at"),
        |s| {
            s.standard()?;
            s.twin(&root("other"), Goal::Send, &["tcp 10.20.0.2:9000"])?;
            s.attack(&root("entitled"), Goal::Send, &[READ, "tcp 10.20.0.2:9000"])
        },
    ),
    attack(
        "A46",
        "hidden_memory",
        "memory that only its owner sees: holding all the same",
        CAUGHT,
        |s| s.sends(&["hide-in-memory"], &["tcp 10.20.0.66:9000"]),
    ),
];

/// Where a hook sees it, a thread of the kernel reads, which nobody has entitled; not for an entitled reader
/// either. The twin reads a disk that is no secret.
fn loop_device(s: &mut Stage<'_>) -> Result<()> {
    const DISK: &str = "/dev/loop6";
    s.alone()?;
    s.standard()?;
    let events = s.scene.daemon()?.events.clone();
    let attempt = |s: &mut Stage<'_>, image: &str| -> Result<Tried> {
        fs::write(image, vec![b's'; 1 << 16])?;
        let hold = format!("hold {image}");
        s.works(&root("entitled"), &[&hold, &format!("loop-held {DISK}")])?;
        let outcome = root("other").run([format!("read {DISK}")]);
        s.works(&root("entitled"), &[&format!("loop-release {DISK}")])?;
        Tried::read(&outcome?)
    };
    let twin = attempt(s, "/srv/t/image")?;
    ensure!(twin.got, "the harmless twin did not read: {}", twin.text);
    let tried = attempt(s, "/srv/t/vault/image")?;
    ensure!(
        tried.got == (s.seen != Seen::Caught),
        "it should be {}: {}",
        s.seen,
        tried.text
    );
    if s.seen == Seen::Caught {
        let denied = |event: &Event| event.is_denial() && event.credential() == "vault";
        wait_for("the event", || {
            events.find(|event| denied(event) && !tried.pids.contains(&(event.pid() as u32)))
        })?;
    }
    Ok(())
}

fn descriptor_sent(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    for (program, twin) in [("entitled", true), ("other", false)] {
        let giver = root("entitled").start(["hold /srv/t/key", "give-file @passed"])?;
        let tried = Tried::read(&root(program).run(["take-file @passed", "read-held"])?)?;
        drop(giver);
        if twin {
            ensure!(tried.got, "the entitled twin did not read: {}", tried.text);
        } else {
            s.judge(&tried)?;
        }
    }
    Ok(())
}

fn by_way_of_proc(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    let holder = s.waiting(
        &root("entitled"),
        &["hold /srv/t/key", "keep", "map-held"],
        &[],
    )?;
    let pid = holder.pid();
    let mapped = fs::read_dir(format!("/proc/{pid}/map_files"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| fs::read_link(path).is_ok_and(|to| to.ends_with("srv/t/key")))
        .context("the holder's mapping is not there")?;
    for path in [
        format!("/proc/{pid}/fd/9"),
        format!("/proc/{pid}/root/srv/t/key"),
        mapped.display().to_string(),
    ] {
        let step = format!("read {path}");
        s.twin(&root("entitled"), Goal::Read, &[&step])?;
        s.attack(&root("other"), Goal::Read, &[&step])?;
    }
    Ok(())
}

fn memory_of_a_holder(s: &mut Stage<'_>) -> Result<()> {
    // What /proc says whatever the reason.
    s.refusals = &[libc::EPERM, libc::EACCES];
    s.standard()?;
    let app = s.app_unit()?;
    let inside = || Actor::new("/opt/t/other").within(app.name());
    let clean = s.waiting(&root("entitled"), &["expose"], &[])?;
    let same_unit = s.waiting(&inside(), &["read /srv/t/unit-key", "expose"], &[])?;
    let holder = s.waiting(&root("entitled"), &[READ, "expose"], &[])?;
    for way in ["vm-read", "mem-read", "trace"] {
        let step = |of: &super::stage::Waiting| -> Result<String> {
            Ok(format!(
                "{way} {} {}",
                of.pid(),
                of.said("expose", "address")?
            ))
        };
        s.twin(&root("other"), Goal::Read, &[&step(&clean)?])?;
        s.twin(&inside(), Goal::Read, &[&step(&same_unit)?])
            .context("within one unit")?;
        s.attack(&root("other"), Goal::Read, &[&step(&holder)?])?;
    }
    Ok(())
}
