//! How secrets travel through the programs that everybody has: Python, git, ssh, docker.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Scene, cases,
    scripts::{arrived, way},
};
use crate::{
    harness::{Bundle, PROGRAMS, wait_for},
    peer,
};

cases![
    python_hands_a_secret_on,
    git_asks_its_credential_helper,
    ssh_reads_its_key,
    docker_reads_a_password,
];

const KEY: &str = "/srv/t/key";
const PYTHON: &str = "/usr/bin/python3.13";

/// What is entitled to the key, each at the one destination.
fn bundle() -> Bundle {
    let mut bundle = Bundle::default()
        .file("key", KEY)
        .file("ssh-key", "/srv/t/id");
    for (id, program) in [
        ("app", "/opt/t/entitled"),
        ("python", PYTHON),
        ("docker", "/usr/bin/docker"),
        ("ssh", "/usr/bin/ssh"),
    ] {
        let credential = if id == "ssh" { "ssh-key" } else { "key" };
        bundle = bundle
            .workload(id, &format!("executable: {{path: {program}}}"))
            .entitlement(
                &format!("E-{id}"),
                id,
                credential,
                "destinations: [{cidr: 10.20.0.2, ports: [9000]}]",
            );
    }
    bundle
}

/// Runs a script in a shell outside any unit.
fn shell(script: &str) -> Result<Output> {
    Command::new("/bin/sh")
        .args(["-c", script])
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .output()
        .context("cannot run a shell")
}

/// A script sends to the destination at its end what it has: there it may, and elsewhere it may not, and the event of
/// that says which program tried, and through what the secret came to it.
fn travels(
    scene: &mut Scene,
    program: &str,
    hands: &[&str],
    script: impl Fn(&str) -> String,
) -> Result<()> {
    ensure!(
        Path::new(program).exists(),
        "{program} is not here: boot with `cargo xtask vm --tools`"
    );
    scene.on(&bundle())?;
    let before = arrived(scene, peer::ALLOWED)?;
    let output = shell(&script(peer::ALLOWED))?;
    wait_for("the entitled end's bytes", || {
        (arrived(scene, peer::ALLOWED).ok()? > before).then_some(())
    })
    .with_context(|| format!("{output:?}"))?;

    let before = arrived(scene, peer::FORBIDDEN)?;
    let output = shell(&script(peer::FORBIDDEN))?;
    let events = scene.daemon()?.events.clone();
    let denial = wait_for("the denial", || {
        events.find(|event| {
            event.is_denial()
                && event.kind() == "reach"
                && event.0["process"]["exe"] == program
                && event
                    .destination()
                    .is_some_and(|to| to.to_string() == peer::FORBIDDEN)
        })
    })
    .with_context(|| format!("{output:?}"))?;
    ensure!(
        arrived(scene, peer::FORBIDDEN)? == before,
        "something arrived"
    );
    if hands.is_empty() {
        return Ok(());
    }
    way(scene, denial.pid() as u32, hands)
}

fn python_hands_a_secret_on(scene: &mut Scene) -> Result<()> {
    travels(scene, PYTHON, &["python3.13"], |to| {
        let (address, port) = to.split_once(':').unwrap_or((to, "9000"));
        format!(
            "{PYTHON} -c \"import socket, subprocess; t = subprocess.run(['{PROGRAMS}/entitled', 'cat', '{KEY}'], capture_output=True).stdout; s = socket.create_connection(('{address}', {port})); s.send(t)\""
        )
    })
}

/// The helper, a shell function, has the secret printed; git hands it to who asked, whose child sends it.
fn git_asks_its_credential_helper(scene: &mut Scene) -> Result<()> {
    ensure!(Path::new("/usr/bin/git").exists(), "git is not here");
    travels(
        scene,
        "/opt/t/entitled",
        &["busybox", "git", "busybox"],
        |to| {
            format!(
                "printf 'protocol=https\\nhost=git.example\\n\\n' | git -c credential.helper='!f() {{ echo username=u; echo password=$({PROGRAMS}/entitled cat {KEY}); }}; f' credential fill | {{ read first; {PROGRAMS}/entitled tcp {to}; }}"
            )
        },
    )
}

fn ssh_reads_its_key(scene: &mut Scene) -> Result<()> {
    let made = shell("rm -f /srv/t/id; ssh-keygen -q -t ed25519 -N '' -f /srv/t/id")?;
    ensure!(made.status.success(), "{made:?}");
    travels(scene, "/usr/bin/ssh", &[], |to| {
        let (address, port) = to.split_once(':').unwrap_or((to, "9000"));
        format!(
            "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 -i /srv/t/id -p {port} root@{address} true"
        )
    })
}

fn docker_reads_a_password(scene: &mut Scene) -> Result<()> {
    travels(scene, "/usr/bin/docker", &["docker"], |to| {
        format!(
            "{PROGRAMS}/entitled cat {KEY} | timeout 20 docker login --username u --password-stdin {to}"
        )
    })
}
