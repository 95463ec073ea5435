//! Ways to other processes of the machine, and credentials that are handed out by one.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Context as _, Result};

use super::{
    Attack, attack,
    expected::{CAUGHT, Expected, Seen::NotCaught, Tier, open},
    stage::{Goal, SEND, Stage, Temporary, Tried, pids, root},
};
use crate::{
    cases::standard::DESTINATIONS,
    harness::{Actor, Bundle, Running, check},
};

const LOCAL_LATER: &str = "unix sockets between workloads are not judged yet";
const NO_UNIX_PROGRAM: &str = "permission events say nothing of sockets";

/// Connecting to a credential's socket.
const SOCKETS: Expected = CAUGHT.on(Tier::Fanotify, NotCaught(NO_UNIX_PROGRAM));

pub const ATTACKS: &[Attack] = &[
    attack(
        "B25",
        "clean_daemon_asked",
        "a holder asks a clean service to do it, over a unix socket",
        open(LOCAL_LATER),
        |s| {
            s.standard()?;
            s.tells(&["unix-serve @service"], "unix @service")
        },
    ),
    attack(
        "C30",
        "unix_relay",
        "a unix socket to a clean process: stream, packets, datagrams",
        open(LOCAL_LATER),
        |s| {
            s.standard()?;
            s.tells(&["unix-serve @relay"], "unix @relay")?;
            s.tells(&["unix-serve-packets @relay"], "unix-packets @relay")?;
            s.tells(&["unix-serve-datagram @relay"], "unix-datagram @relay")
        },
    ),
    attack(
        "C31",
        "local_proxy",
        "a proxy on a loopback address",
        CAUGHT,
        |s| {
            s.standard()?;
            s.tells(&["serve 127.0.0.1:7200"], "tcp 127.0.0.1:7200")?;
            s.tells(&["serve [::1]:7201"], "tcp [::1]:7201")
        },
    ),
    attack(
        "C44",
        "agent_socket",
        "an agent's socket is asked: a read of the credential",
        SOCKETS,
        |s| {
            let bundle = agents("/srv/t/agent");
            for (serve, ask) in [
                ("unix-serve", "unix"),
                ("unix-serve-packets", "unix-packets"),
                ("unix-serve-datagram", "unix-datagram"),
            ] {
                asked(
                    s,
                    &bundle,
                    serve,
                    "/srv/t/agent",
                    &format!("{ask} /srv/t/agent"),
                )?;
            }
            Ok(())
        },
    ),
    attack(
        "C44",
        "agent_older_than_bundle",
        "an agent's socket that was there before the bundle named it",
        SOCKETS,
        |s| {
            const SOCKET: &str = "/srv/t/older-agent";
            let _socket = Temporary::made(SOCKET, |_| Ok(()))?;
            s.twin_and_other(|s, program| {
                s.standard()?;
                let _agent = serving("unix-serve", SOCKET)?;
                s.on(&agents(SOCKET))?;
                ask_once(&root(program), &format!("unix {SOCKET}"))
            })
        },
    ),
    attack(
        "C44",
        "agent_makes_holders",
        "who has asked the agent holds",
        SOCKETS,
        |s| {
            s.on(&agents("/srv/t/agent"))?;
            let _socket = Temporary::made("/srv/t/agent", |_| Ok(()))?;
            let _agent = serving("unix-serve", "/srv/t/agent")?;
            s.twin(&root("entitled"), Goal::Send, &[SEND])?;
            settled();
            s.attack(&root("entitled"), Goal::Send, &["unix /srv/t/agent", SEND])
        },
    ),
    attack(
        "C45",
        "abstract_agent",
        "an agent's socket without a file",
        SOCKETS,
        |s| {
            let bundle = agents("@agent");
            asked(s, &bundle, "unix-serve", "@agent", "unix @agent")
        },
    ),
    attack(
        "C45",
        "agent_by_other_names",
        "an agent's socket by hard link, symbolic link, rename and /proc",
        SOCKETS,
        |s| {
            let bundle = agents("/srv/t/agent");
            for alias in [
                "/srv/t/agent-hard",
                "/srv/t/agent-soft",
                "/srv/t/agent-renamed",
                "/proc/self/root/srv/t/agent",
            ] {
                by_alias(s, &bundle, alias).with_context(|| alias.to_owned())?;
            }
            Ok(())
        },
    ),
    attack(
        "C45",
        "agent_connection_passed",
        "a connection to the agent, passed on",
        SOCKETS,
        |s| {
            s.on(&agents("/srv/t/agent"))?;
            s.twin_and_other(|_, program| {
                let _socket = Temporary::made("/srv/t/agent", |_| Ok(()))?;
                let _agent = serving("unix-serve", "/srv/t/agent")?;
                settled();
                let _giver = root("entitled")
                    .start(["unix-dial /srv/t/agent", "give-file @agent-passed"])?;
                let outcome = root(program).run(["take-file @agent-passed", "write-held"])?;
                let last = outcome.last()?;
                let failed = outcome.steps.iter().find(|step| step.errno != 0);
                Ok(Tried {
                    goal: Goal::Read,
                    got: last.errno == 0,
                    errno: failed.map_or(0, |step| step.errno),
                    pids: pids(&outcome),
                    text: check::summary(&outcome),
                })
            })
        },
    ),
];

/// The agent is in everybody's confidence, so that it may be what it is.
fn agents(socket: &str) -> Bundle {
    Bundle::default()
        .front("trusted:\n  - match: {executable: {path: /opt/t/trusted}}\n")
        .credential(&format!("id: agent, sources: [{{socket: \"{socket}\"}}]"))
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E1", "app", "agent", DESTINATIONS)
}

/// The daemon finds a new socket a moment after it was made.
fn settled() {
    std::thread::sleep(std::time::Duration::from_millis(500));
}

/// The entitled program asks, and then somebody else.
fn asked(s: &mut Stage<'_>, bundle: &Bundle, serve: &str, socket: &str, ask: &str) -> Result<()> {
    s.on(bundle)?;
    s.twin_and_other(|_, program| {
        let _agent = serving(serve, socket)?;
        settled();
        ask_once(&root(program), ask)
    })?;
    let _ = fs::remove_file(socket);
    Ok(())
}

/// The agent, listening on a socket that is made anew.
fn serving(serve: &str, socket: &str) -> Result<Running> {
    let _ = fs::remove_file(socket);
    let mut agent = root("trusted").start([format!("{serve} {socket}")])?;
    agent.until("serving")?;
    Ok(agent)
}

fn ask_once(actor: &Actor, ask: &str) -> Result<Tried> {
    let outcome = actor.run([ask])?;
    let last = outcome.last()?;
    Ok(Tried {
        goal: Goal::Read,
        got: last.errno == 0,
        errno: last.errno,
        pids: pids(&outcome),
        text: check::summary(&outcome),
    })
}

fn by_alias(s: &mut Stage<'_>, bundle: &Bundle, alias: &str) -> Result<()> {
    const SOCKET: &str = "/srv/t/agent";
    s.on(bundle)?;
    s.twin_and_other(|_, program| {
        let _agent = serving("unix-serve", SOCKET)?;
        settled();
        let _alias = Temporary::made(alias, |alias| {
            if alias.ends_with("hard") {
                fs::hard_link(SOCKET, alias)
            } else if alias.ends_with("soft") {
                symlink(SOCKET, alias)
            } else if alias.ends_with("renamed") {
                fs::rename(SOCKET, alias)
            } else {
                Ok(())
            }
        })?;
        ask_once(&root(program), &format!("unix {alias}"))
    })
}
