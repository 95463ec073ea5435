//! Reading a credential by another way than its name.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Attack, attack,
    expected::{
        CAUGHT, CROWDED,
        Seen::{Caught, NotCaught},
        Tier, hooks_only, open,
    },
    stage::{Goal, Mounted, Stage, Temporary, Tried, revoked_bundle, root, standard_bundle},
    untried,
};
use crate::{
    cases::{entitled, other, standard::DESTINATIONS},
    harness::{Skipped, wait_for, write},
};

const KEY: &str = "/srv/t/vault/key";
const MAPS: &str = "no permission event for a mapping of what is open";
const OLD_FILES: &str =
    "from 6.12 on, reads of files opened before the mark send no permission event";

pub const ATTACKS: &[Attack] = &[
    attack(
        "A01",
        "io_uring_open",
        "open by io_uring: inline, by a worker, by a polling thread",
        CAUGHT,
        |s| {
            s.each_reads(&[
                "uring-read /srv/t/key",
                "uring-read-async /srv/t/key",
                "uring-read-sqpoll /srv/t/key",
            ])
        },
    ),
    attack(
        "A02",
        "file_handle",
        "open by file handle, without a path",
        CAUGHT,
        |s| s.root_reads(&["read-handle /srv/t/key"]),
    ),
    attack(
        "A03",
        "place_reopened",
        "descriptor of the place only, opened again",
        CAUGHT,
        place_reopened,
    ),
    attack(
        "A04",
        "hard_link",
        "hard link in another directory",
        CAUGHT,
        |s| {
            let _link = Temporary::link(KEY, "/srv/t/hard-link")?;
            s.reads(&["read /srv/t/hard-link"])
        },
    ),
    attack(
        "A05",
        "symbolic_link",
        "symbolic links, double slashes, `..`, `/proc/self/root`",
        CAUGHT,
        |s| {
            let _link = Temporary::made("/srv/t/soft-link", |link| symlink(KEY, link))?;
            s.each_reads(&[
                "read /srv/t/soft-link",
                "read //srv//t/vault/../vault/./key",
                "read /proc/self/root/srv/t/vault/key",
            ])
        },
    ),
    attack(
        "A06",
        "renamed_away",
        "renamed out of the watched directory, then opened",
        CAUGHT,
        |s| {
            s.standard()?;
            fs::rename(KEY, "/srv/t/renamed")?;
            let result = s.reads(&["read /srv/t/renamed"]);
            fs::rename("/srv/t/renamed", KEY)?;
            result
        },
    ),
    attack(
        "A07",
        "other_mounts",
        "bind mount, mount tree without a place, changed root, user namespace",
        CAUGHT,
        |s| {
            let bind = "bind /srv/t/vault/key /srv/t/place";
            s.root_reads(&["private-mounts", bind, "read /srv/t/place"])?;
            s.root_reads(&["read-tree /srv/t/vault/key"])?;
            s.root_reads(&["chroot /srv/t", "read /vault/key"])?;
            s.reads(&["user-namespace", bind, "read /srv/t/place"])
        },
    ),
    attack(
        "A08",
        "overlay_lens",
        "an overlay over the directory, read through it",
        CAUGHT.before_on(
            Tier::Fanotify,
            (6, 5),
            NotCaught("before 6.5 no mark sees an open through an overlay"),
        ),
        |s| {
            lens_directories()?;
            s.root_reads(&[
                "private-mounts",
                "overlay /srv/t/vault /srv/t/lens /srv/t/lens/merged",
                "read /srv/t/lens/merged/key",
            ])
        },
    ),
    attack(
        "A09",
        "overlay_copy_up",
        "copied up in an overlay, then the new inode is read",
        hooks_only("the copy is a new inode that has no mark"),
        copy_up,
    ),
    attack(
        "A10",
        "overlay_identity",
        "a path on an overlay whose layers are of two file systems: `stat` tells another device than the kernel uses",
        CAUGHT,
        |s| {
            let _layers = mixed_layers(s)?;
            s.reads_as_is(&["read /srv/t/mixed/merged/credential"])
        },
    ),
    attack(
        "A11",
        "overlay_lower_path",
        "the same bytes by the path of the layer below",
        hooks_only("only the file at the bundle's path is marked, not the layer below"),
        |s| {
            let _layers = mixed_layers(s)?;
            s.reads_as_is(&["read /srv/t/mixed/lower/credential"])
        },
    ),
    attack(
        "A12",
        "rotated",
        "replaced by rename, and by a swap of `..data`",
        CAUGHT,
        rotated,
    ),
    attack(
        "A13",
        "inode_reused",
        "inode number taken by another file, which must stay readable",
        CAUGHT,
        inode_reused,
    ),
    attack(
        "A14",
        "run_as_program",
        "executed instead of read",
        CAUGHT,
        |s| s.root_reads(&["run /srv/t/vault/script"]),
    ),
    attack("A15", "mapped", "mapped after the open", CAUGHT, |s| {
        s.reads(&["map /srv/t/key"])
    }),
    attack(
        "A16",
        "older_mapping",
        "a mapping older than the revocation: bytes stay, the network does not",
        open("page faults have no hook: what was read cannot be unread"),
        older_mapping,
    ),
    attack(
        "A17",
        "descriptor_older_than_revocation",
        "a descriptor from before the entitlement was taken away",
        CAUGHT,
        |s| after_revocation(s, &["read-held"]),
    ),
    attack(
        "A17",
        "descriptor_older_than_daemon",
        "a descriptor from before the daemon was started",
        hooks_only(OLD_FILES).before_on(Tier::Fanotify, (6, 12), Caught),
        |s| older_than_daemon(s, "read-held"),
    ),
    attack(
        "A17",
        "mapping_of_older_descriptor",
        "a descriptor from before the daemon, mapped now",
        hooks_only(MAPS),
        |s| older_than_daemon(s, "map-held"),
    ),
    attack(
        "A18",
        "other_engines",
        "sendfile, splice, copy_file_range, aio, io_uring (also worker, polling thread, registered file) on an old descriptor",
        CAUGHT,
        |s| {
            after_revocation(
                s,
                &[
                    "pread-held",
                    "sendfile-held",
                    "splice-held",
                    "copy-held",
                    "aio-held",
                    "uring-held",
                    "uring-held-async",
                    "uring-held-fixed",
                    "uring-held-sqpoll",
                ],
            )
        },
    ),
    untried(
        "A19",
        "reflink",
        "extents cloned into another file",
        "the guests have no file system that can, nor a program to make one",
    ),
    attack(
        "A37",
        "path_games",
        "a path longer than any may be, a name that is no text",
        CAUGHT,
        |s| {
            s.root_reads(&["read-deep /srv/t/vault/key"])?;
            s.root_reads(&["read-odd-name /srv/t/vault/key"])
        },
    ),
    attack(
        "A38",
        "argument_changed_meanwhile",
        "a second thread changes the path while it is opened",
        CAUGHT,
        |s| s.reads(&["read-flipping /srv/t/key /srv/t/nil"]),
    ),
    attack("A39", "crowd", "many opens at once", CROWDED, |s| {
        s.reads(&["read-crowd /srv/t/key 200"])
    }),
    attack(
        "A40",
        "side_channels",
        "size and time of a credential",
        open("names, sizes and times are no secrets"),
        |s| s.reads(&["stat /srv/t/key"]),
    ),
    attack(
        "A41",
        "written",
        "truncated by somebody without any entitlement",
        open("writing is not gated"),
        |s| {
            write("/srv/t/vault/target", "the secret itself\n")?;
            s.root_reads(&["truncate /srv/t/vault/target"])
        },
    ),
    attack(
        "A42",
        "derived_named",
        "a token that a holder caches where the bundle says so",
        CAUGHT,
        |s| {
            s.standard()?;
            let _cache = Temporary::made("/srv/t/vault/cache", |_| Ok(()))?;
            s.works(
                &root("entitled"),
                &["read /srv/t/key", "write-file /srv/t/vault/cache"],
            )?;
            s.reads(&["read /srv/t/vault/cache"])
        },
    ),
    attack(
        "A42",
        "derived_elsewhere",
        "a token that a holder caches elsewhere",
        open("what holders write is not followed, unless the bundle names it"),
        |s| {
            s.standard()?;
            let _cache = Temporary::made("/srv/t/cache", |_| Ok(()))?;
            s.works(
                &root("entitled"),
                &["read /srv/t/key", "write-file /srv/t/cache"],
            )?;
            s.reads(&["read /srv/t/cache"])
        },
    ),
    attack(
        "A43",
        "runtime_copy",
        "a container runtime's copy, where the bundle names it by pattern",
        CAUGHT,
        |s| {
            fs::create_dir_all("/srv/t/runtime")?;
            let bundle = standard_bundle()?
                .file("runtime", "/srv/t/runtime/*/config.json")
                .entitlement("E-runtime", "app", "runtime", DESTINATIONS);
            s.on(&bundle)?;
            write("/srv/t/runtime/c1/config.json", "the secret itself\n")?;
            // The directory is new, and looked into a moment after.
            wait_for("the pattern to hold", || {
                other()
                    .run(["read /srv/t/runtime/c1/config.json"])
                    .ok()?
                    .last()
                    .ok()?
                    .errno
                    .gt(&0)
                    .then_some(())
            })?;
            s.reads_as_is(&["read /srv/t/runtime/c1/config.json"])
        },
    ),
    attack(
        "A45",
        "nothing_read",
        "opened and closed, no byte read, read beyond the end: holding all the same",
        CAUGHT,
        |s| {
            for step in [
                "open-close /srv/t/key",
                "read-nothing /srv/t/key",
                "read-beyond /srv/t/key",
            ] {
                s.standard()?;
                s.twin(&entitled(), Goal::Send, &["tcp 10.20.0.66:9000"])?;
                s.attack(&entitled(), Goal::Send, &[step, "tcp 10.20.0.66:9000"])?;
            }
            Ok(())
        },
    ),
];

