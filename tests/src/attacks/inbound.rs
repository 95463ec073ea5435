//! Connections that come from outside.

use anyhow::{Result, ensure};

use super::{
    Attack, attack,
    expected::{CALLERS_ONLY, open},
    stage::{Goal, READ, Stage, Tried, pids},
};
use crate::{
    cases::{entitled, standard::DESTINATIONS},
    harness::{Bundle, check},
};

const HERE: &str = "10.20.0.1:7100";
const ANSWER: &str = "answer 10.20.0.1:7100";
const ANYWHERE: &str = "10.20.0.66:0";
const PARTNER: &str = "10.20.0.2:0";

pub const ATTACKS: &[Attack] = &[
    attack(
        "C28",
        "inbound_denied",
        "a holder listens and lets itself be asked, where the bundle denies that",
        CALLERS_ONLY,
        |s| {
            s.on(&bundle("defaults: {inbound: deny}\n", ""))?;
            let twin = pulled(s, &[ANSWER], ANYWHERE, true)?;
            ensure!(twin.got, "who holds nothing was not heard: {}", twin.text);
            let tried = pulled(s, &[READ, ANSWER], ANYWHERE, false)?;
            s.judge(&tried)
        },
    ),
    attack(
        "C28",
        "inbound_served",
        "the same, with an entitlement that says who is served",
        CALLERS_ONLY,
        |s| {
            s.on(&bundle(
                "defaults: {inbound: deny}\n",
                ", serves: [{ports: [7100], from: [10.20.0.2/32]}]",
            ))?;
            let twin = pulled(s, &[READ, ANSWER], PARTNER, true)?;
            ensure!(twin.got, "who is served was not: {}", twin.text);
            let tried = pulled(s, &[READ, ANSWER], ANYWHERE, false)?;
            s.judge(&tried)
        },
    ),
    attack(
        "C28",
        "inbound_permitted",
        "the same where the bundle permits answers",
        open("the bundle permits it, which is the default"),
        |s| {
            s.on(&bundle("defaults: {inbound: permit}\n", ""))?;
            let twin = pulled(s, &[ANSWER], ANYWHERE, true)?;
            ensure!(twin.got, "who holds nothing was not heard: {}", twin.text);
            let tried = pulled(s, &[READ, ANSWER], ANYWHERE, true)?;
            s.judge(&tried)
        },
    ),
];

fn bundle(front: &str, serves: &str) -> Bundle {
    Bundle::of_key(&format!("{DESTINATIONS}{serves}")).front(front)
}

/// The world outside connects and takes what it is given.
fn pulled(s: &mut Stage<'_>, steps: &[&str], from: &str, hope: bool) -> Result<Tried> {
    let before = s.frames()?;
    let mut server = entitled().start(steps)?;
    server.until("serving")?;
    s.scene.outside.pull(from, HERE)?;
    let got = s.arrived(&before, hope)?;
    let outcome = server.finish()?;
    Ok(Tried {
        goal: Goal::Send,
        got,
        errno: outcome.last()?.errno,
        pids: pids(&outcome),
        text: check::summary(&outcome),
    })
}
