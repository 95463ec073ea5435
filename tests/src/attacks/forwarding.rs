//! A secret handed on: by pipes, unix sockets and files, to another process or workload.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::{sys::stat::Mode, unistd};

use super::{
    Attack, attack,
    expected::{
        Expected,
        Seen::{Caught, NotCaught},
        hooks_only, open,
    },
    stage::{Goal, HOME, READ, SEND, Stage, Temporary, Tried, root},
};
use crate::{
    cases::standard::DESTINATIONS,
    harness::{Actor, Bundle, Cgroup, Event, PROGRAMS, Running, wait_for},
};

const KEY: &str = "/srv/t/key";
/// What is like it and of no interest.
const NIL: &str = "/srv/t/nil";
const FIFO: &str = "/srv/t/followed-fifo";
const COPY: &str = "/srv/t/copy";

const FOLLOWED: Expected = hooks_only("no hooks: what is handed on is not followed");

pub const ATTACKS: &[Attack] = &[
    attack(
        "B01",
        "command_substitution_alone",
        "one child of a shell reads, another sends, outside any unit; the event names the way",
        FOLLOWED,
        |s| {
            s.standard()?;
            let script = |file: &str| {
                format!("T=$({PROGRAMS}/entitled read {file}); {PROGRAMS}/other {SEND}; : $T")
            };
            let outcome = shell(s, &script(NIL), &script(KEY))?;
            way(s, &outcome, &[("read", "entitled"), ("pipe", "busybox")])
        },
    ),
    attack(
        "B02",
        "pipeline_alone",
        "a pipeline from who reads to who sends, outside any unit",
        FOLLOWED,
        |s| {
            s.standard()?;
            let script = |file: &str| {
                format!(
                    "{PROGRAMS}/entitled read {file} | {{ read line; {PROGRAMS}/other {SEND}; }}"
                )
            };
            shell(s, &script(NIL), &script(KEY)).map(drop)
        },
    ),
    attack(
        "B02",
        "spliced_pipes",
        "from a pipe with a secret in it into another, by splice and by tee",
        FOLLOWED,
        |s| {
            s.standard()?;
            for way in ["splice-on", "tee-on"] {
                let script = |file: &str| {
                    format!(
                        "{PROGRAMS}/entitled read {file} | {{ sleep 1; {PROGRAMS}/other {way}; }} | {{ read line; {PROGRAMS}/other {SEND}; }}"
                    )
                };
                shell(s, &script(NIL), &script(KEY)).with_context(|| way.to_owned())?;
            }
            Ok(())
        },
    ),
    attack(
        "B02",
        "vmspliced_pipe",
        "memory of a holder lent to a pipe",
        open("no hook sees vmsplice into a pipe"),
        |s| {
            s.standard()?;
            let script = |file: &str| {
                format!(
                    "{PROGRAMS}/entitled vmsplice-on {file} | {{ read line; {PROGRAMS}/other {SEND}; }}"
                )
            };
            shell(s, &script(NIL), &script(KEY)).map(drop)
        },
    ),
    attack(
        "B02",
        "fifo_between_units_followed",
        "a named pipe from one unit to another, of a credential that is followed",
        FOLLOWED,
        |s| {
            s.on(&following())?;
            through_fifo(s)
        },
    ),
    attack(
        "B02",
        "fifo_between_units_not_followed",
        "the same where the bundle does not say so",
        open("between units only credentials with `follow` are followed"),
        |s| {
            s.on(&bundle("id: key, sources: [{file: /srv/t/key}]"))?;
            through_fifo(s)
        },
    ),
    attack(
        "C30",
        "unix_relay_followed",
        "a unix socket to another workload, of a credential that is followed: stream, packets, datagrams",
        FOLLOWED,
        |s| {
            s.on(&following())?;
            for (serve, tell) in [
                ("unix-serve", "unix"),
                ("unix-serve-packets", "unix-packets"),
                ("unix-serve-datagram", "unix-datagram"),
            ] {
                let listen = format!("{serve} @followed");
                let told = format!("{tell} @followed");
                relayed(s, &[&listen, SEND], &[READ, &told]).with_context(|| tell.to_owned())?;
            }
            Ok(())
        },
    ),
    attack(
        "B04",
        "file_relay",
        "a file that another workload reads and sends",
        open("files are followed for credentials with `follow` only"),
        |s| {
            s.on(&bundle("id: key, sources: [{file: /srv/t/key}]"))?;
            copied(s, &["write-file /srv/t/copy"])
        },
    ),
    attack(
        "B04",
        "copies_followed",
        "copies of a credential that is followed are credentials: by write, splice, a mapping, a rename",
        FOLLOWED,
        |s| {
            s.on(&following())?;
            for way in [
                "write-file /srv/t/copy",
                "splice-file /srv/t/key /srv/t/copy",
                "map-file /srv/t/copy",
                "write-renamed /srv/t/copy",
            ] {
                copied(s, &[way]).with_context(|| way.to_owned())?;
            }
            Ok(())
        },
    ),
    attack(
        "B10",
        "declassified",
        "what the bundle declassifies is no copy and makes nobody a holder",
        open("the bundle says so"),
        |s| {
            let bundle = following()
                .declassify(&format!(
                    "match: {{executable: {{path: {PROGRAMS}/trusted}}}}"
                ))
                .declassify("file: /srv/t/cop*");
            s.on(&bundle)?;
            copied(s, &["write-file /srv/t/copy"])?;
            // Who declassifies takes from the pipe, and goes on as before.
            let _fifo = fifo()?;
            let reader = root("trusted").start([&format!("read {FIFO}"), SEND])?;
            passed_on(
                s,
                reader,
                &root("entitled"),
                &[READ, &format!("write-file {FIFO}")],
            )
        },
    ),
];

