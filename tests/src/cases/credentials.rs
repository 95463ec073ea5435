//! Credentials that a bundle names by what they are: from the catalogue, and as kubelet keeps them.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{self, MntFlags, MsFlags};

use super::{Scene, cases, entitled, other};
use crate::harness::{Actor, Allowed, Bundle, Refused, Skipped, check, daemon, wait_for, write};

cases![
    catalogue_in_homes,
    secret_rotated_under_readers,
    key_of_a_secret_rotated_under_readers,
];

const SECRET: &str = "the secret itself\n";

/// A file system in memory, until dropped.
struct InMemory(PathBuf);

impl InMemory {
    fn on(place: impl Into<PathBuf>) -> Result<Self> {
        let place = place.into();
        fs::create_dir_all(&place)?;
        let mode = Some("mode=755");
        mount::mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), mode)
            .with_context(|| format!("cannot mount a tmpfs on {}", place.display()))?;
        Ok(Self(place))
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        if let Err(error) = mount::umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!(
                "enforcer-tests: {} stays mounted: {error}",
                self.0.display()
            );
        }
    }
}

fn catalogue_in_homes(scene: &mut Scene) -> Result<()> {
    let _homes = InMemory::on("/home")?;
    for file in [".aws/credentials", ".aws/config", ".aws/sso/cache/old.json"] {
        write(format!("/home/ada/{file}"), SECRET)?;
    }
    let bundle = Bundle::default()
        .credential("id: cloud, sources: [{catalogue: aws}]")
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E", "app", "cloud", "destinations: none");
    scene.on(&bundle)?;
    for file in ["credentials", "sso/cache/old.json"] {
        let step = format!("read /home/ada/.aws/{file}");
        scene.check(&other(), &[(&step, Refused("wrong-executable"))])?;
        scene.check(&entitled(), &[(&step, Allowed)])?;
    }
    scene.check(&other(), &[("read /home/ada/.aws/config", Allowed)])?;

    // What appears later in a directory that is there is nobody's for a moment.
    let new = "/home/ada/.aws/sso/cache/new.json";
    let mut reader = other().start([format!("hammer {new} 1000")])?;
    reader.until("hammering")?;
    write(new, SECRET)?;
    thread::sleep(Duration::from_millis(300));
    check::readers_agree(&reader.finish()?, false)?;
    let step = format!("read {new}");
    wait_for("the entitled to read the new file", || {
        let outcome = entitled().run([&step]).ok()?;
        outcome.status.success().then_some(())
    })?;

    // And so does a new user's home. On the tier with marks its directories have to be seen first.
    let later = "/home/grace/.aws/credentials";
    fs::create_dir_all("/home/grace/.aws")?;
    thread::sleep(Duration::from_millis(500));
    write(later, SECRET)?;
    let step = format!("read {later}");
    scene.check(&other(), &[(&step, Refused("wrong-executable"))])?;
    scene.check(&entitled(), &[(&step, Allowed)])?;

    let uncovered = daemon::status()?["uncoveredSources"].clone();
    let told = uncovered[0].as_str().unwrap_or_default();
    ensure!(
        told.starts_with("cloud: catalogue aws: of what is in containers' own file systems only"),
        "status says of the catalogue in containers: {uncovered}"
    );
    Ok(())
}

const ROTATIONS: u32 = 1_000;
const ROTATIONS_IN_BRIEF: u32 = 100;
/// Between two reads of one reader.
const PAUSE_US: u64 = 1_000;
/// As long may the readers be at it.
const BUDGET: Duration = Duration::from_secs(600);

/// Where kubelet keeps a pod's secret, and where the pod sees it.
const VOLUME: &str = "/srv/t/kubelet/pods/uid-1/volumes/kubernetes.io~secret/stripe";
const IN_POD: &str = "/srv/t/pod/secrets";

/// A new version of the volume's content, as kubelet makes it: a directory of its own, a link to it that takes the
/// other's place in one step, and then the older one goes.
fn rotate(version: u32) -> Result<()> {
    let volume = Path::new(VOLUME);
    let name = format!("..2026_11_23_04_05_06.{version}");
    let directory = volume.join(&name);
    fs::create_dir(&directory)?;
    for key in ["key", "id"] {
        fs::write(directory.join(key), SECRET)?;
    }
    let link = volume.join("..data");
    let old = fs::read_link(&link).ok();
    symlink(&name, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), &link)?;
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

fn secret_rotated_under_readers(scene: &mut Scene) -> Result<()> {
    let _volume = volume()?;
    scene.on(&bundle(&format!("directory: {VOLUME}"))?)?;
    rotated(scene)
}

/// One key of the secret, and the other is nobody's.
fn key_of_a_secret_rotated_under_readers(scene: &mut Scene) -> Result<()> {
    let _volume = volume()?;
    // What `keys` of a `kubernetesSecret` come to.
    scene.on(&bundle(&format!("file: \"{VOLUME}/..*/key\""))?)?;
    if daemon::status()?["tier"] == "fanotify" {
        let why = "on this tier a new directory has to be seen by the daemon first";
        bail!(Skipped(why.to_owned()));
    }
    rotated(scene)?;
    let step = format!("read {VOLUME}/id");
    scene.check(&other(), &[(&step, Allowed)])?;
    Ok(())
}

/// The volume in its first version.
fn volume() -> Result<InMemory> {
    let volume = InMemory::on(VOLUME)?;
    fs::create_dir_all(IN_POD)?;
    rotate(0)?;
    for key in ["key", "id"] {
        symlink(format!("..data/{key}"), format!("{VOLUME}/{key}"))?;
    }
    Ok(volume)
}

/// This program does kubelet's part, and kubelet is trusted.
fn bundle(source: &str) -> Result<Bundle> {
    let kubelet = std::env::current_exe()?;
    let kubelet = kubelet.display();
    let bundle = Bundle::default()
        .front(format!(
            "trusted:\n  - match: {{executable: {{path: {kubelet}}}}}\n"
        ))
        .credential(&format!("id: stripe, sources: [{{{source}}}]"))
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E", "app", "stripe", "destinations: none");
    Ok(bundle)
}

fn rotated(scene: &Scene) -> Result<()> {
    let mut readers = Vec::new();
    for (program, allowed) in [("entitled", true), ("other", false)] {
        let actor = || Actor::new(format!("/opt/t/{program}"));
        let on_host = actor().start([format!("hammer {VOLUME}/key {PAUSE_US}")])?;
        let in_pod = actor().start([
            "private-mounts".to_owned(),
            format!("bind {VOLUME} {IN_POD}"),
            format!("hammer {IN_POD}/key {PAUSE_US}"),
        ])?;
        readers.extend([(allowed, "host", on_host), (allowed, "pod", in_pod)]);
    }
    for (_, _, reader) in &mut readers {
        reader.patiently(BUDGET);
        reader.until("hammering")?;
    }
    let rotations = if scene.brief {
        ROTATIONS_IN_BRIEF
    } else {
        ROTATIONS
    };
    let start = Instant::now();
    for version in 1..=rotations {
        rotate(version)?;
        thread::sleep(Duration::from_millis(5));
    }
    let seconds = start.elapsed().as_secs_f64();
    let (mut reads, mut refusals) = (0, 0);
    for (allowed, view, reader) in readers {
        let count = check::readers_agree(&reader.finish()?, allowed)
            .with_context(|| format!("in the {view}'s view"))?;
        *(if allowed { &mut reads } else { &mut refusals }) += count;
    }
    println!(
        "  {rotations} rotations in {seconds:.1} s under {reads} reads and {refusals} refusals, none of them wrong"
    );
    Ok(())
}
