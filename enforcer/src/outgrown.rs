//! A node that needs more room in the kernel's tables than an ordinary one: the daemon starts again in its own process,
//! with larger tables beside those in force, as the next version of it would.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::Error;
use enforcer_common::capacity::Room;

/// In the state directory, once this node has needed much room.
const FILE: &str = "large-tables";

/// How much room to start with: as much as was needed before.
pub fn room(state: &Path) -> Room {
    match state.join(FILE).exists() {
        true => Room::Large,
        false => Room::Ordinary,
    }
}

/// Runs this program again with the same words, and much room from then on. Returns why that cannot be done.
pub fn start_again(state: &Path) -> Error {
    let file = state.join(FILE);
    let why = "This node needs large tables in the kernel. Without this file the daemon starts with ordinary ones.\n";
    let written = fs::create_dir_all(state).and_then(|()| fs::write(&file, why));
    // On a full disk it is there, and empty. Without it, a start with ordinary tables would lead here again.
    if let Err(error) = written
        && !file.exists()
    {
        return Error::new(error).context(format!(
            "this node needs large tables, and {} cannot be written; let the daemon write there, or use --holders, with which all tables are large from the start",
            file.display()
        ));
    }
    let mut words = env::args_os();
    let name = words.next().unwrap_or_default();
    // Its file may have been replaced, and the new one be on its way to be started.
    let program = env::current_exe().ok().filter(|it| it.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let error = Command::new(&program).arg0(name).args(words).exec();
    Error::new(error).context(format!(
        "cannot start {} again with large tables; what is in force stays in force: start the daemon",
        program.display()
    ))
}