fn place_reopened(s: &mut Stage<'_>) -> Result<()> {
    s.reads(&["reopen /srv/t/key"])?;
    // The place alone is neither read nor held.
    let steps = ["place /srv/t/key", "tcp 10.20.0.66:9000"];
    s.twin(&other(), Goal::Send, &steps)?;
    s.twin(&entitled(), Goal::Send, &steps)
}

fn lens_directories() -> Result<()> {
    for directory in ["upper", "work", "merged"] {
        fs::create_dir_all(format!("/srv/t/lens/{directory}"))?;
    }
    Ok(())
}

fn copy_up(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    lens_directories()?;
    let options = "lowerdir=/srv/t/vault,upperdir=/srv/t/lens/upper,workdir=/srv/t/lens/work";
    let _overlay = Mounted::new("overlay", "overlay", "/srv/t/lens/merged", options)?;
    let _copy = Temporary::made("/srv/t/lens/upper/key", |_| Ok(()))?;
    s.works(&root("entitled"), &["touch-up /srv/t/lens/merged/key"])?;
    let step = ["read /srv/t/lens/upper/key"];
    s.twin(&root("entitled"), Goal::Read, &step)?;
    s.attack(&root("other"), Goal::Read, &step)
}

/// A credential below an overlay whose upper layer is on another file system.
fn mixed_layers(s: &mut Stage<'_>) -> Result<[Mounted; 2]> {
    write("/srv/t/mixed/lower/credential", "the secret itself\n")?;
    let upper = Mounted::new("tmpfs", "tmpfs", "/srv/t/mixed/up", "")?;
    for directory in ["upper", "work"] {
        fs::create_dir_all(format!("/srv/t/mixed/up/{directory}"))?;
    }
    let options =
        "lowerdir=/srv/t/mixed/lower,upperdir=/srv/t/mixed/up/upper,workdir=/srv/t/mixed/up/work";
    let merged = Mounted::new("overlay", "overlay", "/srv/t/mixed/merged", options)?;
    let bundle = standard_bundle()?
        .file("mixed", "/srv/t/mixed/merged/credential")
        .entitlement("E-mixed", "app", "mixed", DESTINATIONS);
    s.on(&bundle)?;
    Ok([merged, upper])
}