/// One credential, one workload that may use it.
fn bundle(credential: &str) -> Bundle {
    Bundle::default()
        .credential(credential)
        .workload("app", &format!("executable: {{path: {PROGRAMS}/entitled}}"))
        .entitlement("E1", "app", "key", DESTINATIONS)
}

fn following() -> Bundle {
    bundle("id: key, follow: true, sources: [{file: /srv/t/key}]")
}

/// A shell outside any unit runs the harmless script, and then the other.
fn shell(s: &mut Stage<'_>, twin: &str, attack: &str) -> Result<Tried> {
    let hope = matches!(s.seen, NotCaught(_));
    let mut run = |script: &str, hope: bool| -> Result<Tried> {
        let before = s.frames()?;
        let outcome = root("other").run([format!("shell {script}")])?;
        s.sent(&before, hope, &outcome)
    };
    let tried = run(twin, true)?;
    ensure!(tried.got, "the harmless twin did not send: {}", tried.text);
    let tried = run(attack, hope)?;
    s.judge(&tried)?;
    Ok(tried)
}

/// The event of the denial says how the secret came there: what was done by which program.
fn way(s: &mut Stage<'_>, tried: &Tried, expected: &[(&str, &str)]) -> Result<()> {
    if !matches!(s.seen, Caught) {
        return Ok(());
    }
    let event = s.denial("reach", &tried.pids)?;
    let found = hops(&event);
    let fits = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|((how, exe), (expected, program))| how == expected && exe.contains(program));
    ensure!(fits, "the way was {found:?}, expected {expected:?}");
    Ok(())
}

fn hops(event: &Event) -> Vec<(String, String)> {
    let hops = event.0["path"].as_array().cloned().unwrap_or_default();
    let text =
        |hop: &serde_json::Value, field: &str| hop[field].as_str().unwrap_or_default().to_owned();
    hops.iter()
        .map(|hop| (text(hop, "how"), text(hop, "exe")))
        .collect()
}

fn fifo() -> Result<Temporary> {
    Temporary::made(FIFO, |path| {
        unistd::mkfifo(path, Mode::from_bits_retain(0o666)).map_err(Into::into)
    })
}

/// From a unit to another.
fn through_fifo(s: &mut Stage<'_>) -> Result<()> {
    let (from, to) = (Cgroup::unit("from.service")?, Cgroup::unit("to.service")?);
    let writer = root("entitled").within(from.name());
    let reader = root("other").within(to.name());
    let (take, give) = (format!("read {FIFO}"), format!("write-file {FIFO}"));
    for (steps, hope) in [(vec![give.as_str()], true), (vec![READ, &give], false)] {
        let _fifo = fifo()?;
        let reader = reader.start([take.as_str(), SEND])?;
        if hope {
            heard(s, reader, &writer, &steps, true)?;
        } else {
            passed_on(s, reader, &writer, &steps)?;
        }
    }
    Ok(())
}

/// Somebody in one unit tells somebody in another, who then sends.
fn relayed(s: &mut Stage<'_>, listening: &[&str], telling: &[&str]) -> Result<()> {
    let (from, to) = (Cgroup::unit("from.service")?, Cgroup::unit("to.service")?);
    let teller = root("entitled").within(from.name());
    let start = || -> Result<Running> {
        let mut listener = root("other").within(to.name()).start(listening)?;
        listener.until("serving")?;
        Ok(listener)
    };
    heard(s, start()?, &teller, &telling[1..], true)?;
    passed_on(s, start()?, &teller, telling)
}

/// The giver does its steps, and whoever takes sends in its last step.
fn heard(
    s: &mut Stage<'_>,
    taker: Running,
    giver: &Actor,
    steps: &[&str],
    hope: bool,
) -> Result<Tried> {
    let before = s.frames()?;
    s.works(giver, steps)?;
    let outcome = taker.finish()?;
    let tried = s.sent(&before, hope, &outcome)?;
    ensure!(
        !hope || tried.got,
        "the harmless twin did not send: {}",
        tried.text
    );
    Ok(tried)
}

fn passed_on(s: &mut Stage<'_>, taker: Running, giver: &Actor, steps: &[&str]) -> Result<()> {
    let hope = matches!(s.seen, NotCaught(_));
    let tried = heard(s, taker, giver, steps, hope)?;
    s.judge(&tried)
}

/// Who holds writes a file in some way, and others read it.
fn copied(s: &mut Stage<'_>, ways: &[&str]) -> Result<()> {
    let read = format!("read {COPY}");
    for way in ways {
        let _copy = Temporary::made(COPY, |path| fs::write(path, "x".repeat(64)))?;
        let harmless = way.replace(KEY, NIL);
        s.works(&root("entitled"), &[&harmless])?;
        s.twin(&root("other"), Goal::Read, &[&read])?;
        drop(fs::remove_file(COPY));
        fs::write(COPY, "x".repeat(64))?;
        s.works(&root("entitled"), &[READ, way])?;
        s.twin(&root("entitled"), Goal::Read, &[&read])?;
        s.attack(&root("other"), Goal::Read, &[&read])?;
        if let Caught = s.seen {
            // What holds a copy holds the credential.
            s.attack(&root("entitled"), Goal::Send, &[&read, SEND])?;
            s.twin(&root("entitled"), Goal::Send, &[&read, HOME])?;
        }
        wait_for("the copy to go", || fs::remove_file(COPY).ok())?;
        fs::write(COPY, "")?;
    }
    Ok(())
}
