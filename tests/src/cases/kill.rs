//! Action `kill`: dead before a byte leaves.

use anyhow::Result;

use super::{Scene, cases, entitled, other, standard::DESTINATIONS};
use crate::harness::{Allowed, Bundle, Expect, Killed, Refused};

cases![
    kill_before_a_byte_leaves,
    kill_twin_with_block,
    kill_at_the_read
];

const READ: (&str, Expect) = ("read /srv/t/kill-key", Allowed);

fn kill_before_a_byte_leaves(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for step in [
        "tcp 10.20.0.66:9000",
        "udp 10.20.0.66:9000",
        "udp-connected [fd20::66]:9000",
        "tcp-fast-open 10.20.0.66:9000",
        "tcp [::ffff:10.20.0.66]:9000",
    ] {
        scene.check(&entitled(), &[READ, (step, Killed)])?;
    }
    let dialled = [("dial 10.20.0.66:9000", Allowed), READ, ("send", Killed)];
    scene.check(&entitled(), &dialled)?;
    scene.check(&entitled(), &[READ, ("tcp 10.20.0.2:9000", Allowed)])?;
    Ok(())
}

fn kill_twin_with_block(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let steps = [
        ("read /srv/t/key", Allowed),
        ("tcp 10.20.0.66:9000", Refused("outside-destination")),
        ("tcp 10.20.0.2:9000", Allowed),
    ];
    scene.check(&entitled(), &steps)?;
    Ok(())
}

fn kill_at_the_read(scene: &mut Scene) -> Result<()> {
    let bundle = Bundle::of_key(&format!("{DESTINATIONS}, action: block"))
        .front("defaults: {action: kill}\n");
    scene.on(&bundle)?;
    scene.check(&other(), &[("read /srv/t/key", Killed)])?;
    scene.check(&other(), &[("read /srv/t/second-key", Allowed)])?;
    let steps = [
        ("read /srv/t/key", Allowed),
        ("tcp 10.20.0.66:9000", Refused("outside-destination")),
    ];
    scene.check(&entitled(), &steps)?;
    Ok(())
}
