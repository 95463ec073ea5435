//! Steps against what they should come to.

use std::{net::SocketAddr, thread};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    A_MOMENT, Outcome, Step,
    actors::Actor,
    daemon::Daemon,
    events::Event,
    outside::{Counts, Outside},
    wait_for,
};
use crate::peer;

/// What a step should come to.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It works, and what it sends arrives.
    Allowed,
    /// `EPERM`, nothing arrives, and an event with this reason; any if empty, one of several with `|`.
    Refused(&'static str),
    /// Whatever the call says, nothing arrives, and there is an event.
    Dropped,
    /// The process is killed in it, and nothing arrives.
    Killed,
}

use Expect::{Allowed, Dropped, Killed, Refused};

/// Runs the steps and compares: results, bytes that arrived, events.
pub fn check(
    daemon: Option<&Daemon>,
    outside: &mut Outside,
    actor: &Actor,
    steps: &[(&str, Expect)],
) -> Result<Outcome> {
    let before = outside.counts()?;
    let outcome = actor.run(steps.iter().map(|(step, _)| *step))?;
    compare(
        daemon,
        outside,
        &before,
        &outcome,
        actor.steps_before(),
        steps,
    )?;
    Ok(outcome)
}

/// Compares what was done since `before` with what was expected, leaving out the first `skip` steps.
pub fn compare(
    daemon: Option<&Daemon>,
    outside: &mut Outside,
    before: &Counts,
    outcome: &Outcome,
    skip: usize,
    expected: &[(&str, Expect)],
) -> Result<()> {
    let mut done = outcome.steps.iter();
    for step in done.by_ref().take(skip) {
        ensure!(
            step.errno == 0,
            "`{}` ended with {}",
            step.text,
            name(step.errno)
        );
    }
    let done: Vec<&Step> = done.filter(|step| step.text != "paused").collect();
    for (index, (step, expect)) in expected.iter().enumerate() {
        let all = || format!("the steps came to {}", summary(outcome));
        if let Killed = expect {
            ensure!(
                outcome.was_killed() && done.len() == index,
                "`{step}` should have been its last, by SIGKILL; it ended with {}; {}",
                outcome.status,
                all()
            );
        } else {
            let result = done.get(index).with_context(|| {
                format!("`{step}` was not come to: {}; {}", outcome.status, all())
            })?;
            result_is(result, *expect).with_context(all)?;
        }
    }
    arrivals(outside, before, expected, &done)?;
    if let Some(daemon) = daemon {
        for (index, (step, expect)) in expected.iter().enumerate() {
            let pid = done.get(index).map_or(outcome.pid, |step| step.pid);
            event_for(daemon, pid, step, *expect)?;
        }
    }
    Ok(())
}

fn result_is(step: &Step, expect: Expect) -> Result<()> {
    let wanted = match expect {
        Allowed => 0,
        Refused(_) => libc::EPERM,
        Dropped | Killed => return Ok(()),
    };
    ensure!(
        step.errno == wanted,
        "`{}` ended with {}, expected {}",
        step.text,
        name(step.errno),
        name(wanted)
    );
    if step.text.starts_with("read") && wanted == 0 {
        ensure!(step.read > 0, "`{}` read nothing", step.text);
    }
    Ok(())
}

/// What should have arrived has, and nothing else.
fn arrivals(
    outside: &mut Outside,
    before: &Counts,
    expected: &[(&str, Expect)],
    done: &[&Step],
) -> Result<()> {
    let mut wanted = before.clone();
    for (step, (_, expect)) in done.iter().zip(expected) {
        if let (Some((protocol, to, bytes)), Allowed) = (&step.sent, expect)
            && !to.ip().is_loopback()
        {
            *wanted.entry(format!("{protocol} {to}")).or_default() += bytes;
        }
    }
    if expected
        .iter()
        .any(|(_, expect)| !matches!(expect, Allowed))
    {
        thread::sleep(A_MOMENT);
    }
    let arrived = wait_for("bytes to arrive", || {
        let now = outside.counts().ok()?;
        let all = wanted
            .iter()
            .all(|(key, bytes)| now.get(key) >= Some(bytes));
        all.then_some(now)
    })
    .with_context(|| {
        format!(
            "{wanted:?} should have arrived, it was {:?}",
            outside.counts()
        )
    })?;
    ensure!(
        arrived == wanted,
        "{arrived:?} arrived, and it should have been {wanted:?}, after {before:?}"
    );
    Ok(())
}

/// A refusal has its event.
fn event_for(daemon: &Daemon, pid: u32, step: &str, expect: Expect) -> Result<()> {
    let (reasons, taken) = match expect {
        Refused(reasons) => (reasons, Some("block")),
        Killed => ("", Some("kill")),
        Dropped => ("", None),
        Allowed => return Ok(()),
    };
    let to = step
        .split(' ')
        .find_map(|word| word.parse::<SocketAddr>().ok())
        .map(peer::plain);
    let matches = |event: &Event| {
        event.pid() == u64::from(pid)
            && event.is_denial()
            && (to.is_none() || event.destination() == to)
            && (reasons.is_empty() || reasons.split('|').any(|reason| event.reason() == reason))
            && taken.is_none_or(|taken| event.action_taken() == taken)
    };
    wait_for("an event", || daemon.events.find(matches)).with_context(|| {
        let of: Vec<_> = daemon
            .events
            .of(pid)
            .into_iter()
            .map(|event| event.0)
            .collect();
        format!(
            "no denial of `{step}` by {pid} for {:?}; its events are {of:?}",
            (reasons, taken)
        )
    })?;
    Ok(())
}

/// What an errno is called.
pub fn name(errno: i32) -> String {
    match errno {
        0 => "success".to_owned(),
        errno => format!("{:?}", nix::errno::Errno::from_raw(errno)),
    }
}

/// All steps with their results.
pub fn summary(outcome: &Outcome) -> String {
    let mut parts: Vec<String> = outcome
        .steps
        .iter()
        .map(|step| format!("`{}`: {}", step.text, name(step.errno)))
        .collect();
    parts.extend(outcome.other.iter().map(|line| format!("{line:?}")));
    parts.push(outcome.status.to_string());
    parts.join(", ")
}

/// All readers saw nothing but refusals, or nothing but success.
pub fn readers_agree(outcome: &Outcome, allowed: bool) -> Result<u64> {
    let counts = outcome.last()?;
    let (opened, refused) = (counts.count("opened"), counts.count("refused"));
    if allowed && refused == 0 && counts.count("other") == 0 && opened > 0 {
        return Ok(opened);
    }
    if !allowed && opened == 0 && counts.read == 0 && refused > 0 {
        return Ok(refused);
    }
    bail!(
        "a reader that should be {} saw {}, and {} bytes",
        if allowed { "allowed" } else { "refused" },
        counts.more,
        counts.read
    )
}