fn rotated(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    write("/srv/t/globbed/new", "the next secret\n")?;
    fs::rename("/srv/t/globbed/new", "/srv/t/globbed/first.key")?;
    s.reads(&["read /srv/t/globbed/first.key"])?;
    for generation in ["..1", "..2"] {
        write(
            format!("/srv/t/vault/{generation}/token"),
            "the next secret\n",
        )?;
        let _ = fs::remove_file("/srv/t/vault/..next");
        symlink(generation, "/srv/t/vault/..next")?;
        fs::rename("/srv/t/vault/..next", "/srv/t/vault/..data")?;
        s.reads(&["read /srv/t/vault/..data/token"])?;
    }
    Ok(())
}

/// On a file system that gives numbers out again.
fn inode_reused(s: &mut Stage<'_>) -> Result<()> {
    s.alone()?;
    fs::File::create("/srv/t/disk")?.set_len(4 << 20)?;
    let made = Command::new("mke2fs").args(["-F", "/srv/t/disk"]).output();
    if !made.is_ok_and(|output| output.status.success()) {
        anyhow::bail!(Skipped("nothing makes a file system here".to_owned()));
    }
    let device = "/dev/loop7";
    let attached = Command::new("losetup")
        .args([device, "/srv/t/disk"])
        .status()?;
    ensure!(attached.success(), "losetup failed");
    let result = inode_reused_on(s, device);
    Command::new("losetup").args(["-d", device]).status()?;
    result
}

