//! Other ways to the same file: the verdict is the inode's, not the path's.

use std::{fs, os::unix::fs::symlink, thread, time::Duration};

use anyhow::{Context as _, Result};
use nix::mount::{self, MntFlags, MsFlags};

use super::{Scene, cases, entitled, other};
use crate::harness::{Actor, Allowed, Refused, write};

cases![
    hard_link,
    symbolic_link,
    renamed,
    renamed_directory,
    bind_mount,
    proc_self_fd,
    proc_pid_root,
    mount_namespace,
    file_handle,
    mapped,
    io_uring_open,
    overlay,
];

const KEY: &str = "/srv/t/paths/key";

/// Refused to the one, allowed to the other, and so is the plain way.
fn same_verdict(scene: &mut Scene, steps: &[&str]) -> Result<()> {
    let (last, first) = steps.split_last().context("no steps")?;
    let first: Vec<_> = first.iter().map(|step| (*step, Allowed)).collect();
    // As root: some of the ways are only for it.
    let by = |program: &str, last| {
        let mut steps = first.clone();
        steps.push(last);
        (Actor::new(format!("/opt/t/{program}")), steps)
    };
    let (actor, refused) = by("other", (*last, Refused("")));
    scene.check(&actor, &refused)?;
    let (actor, allowed) = by("entitled", (*last, Allowed));
    scene.check(&actor, &allowed)?;
    Ok(())
}

fn same_verdict_at(scene: &mut Scene, path: &str) -> Result<()> {
    let step = format!("read {path}");
    scene.check(&other(), &[(&step, Refused(""))])?;
    scene.check(&entitled(), &[(&step, Allowed)])?;
    Ok(())
}

fn hard_link(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let link = "/srv/t/paths/hard-link";
    fs::hard_link(KEY, link)?;
    let result = same_verdict_at(scene, link);
    fs::remove_file(link)?;
    result
}

fn symbolic_link(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let link = "/srv/t/paths/symbolic-link";
    symlink(KEY, link)?;
    let result = same_verdict_at(scene, link);
    fs::remove_file(link)?;
    result
}

fn renamed(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let new = "/srv/t/paths/renamed";
    fs::rename(KEY, new)?;
    let mut result = same_verdict_at(scene, new);
    // And once the daemon had time to think about it.
    thread::sleep(Duration::from_millis(500));
    result = result.and_then(|()| same_verdict_at(scene, new).context("half a second later"));
    fs::rename(new, KEY)?;
    result?;
    same_verdict_at(scene, KEY).context("renamed back")
}

fn renamed_directory(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    fs::rename("/srv/t/tree", "/srv/t/bush")?;
    let mut result = same_verdict_at(scene, "/srv/t/bush/leaf");
    thread::sleep(Duration::from_millis(500));
    result = result
        .and_then(|()| same_verdict_at(scene, "/srv/t/bush/leaf").context("half a second later"));
    fs::rename("/srv/t/bush", "/srv/t/tree")?;
    result?;
    same_verdict_at(scene, "/srv/t/tree/leaf").context("renamed back")
}

fn bind_mount(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let second = "/srv/t/second-place";
    write(second, "")?;
    let nothing = None::<&str>;
    mount::mount(Some(KEY), second, nothing, MsFlags::MS_BIND, nothing)?;
    let result = same_verdict_at(scene, second);
    mount::umount2(second, MntFlags::MNT_DETACH)?;
    result
}

fn proc_self_fd(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    same_verdict(scene, &[&format!("reopen {KEY}")])
}

fn proc_pid_root(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let runner = std::process::id();
    same_verdict(scene, &[&format!("read /proc/{runner}/root{KEY}")])?;
    same_verdict(scene, &[&format!("read /proc/self/root{KEY}")])
}

fn mount_namespace(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let second = "/srv/t/place-in-namespace";
    write(second, "")?;
    let bind = format!("bind {KEY} {second}");
    same_verdict(scene, &["private-mounts", &bind, &format!("read {second}")])?;
    same_verdict(scene, &["private-mounts", &format!("read {KEY}")])
}

fn file_handle(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    same_verdict(scene, &[&format!("read-handle {KEY}")])
}

fn mapped(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    same_verdict(scene, &[&format!("map {KEY}")])
}

fn io_uring_open(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    same_verdict(scene, &[&format!("uring-read {KEY}")])?;
    // Done by a worker, which is a thread of the process or, before 5.12, of the kernel.
    same_verdict(scene, &[&format!("uring-read-async {KEY}")]).context("by a worker")
}

fn overlay(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    for directory in ["upper", "work", "merged"] {
        fs::create_dir_all(format!("/srv/t/overlay/{directory}"))?;
    }
    let options = "lowerdir=/srv/t/paths,upperdir=/srv/t/overlay/upper,workdir=/srv/t/overlay/work";
    let merged = "/srv/t/overlay/merged";
    let overlay = Some("overlay");
    mount::mount(overlay, merged, overlay, MsFlags::empty(), Some(options))
        .context("cannot mount an overlay")?;
    let result = same_verdict_at(scene, &format!("{merged}/key"));
    mount::umount2(merged, MntFlags::MNT_DETACH)?;
    result
}
