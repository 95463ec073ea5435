//! Credentials in environment variables.

use anyhow::Result;
use enforcer_common::capacity::ENVIRONMENT_PIECES;

use super::{
    Attack, attack,
    expected::{CAUGHT, hooks_only, open},
    stage::{Goal, SEND, Stage},
};
use crate::{
    cases::{entitled, other, standard::DESTINATIONS},
    harness::Bundle,
};

pub const ATTACKS: &[Attack] = &[
    attack(
        "A27",
        "started_with_it",
        "a process started with the variable holds from then on",
        CAUGHT,
        |s| {
            in_force(s)?;
            s.twin(&entitled(), Goal::Send, &["exec-with OTHER=x", SEND])?;
            s.attack(&entitled(), Goal::Send, &["exec-with APP_TOKEN=x", SEND])
        },
    ),
    attack(
        "A27",
        "environment_of_another",
        "another process's environment, by /proc/PID/environ",
        hooks_only("permission events say nothing of other processes' environment"),
        |s| {
            // What /proc says whatever the reason.
            s.refusals = &[libc::EPERM, libc::EACCES];
            in_force(s)?;
            // Not as root: from 6.15 on CAP_PERFMON is enough to read it, whatever the hook says.
            let clean = s.waiting(&entitled(), &["exec-with OTHER=x"], &[])?;
            s.twin(
                &other(),
                Goal::Read,
                &[&format!("read /proc/{}/environ", clean.pid())],
            )?;
            let holder = s.waiting(&entitled(), &["exec-with APP_TOKEN=x"], &[])?;
            s.attack(
                &other(),
                Goal::Read,
                &[&format!("read /proc/{}/environ", holder.pid())],
            )
        },
    ),
    attack(
        "A28",
        "hidden_in_a_crowd",
        "the variable after two thousand others",
        CAUGHT,
        |s| {
            in_force(s)?;
            s.twin(&entitled(), Goal::Send, &[SEND])?;
            // Just so many that all are looked at.
            let looked_at = format!("exec-crowded {} OTHER=x", ENVIRONMENT_PIECES - 2);
            s.twin(&entitled(), Goal::Send, &[&looked_at, SEND])?;
            let crowded = "exec-crowded 2000 APP_TOKEN=x";
            s.attack(&entitled(), Goal::Send, &[crowded, SEND])?;
            s.attack(&entitled(), Goal::Send, &[crowded, "fork", SEND])
        },
    ),
    attack(
        "A28",
        "under_another_name",
        "the value under another name",
        open("a variable is known by its name"),
        |s| {
            in_force(s)?;
            s.twin(&entitled(), Goal::Send, &[SEND])?;
            s.attack(&entitled(), Goal::Send, &["exec-with RENAMED=x", SEND])
        },
    ),
];

fn in_force(s: &mut Stage<'_>) -> Result<()> {
    let bundle = Bundle::default()
        .credential("id: token, sources: [{environment: APP_TOKEN}]")
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E1", "app", "token", DESTINATIONS);
    s.on(&bundle).map(|_| ())
}
