//! What was connected, queued or being sent before the holding began.

use anyhow::{Context as _, Result};

use super::{
    Attack, attack,
    expected::{CALLERS_ONLY, CAUGHT, Seen::NotRun, Tier},
    stage::{Goal, READ, Stage, root},
};
use crate::{
    cases::{entitled, standard::DESTINATIONS},
    harness::{Allowed, Bundle, Killed},
};

const DIAL: &str = "dial 10.20.0.66:9000";

pub const ATTACKS: &[Attack] = &[
    attack(
        "C23",
        "connected_before",
        "a connection from before the holding: send, write, io_uring",
        CAUGHT,
        |s| {
            for way in ["send", "write", "uring-send", "uring-send-async"] {
                s.sends_home(&[DIAL], &[way])?;
                s.sends_home(&["dial [fd20::66]:9000"], &[way])?;
            }
            s.sends_home(&["dial-udp 10.20.0.66:9000"], &["send"])
        },
    ),
    attack(
        "C24",
        "blocked_send",
        "a send that began before the reading, its end filled afterwards",
        CAUGHT,
        |s| {
            s.alone()?;
            straddles(s, "long-send")
        },
    ),
    attack(
        "C25",
        "zero_copy",
        "pages queued without a copy, rewritten after the reading",
        CAUGHT,
        |s| {
            s.alone()?;
            straddles(s, "zero-copy")
        },
    ),
    attack(
        "C27",
        "spliced",
        "sendfile, splice, vmsplice and io_uring's splice to a connection",
        CAUGHT,
        |s| {
            for way in ["send-file", "splice", "vmsplice", "uring-splice"] {
                s.sends_home(&[DIAL], &[way])?;
            }
            Ok(())
        },
    ),
    attack(
        "C29",
        "borrowed_connection",
        "a connection that a clean process made and passes to a holder",
        CALLERS_ONLY,
        |s| {
            s.standard()?;
            for (steps, twin) in [
                (&["take-connection @lent 10.20.0.66:9000", "send"][..], true),
                (
                    &[READ, "take-connection @lent 10.20.0.66:9000", "send"][..],
                    false,
                ),
            ] {
                let lender = root("other").start([DIAL, "give-connection @lent"])?;
                if twin {
                    s.twin(&root("entitled"), Goal::Send, steps)?;
                } else {
                    s.attack(&root("entitled"), Goal::Send, steps)?;
                }
                drop(lender);
            }
            Ok(())
        },
    ),
    attack(
        "C42",
        "killed_in_the_send",
        "a killed process's queue: nothing of it goes out",
        CAUGHT.on(
            Tier::Fanotify,
            NotRun("no program sees that send; the packet is dropped"),
        ),
        |s| {
            s.standard()?;
            // Waits for its bytes to be read, or they would count as the other's.
            let twin = [(DIAL, Allowed), ("send", Allowed)];
            s.scene.check(&entitled(), &twin)?;
            let steps = [
                (DIAL, Allowed),
                ("read /srv/t/kill-key", Allowed),
                ("send", Killed),
            ];
            s.scene.check(&entitled(), &steps).map(drop)
        },
    ),
    attack(
        "C23",
        "revoked_while_connected",
        "an established flow whose entitlement is taken away",
        CAUGHT,
        |s| {
            let bundle = |destinations: &str| {
                Bundle::default()
                    .file("key", "/srv/t/key")
                    .workload("app", "executable: {path: /opt/t/entitled}")
                    .entitlement("E1", "app", "key", destinations)
            };
            s.on(&bundle(DESTINATIONS))?;
            s.twin(
                &entitled(),
                Goal::Send,
                &[READ, "dial 10.20.0.2:9000", "send"],
            )?;
            let late = s.waiting(&entitled(), &[READ, "dial 10.20.0.2:9000"], &["send"])?;
            s.on(&bundle("destinations: none"))?;
            let before = s.frames()?;
            let outcome = late.go_on()?;
            let tried = s.sent(&before, false, &outcome)?;
            s.judge(&tried)
        },
    ),
];

/// The same with a file that is no credential, and with one that is.
fn straddles(s: &mut Stage<'_>, way: &str) -> Result<()> {
    s.standard()?;
    let to = crate::peer::SLOW;
    // As root, whose pages may be pinned on every kernel.
    let (twin, attack) = (
        format!("{way} {to} /srv/t/nil"),
        format!("{way} {to} /srv/t/key"),
    );
    s.twin(&root("entitled"), Goal::Send, &[&twin])?;
    s.attack(&root("entitled"), Goal::Send, &[&attack])
        .with_context(|| way.to_owned())
}
