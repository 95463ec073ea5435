//! What is created later is protected when it appears, and an executable that is replaced is nobody.

use std::{fs, io::Write as _, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Scene, cases, entitled, other};
use crate::harness::{
    ALICE, Actor, Allowed, Refused, Running, check, copy_program, wait_for, write,
};

cases![
    created_under_readers,
    written_and_renamed_under_readers,
    new_directory_under_readers,
    directory_moved_in_is_protected_a_moment_later,
    new_file_in_a_directory_credential,
    replaced_by_write_and_rename,
    executable_replaced,
    executable_with_another_digest,
];

const READERS: usize = 3;
const SECRET: &str = "a new secret\n";

/// Readers without an entitlement, at work on a path that need not exist.
fn readers(path: &str) -> Result<Vec<Running>> {
    (0..READERS)
        .map(|_| {
            let mut reader = other().start([format!("hammer {path} 1000")])?;
            reader.until("hammering")?;
            Ok(reader)
        })
        .collect()
}

/// Creates something under readers; none of them gets a byte of it, then or later.
fn unseen(scene: &mut Scene, path: &str, create: impl FnOnce() -> Result<()>) -> Result<()> {
    scene.standard()?;
    let readers = readers(path)?;
    thread::sleep(Duration::from_millis(100));
    create()?;
    thread::sleep(Duration::from_millis(400));
    for reader in readers {
        check::readers_agree(&reader.finish()?, false).context(path.to_owned())?;
    }
    let step = format!("read {path}");
    scene.check(&other(), &[(&step, Refused(""))])?;
    // Known to the daemon by now, so that the entitled can use it.
    let start = std::time::Instant::now();
    wait_for("the entitled to read it", || {
        let outcome = entitled().run([&step]).ok()?;
        outcome.status.success().then_some(())
    })?;
    println!(
        "  {path}: the entitled could read it after {:.1} s more",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn created_under_readers(scene: &mut Scene) -> Result<()> {
    let path = "/srv/t/globbed/created.key";
    unseen(scene, path, || write(path, SECRET))?;
    scene.check(&other(), &[("read /srv/t/globbed/notes.txt", Allowed)])?;
    Ok(())
}

fn written_and_renamed_under_readers(scene: &mut Scene) -> Result<()> {
    let path = "/srv/t/globbed/renamed.key";
    unseen(scene, path, || {
        write("/srv/t/globbed/.renamed.key.swp", SECRET)?;
        Ok(fs::rename("/srv/t/globbed/.renamed.key.swp", path)?)
    })
}

fn new_directory_under_readers(scene: &mut Scene) -> Result<()> {
    let path = "/srv/t/deep/a/b/c/secret";
    unseen(scene, path, || write(path, SECRET))?;
    write("/srv/t/deep/a/b/c/notes", "no secret\n")?;
    scene.check(&other(), &[("read /srv/t/deep/a/b/c/notes", Allowed)])?;
    Ok(())
}

/// Not without a window, as docs/limits.md says: the daemon has to look into what arrives whole.
fn directory_moved_in_is_protected_a_moment_later(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    write("/srv/t/elsewhere/secret", SECRET)?;
    fs::rename("/srv/t/elsewhere", "/srv/t/deep/moved")?;
    wait_for("the file in the moved directory to be protected", || {
        let outcome = other().run(["read /srv/t/deep/moved/secret"]).ok()?;
        (!outcome.status.success()).then_some(())
    })?;
    let step = "read /srv/t/deep/moved/secret";
    scene.check(&other(), &[(step, Refused(""))])?;
    scene.check(&entitled(), &[(step, Allowed)])?;
    Ok(())
}

fn new_file_in_a_directory_credential(scene: &mut Scene) -> Result<()> {
    let path = "/srv/t/tree/branch/twig/new";
    unseen(scene, path, || write(path, SECRET))
}

fn replaced_by_write_and_rename(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let path = "/srv/t/globbed/first.key";
    for round in 0..5 {
        let readers = readers(path)?;
        let new = format!("{path}.new-{round}");
        write(&new, SECRET)?;
        fs::rename(&new, path)?;
        thread::sleep(Duration::from_millis(100));
        for reader in readers {
            check::readers_agree(&reader.finish()?, false)
                .with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

fn executable_replaced(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let program = "/opt/t/replaced";
    let actor = Actor::new(program).user(ALICE);
    let read = [("read /srv/t/second-key", Allowed)];
    scene.check(&actor, &read)?;
    copy_program(format!("{program}.new"))?;
    fs::rename(format!("{program}.new"), program)?;
    // The new file has the path that the bundle names, so the daemon makes it the program again.
    wait_for("the new file to be checked", || {
        let outcome = actor.run(["read /srv/t/second-key"]).ok()?;
        outcome.status.success().then_some(())
    })?;
    scene.check(&actor, &read)?;
    Ok(())
}

fn executable_with_another_digest(scene: &mut Scene) -> Result<()> {
    scene.standard()?;
    let program = "/opt/t/hashed";
    let actor = Actor::new(program).user(ALICE);
    let read = "read /srv/t/key";
    scene.check(&actor, &[(read, Allowed)])?;
    // In place: same inode, other content.
    let mut file = fs::File::options().append(true).open(program)?;
    file.write_all(b"changed")?;
    drop(file);
    let refused = scene
        .check(&actor, &[(read, Refused(""))])
        .context("changed in place");
    thread::sleep(Duration::from_millis(500));
    let still = scene
        .check(&actor, &[(read, Refused(""))])
        .context("half a second later");
    // And by another file.
    copy_program(format!("{program}.new"))?;
    let mut file = fs::File::options()
        .append(true)
        .open(format!("{program}.new"))?;
    file.write_all(b"changed")?;
    drop(file);
    fs::rename(format!("{program}.new"), program)?;
    let other_file = scene
        .check(&actor, &[(read, Refused(""))])
        .context("another file");
    // The right content makes it the program again.
    copy_program(format!("{program}.new"))?;
    fs::rename(format!("{program}.new"), program)?;
    let again = wait_for("the right content to be recognised", || {
        let outcome = actor.run([read]).ok()?;
        outcome.status.success().then_some(())
    });
    refused?;
    still?;
    other_file?;
    again?;
    ensure!(fs::metadata(program)?.is_file());
    Ok(())
}
