//! Where things are: the workspace, what was built in it, and the cache outside it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The workspace's root.
pub fn workspace() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The directory for everything built, relative to the workspace whatever `CARGO_TARGET_DIR` says:
/// `enforcer`'s build script looks for the eBPF objects there.
pub fn target() -> PathBuf {
    workspace().join("target")
}

/// The statically linked user-space programs.
pub fn static_programs() -> PathBuf {
    target().join("static/x86_64-unknown-linux-gnu/release")
}

/// One of them; it has to be there.
pub fn built_program(name: &str) -> Result<PathBuf> {
    let program = static_programs().join(name);
    anyhow::ensure!(
        program.is_file(),
        "there is no {}: try `cargo xtask build`",
        program.display()
    );
    Ok(program)
}

/// The cache, shared by all checkouts: kernels are large and do not depend on the source.
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context(
            "neither XDG_CACHE_HOME nor HOME is set: set one, kernels are cached below it",
        )?)
        .join(".cache"),
    };
    Ok(base.join("enforcer"))
}

/// `PATH` with the built programs first.
pub fn path_with_programs() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(static_programs()).chain(env::split_paths(&path));
    env::join_paths(all).context("the directory of the programs cannot stand in PATH")
}
