//! Running other programs, with errors that say which one and why.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, bail};

/// Runs a program to its end; its failure is an error that shows its last words.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed ({}): {}",
            describe(command),
            output.status,
            tail(stderr.trim(), 15)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, letting it write to our own output.
pub fn stream(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// Whether the program starts and says yes.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| cannot_start(command))
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start {}: try `cargo xtask setup`",
        describe(command)
    )
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|arg| arg.to_string_lossy().into_owned()),
    );
    format!("`{}`", words.join(" "))
}

/// The program's path, if it is on `PATH` or where administrators' programs are
/// (an ordinary user's `PATH` leaves those out).
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// As [`which`], but its absence is an error that says what to do.
pub fn need(program: &str) -> Result<PathBuf> {
    which(program).with_context(|| format!("`{program}` is not installed: try `cargo xtask setup`"))
}

/// The text's last lines.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A file's last lines; empty if it cannot be read, since it is only ever shown to explain another error.
pub fn tail_of_file(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    tail(&String::from_utf8_lossy(&bytes), lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }
}