fn inode_reused_on(s: &mut Stage<'_>, device: &str) -> Result<()> {
    let _disk = Mounted::new("ext4", device, "/srv/t/small", "")?;
    write("/srv/t/small/key", "the secret itself\n")?;
    let number = fs::metadata("/srv/t/small/key")?.ino();
    let bundle = standard_bundle()?
        .file("small", "/srv/t/small/key")
        .entitlement("E-small", "app", "small", DESTINATIONS);
    s.on(&bundle)?;
    s.reads_as_is(&["read /srv/t/small/key"])?;
    fs::remove_file("/srv/t/small/key")?;
    // Whoever had it open may still be on the way out.
    wait_for("the inode's number to be given again", || {
        write("/srv/t/small/other", "nothing of interest\n").ok()?;
        let again = fs::metadata("/srv/t/small/other").ok()?.ino() == number;
        if !again {
            fs::remove_file("/srv/t/small/other").ok()?;
        }
        again.then_some(())
    })?;
    s.twin(&other(), Goal::Read, &["read /srv/t/small/other"])?;
    // Off the disk before it goes.
    s.standard()?;
    Ok(())
}

/// Opened while entitled, and used after; the first of the steps is also tried while nothing has changed.
fn after_revocation(s: &mut Stage<'_>, steps: &[&str]) -> Result<()> {
    s.standard()?;
    let first = ["hold /srv/t/key"];
    let twin = s.waiting(&root("entitled"), &first, steps)?.go_on()?;
    for step in &twin.steps[1..] {
        ensure!(
            step.errno == 0,
            "the twin's `{}` ended with {}",
            step.text,
            step.errno
        );
    }
    let late = s.waiting(&root("entitled"), &first, steps)?;
    s.on(&revoked_bundle())?;
    let outcome = late.go_on()?;
    for index in 1..=steps.len() {
        let mut alone = Tried::read(&outcome)?;
        let step = outcome
            .steps
            .iter()
            .filter(|step| step.text != "paused" && step.text != "pause")
            .nth(index)
            .with_context(|| alone.text.clone())?;
        (alone.got, alone.errno) = (step.errno == 0, step.errno);
        s.judge(&alone).with_context(|| step.text.clone())?;
    }
    Ok(())
}

fn older_than_daemon(s: &mut Stage<'_>, step: &str) -> Result<()> {
    s.scene.off()?;
    let first = ["hold /srv/t/key"];
    let twin = s.waiting(&root("entitled"), &first, &[step])?;
    let late = s.waiting(&root("other"), &first, &[step])?;
    s.standard()?;
    let twin = Tried::read(&twin.go_on()?)?;
    ensure!(twin.got, "the entitled twin did not read: {}", twin.text);
    s.judge(&Tried::read(&late.go_on()?)?)
}

fn older_mapping(s: &mut Stage<'_>) -> Result<()> {
    s.standard()?;
    let reach = "tcp 10.20.0.2:9000";
    let late = s.waiting(
        &entitled(),
        &["hold /srv/t/key", "map-held"],
        &[reach, "read-map"],
    )?;
    s.on(&revoked_bundle())?;
    let outcome = late.go_on()?;
    let reached = outcome.steps.iter().find(|step| step.text == reach);
    ensure!(
        reached.is_some_and(|step| step.errno == libc::EPERM),
        "after the revocation, sending came to {reached:?}"
    );
    s.judge(&Tried {
        errno: 0,
        ..Tried::read(&outcome)?
    })
}
