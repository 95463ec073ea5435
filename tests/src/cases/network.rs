//! Ways to send: each refused to a holder, and allowed to where it may go.

use std::{net::TcpListener, thread, time::Duration};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

use super::{Scene, cases, entitled, other, standard::DESTINATIONS};
use crate::harness::{Allowed, Bundle, Dropped, Expect, Refused};

cases![
    ipv4,
    ipv6,
    ipv4_mapped_ipv6,
    tcp_fast_open,
    opened_before_the_read,
    spliced_after_the_read,
    datagrams_connected_before_the_read,
    io_uring_connect,
    endpoint_is_a_read,
    loopback_is_another_process,
    wrong_port,
    what_was_permitted_ends,
];

const READ: (&str, Expect) = ("read /srv/t/key", Allowed);
const OUTSIDE: Expect = Refused("outside-destination");

/// All these ways: refused to `forbidden` and allowed to `permitted` for a holder, allowed to both else.
fn gated(scene: &mut Scene, ways: &[&str], forbidden: &str, permitted: &str) -> Result<()> {
    scene.standard()?;
    for way in ways {
        let (out, home) = (format!("{way} {forbidden}"), format!("{way} {permitted}"));
        scene.check(&entitled(), &[READ, (&out, OUTSIDE), (&home, Allowed)])?;
        scene.check(&other(), &[(&out, Allowed), (&home, Allowed)])?;
    }
    Ok(())
}

const WAYS: [&str; 4] = ["tcp", "udp", "udp-connected", "udp-many"];

fn ipv4(scene: &mut Scene) -> Result<()> {
    gated(scene, &WAYS, "10.20.0.66:9000", "10.20.0.2:9000")
}

fn ipv6(scene: &mut Scene) -> Result<()> {
    gated(scene, &WAYS, "[fd20::66]:9000", "[fd20::2]:9000")
}

fn ipv4_mapped_ipv6(scene: &mut Scene) -> Result<()> {
    gated(
        scene,
        &WAYS,
        "[::ffff:10.20.0.66]:9000",
        "[::ffff:10.20.0.2]:9000",
    )
}

fn tcp_fast_open(scene: &mut Scene) -> Result<()> {
    gated(
        scene,
        &["tcp-fast-open"],
        "10.20.0.66:9000",
        "10.20.0.2:9000",
    )?;
    gated(
        scene,
        &["tcp-fast-open"],
        "[fd20::66]:9000",
        "[fd20::2]:9000",
    )
}

/// Who connected and sent before the read goes on only where a holder may.
fn sends_on(scene: &mut Scene, forbidden: &str, permitted: &str) -> Result<()> {
    for (dial, sent) in [(forbidden, OUTSIDE), (permitted, Allowed)] {
        scene.check(
            &entitled(),
            &[
                (dial, Allowed),
                ("send", Allowed),
                READ,
                ("send", sent),
                ("write", sent),
            ],
        )?;
    }
    Ok(())
}

fn opened_before_the_read(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for (forbidden, permitted) in [
        ("dial 10.20.0.66:9000", "dial 10.20.0.2:9000"),
        ("dial [fd20::66]:9000", "dial [fd20::2]:9000"),
    ] {
        sends_on(scene, forbidden, permitted)?;
    }
    Ok(())
}

fn spliced_after_the_read(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let forbidden = ("dial 10.20.0.66:9000", Allowed);
    scene.check(&entitled(), &[forbidden, READ, ("splice", Dropped)])?;
    scene.check(
        &entitled(),
        &[("dial 10.20.0.2:9000", Allowed), READ, ("splice", Allowed)],
    )?;
    scene.check(&entitled(), &[forbidden, ("splice", Allowed)])?;
    Ok(())
}

fn datagrams_connected_before_the_read(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for (forbidden, permitted) in [
        ("dial-udp 10.20.0.66:9000", "dial-udp 10.20.0.2:9000"),
        (
            "dial-udp [::ffff:10.20.0.66]:9000",
            "dial-udp [::ffff:10.20.0.2]:9000",
        ),
    ] {
        sends_on(scene, forbidden, permitted)?;
    }
    Ok(())
}

