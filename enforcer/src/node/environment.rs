//! Processes that were started with a credential in their environment before the gates were in place.

use std::collections::{BTreeMap, BTreeSet};

use enforcer_common::ids::{CredentialId, Tgid};

/// Looks through the environments that all processes were started with, as `/proc` shows them, for `variables`.
/// A process that ends meanwhile is left out.
pub fn holding(variables: &BTreeMap<String, CredentialId>) -> Vec<(Tgid, CredentialId)> {
    if variables.is_empty() {
        return Vec::new();
    }
    let Ok(processes) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let own = std::process::id();
    let mut holding = Vec::new();
    for process in processes.flatten() {
        let pid = process.pid().cast_unsigned();
        if pid == own {
            continue;
        }
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let found = found(&environment, variables);
        holding.extend(found.into_iter().map(|credential| (Tgid(pid), credential)));
    }
    holding
}

/// The credentials in an environment: pieces that end with NUL, of which only the first `=` counts.
fn found(environment: &[u8], variables: &BTreeMap<String, CredentialId>) -> BTreeSet<CredentialId> {
    let names = environment.split(|byte| *byte == 0).filter_map(|piece| {
        let end = piece.iter().position(|byte| *byte == b'=')?;
        std::str::from_utf8(&piece[..end]).ok()
    });
    names
        .filter_map(|name| variables.get(name))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, CredentialId> {
        BTreeMap::from([
            ("TOKEN".to_owned(), CredentialId(1)),
            ("TOKEN_FILE".to_owned(), CredentialId(2)),
        ])
    }

    #[test]
    fn names_are_compared_whole() {
        for (environment, expected) in [
            (&b"HOME=/root\0TOKEN=x\0"[..], &[1][..]),
            (b"TOKEN=\0TOKEN_FILE=/x", &[1, 2]),
            (b"A=TOKEN=x\0MY_TOKEN=x\0TOKEN_\0TOKEN\0", &[]),
            (b"\xff\xfe=1\0=TOKEN=1\0\0TOKEN=a=b\0TOKEN=c\0", &[1]),
            (b"", &[]),
        ] {
            let expected: BTreeSet<_> = expected.iter().copied().map(CredentialId).collect();
            assert_eq!(
                found(environment, &variables()),
                expected,
                "{environment:?}"
            );
        }
    }

    #[test]
    fn running_processes_are_found() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("ENFORCER_TEST_TOKEN", "x")
            .spawn()
            .expect("sleep runs");
        let wanted = BTreeMap::from([("ENFORCER_TEST_TOKEN".to_owned(), CredentialId(7))]);
        // The child's new environment is in place a moment after it was made.
        let expected = (Tgid(child.id()), CredentialId(7));
        let seen = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            holding(&wanted).contains(&expected)
        });
        let _ = child.kill();
        let _ = child.wait();
        assert!(seen);
        assert!(holding(&BTreeMap::new()).is_empty());
    }
}
