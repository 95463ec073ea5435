//! The table in `docs/coverage.md`, made from the registry.

use std::fmt::Write as _;

use super::{
    ALL,
    expected::{Seen, Tier},
};

const HEAD: &str = "\
# Coverage

Each entry of the catalogue of ways round an enforcer, and what comes of it on each tier. `enforcer-tests
coverage` prints this file from the suite's registry, and a test fails when the two differ; `enforcer-tests
attacks` tries every entry next to a harmless twin and fails when one comes to anything else than what stands
here, better or worse. *Caught* means that the call failed or nothing arrived outside, and there was an event.
*Caught, or told* may get through now and then, and the daemon then tells that its programs were passed over.
*Not caught* is tried and gets through.

`cargo xtask test --everything` runs them on kernels 5.10, 6.1, 6.12, 6.18 and the newest Debian has for `lsm`, on
5.10, 6.12 and the newest for `modify-return`, and on 6.12 and the machine it runs on for `fanotify`.

";

/// The file.
pub fn table() -> String {
    let mut text = HEAD.to_owned();
    let attacks: Vec<_> = ALL.iter().copied().flatten().collect();
    // Writing to a string does not fail.
    for tier in Tier::ALL {
        let count = |wanted: fn(&Seen) -> bool| {
            let seen = attacks.iter().map(|attack| attack.expected.usually(tier));
            seen.filter(wanted).count()
        };
        let _ = writeln!(
            text,
            "* `{}`: {} caught, {} not caught, {} not run",
            tier.name(),
            count(|seen| matches!(seen, Seen::Caught)),
            count(|seen| matches!(seen, Seen::NotCaught(_))),
            count(|seen| matches!(seen, Seen::NotRun(_))),
        );
    }
    text.push_str(
        "\n| entry | technique | lsm | modify-return | fanotify | differing kernels | why not | test |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for attack in attacks {
        let [lsm, modify_return, fanotify] = Tier::ALL.map(|tier| attack.expected.usually(tier));
        let _ = writeln!(
            text,
            "| {} | {} | {lsm} | {modify_return} | {fanotify} | {} | {} | `{}` |",
            attack.id,
            attack.title,
            attack.expected.differing(),
            attack.expected.reasons().join("; "),
            attack.name,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn the_document_is_what_the_registry_says() -> anyhow::Result<()> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/coverage.md");
        let text = fs::read_to_string(path)?;
        assert!(
            text == table(),
            "docs/coverage.md differs: write `enforcer-tests coverage` into it"
        );
        Ok(())
    }

    #[test]
    fn every_entry_is_there() {
        let there: BTreeSet<&str> = ALL
            .iter()
            .copied()
            .flatten()
            .map(|attack| attack.id)
            .collect();
        // Numbers that the catalogue leaves out.
        let absent = "A22 A23 A36 B20 B27 C06 C11 C14 C26 C38";
        for (group, last) in [('A', 46), ('B', 30), ('C', 50), ('D', 34)] {
            for number in 1..=last {
                let id = format!("{group}{number:02}");
                assert!(
                    there.contains(id.as_str()) != absent.contains(&id),
                    "{id} should be in the registry, or the catalogue does not have it"
                );
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names = BTreeSet::new();
        for attack in ALL.iter().copied().flatten() {
            assert!(names.insert(attack.name), "{} is there twice", attack.name);
        }
    }
}