fn io_uring_connect(scene: &mut Scene) -> Result<()> {
    gated(
        scene,
        &["uring-tcp", "uring-tcp-async"],
        "10.20.0.66:9000",
        "10.20.0.2:9000",
    )
}

fn endpoint_is_a_read(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let endpoint = "tcp 10.20.0.80:80";
    scene.check(
        &entitled(),
        &[
            ("tcp 10.20.0.66:9000", Allowed),
            (endpoint, Allowed),
            ("tcp 10.20.0.66:9000", OUTSIDE),
            ("tcp 10.20.0.2:9000", Allowed),
            (endpoint, Allowed),
        ],
    )?;
    let steps = [(endpoint, Refused("")), ("tcp 10.20.0.66:9000", Allowed)];
    let outcome = scene.check(&other(), &steps)?;
    let events = scene.daemon()?.events.clone();
    let event = events
        .find(|event| event.pid() == u64::from(outcome.pid) && event.is_denial())
        .context("no event")?;
    anyhow::ensure!(
        event.kind() == "read" && event.credential() == "metadata",
        "contacting the endpoint was recorded as {}",
        event.0
    );
    scene.check(&other(), &[("udp 10.20.0.80:80", Refused(""))])?;
    Ok(())
}

fn loopback_is_another_process(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let _listener = TcpListener::bind("127.0.0.1:9100").context("cannot listen")?;
    let local = "tcp 127.0.0.1:9100";
    scene.check(&entitled(), &[READ, (local, Refused("local-peer"))])?;
    scene.check(&other(), &[(local, Allowed)])?;
    scene.check(
        &entitled(),
        &[("read /srv/t/local-key", Allowed), (local, Allowed)],
    )?;
    Ok(())
}

fn wrong_port(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    scene.check(
        &entitled(),
        &[
            READ,
            ("udp 10.20.0.2:9001", OUTSIDE),
            ("tcp 10.20.0.2:9001", OUTSIDE),
        ],
    )?;
    Ok(())
}

/// Who has sent on a connection again and again is refused on it as soon as anything that this depended on is otherwise:
/// what it holds, the bundle, or the time. It stays refused when the daemon has seen that the time is another, which it
/// does within a second.
fn what_was_permitted_ends(scene: &mut Scene) -> Result<()> {
    const SEND: (&str, Expect) = ("send", Allowed);
    let key = |rest: &str| Bundle::of_key(&format!("{DESTINATIONS}{rest}"));
    let strangers = Bundle::of_key("destinations: [{cidr: 10.20.0.66, ports: [9000]}]");
    for dial in ["dial 10.20.0.2:9000", "dial-udp 10.20.0.2:9000"] {
        scene.standard()?;
        let holding_more = ("read /srv/t/jealous-key", Allowed);
        let steps = [
            READ,
            (dial, Allowed),
            SEND,
            SEND,
            holding_more,
            ("send", OUTSIDE),
        ];
        scene.check(&entitled(), &steps)?;

        let steps = [
            READ,
            (dial, Allowed),
            SEND,
            SEND,
            ("pause", Allowed),
            ("send", OUTSIDE),
        ];
        scene.on(&key(""))?;
        between(scene, &steps, |scene| scene.on(&strangers).map(drop))?;

        let end = Timestamp::now() + SignedDuration::from_secs(15);
        scene.on(&key(&format!(", validUntil: {end}")))?;
        let mut steps = vec![READ, (dial, Allowed), SEND, SEND, ("pause", Allowed)];
        for _ in 0..25 {
            steps.extend([("send", Refused("expired")), ("sleep 100", Allowed)]);
        }
        between(scene, &steps, |_| {
            while Timestamp::now() <= end {
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Does the steps up to the pause, then something else, then the rest.
fn between(
    scene: &mut Scene,
    steps: &[(&str, Expect)],
    change: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<()> {
    let before = scene.outside.counts()?;
    let mut sender = entitled().start(steps.iter().map(|(step, _)| step))?;
    sender.until("paused")?;
    change(scene)?;
    sender.go_on()?;
    scene.compare(&before, &sender.finish()?, entitled().steps_before(), steps)
}
