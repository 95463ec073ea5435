//! Processes that were started with a known credential in their environment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;

use zeroize::Zeroizing;

use super::material::{self, printable};
use super::{Found, Place, Report};
use crate::bundle::{Entry, catalogue};
use crate::node::users;

/// As much of an environment is looked at.
const MOST_BYTES: u64 = 1 << 20;

/// Looks at every process but this one.
pub fn scan() -> Report {
    let variables: BTreeMap<&str, &'static Entry> = catalogue()
        .iter()
        .flat_map(|entry| {
            entry
                .environment
                .iter()
                .map(move |name| (name.as_str(), entry))
        })
        .collect();
    let names: BTreeMap<u32, String> = users::users()
        .into_iter()
        .map(|(name, uid)| (uid.0, printable(&name)))
        .collect();
    let mut report = Report::default();
    let processes = procfs::process::all_processes();
    for process in processes.into_iter().flatten().flatten() {
        let pid = process.pid();
        if pid.cast_unsigned() == std::process::id() {
            continue;
        }
        let path = format!("/proc/{pid}/environ");
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let uid = file.metadata().map_or(0, |it| it.uid());
        let mut bytes = Zeroizing::new(Vec::new());
        if file.take(MOST_BYTES).read_to_end(&mut bytes).is_err() {
            continue;
        }
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        for (name, items) in look(&bytes, &variables) {
            let Some(entry) = variables.get(name) else {
                continue;
            };
            let place = Place {
                view: format!("{} (pid {pid})", printable(cgroup.unwrap_or("/"))),
                path: format!("environment variable {name}"),
            };
            let mut found = Found::new(entry, place);
            found.owner = names.get(&uid).cloned().unwrap_or_else(|| uid.to_string());
            found.mode = "0400".to_owned();
            found.readers = vec!["root".to_owned()];
            if uid != 0 {
                found.readers.push(format!("user {}", found.owner));
            }
            found.items = items;
            report.credentials.push(found);
        }
    }
    report
}

/// The names in an environment that are known, with what their values tell.
fn look<'a>(
    environment: &'a [u8],
    variables: &BTreeMap<&str, &'static Entry>,
) -> Vec<(&'a str, Vec<material::Item>)> {
    let pairs = environment.split(|byte| *byte == 0).filter_map(|piece| {
        let (name, value) = std::str::from_utf8(piece).ok()?.split_once('=')?;
        Some((name, value))
    });
    let pairs: Vec<(&str, &str)> = pairs.collect();
    let mut all = Vec::new();
    for (name, value) in &pairs {
        if !variables.contains_key(name) || value.is_empty() {
            continue;
        }
        let mut items = material::inspect(value.as_bytes());
        if name.starts_with("AWS_SECRET") {
            let mut ids = pairs
                .iter()
                .filter(|(name, _)| *name == "AWS_ACCESS_KEY_ID");
            items.extend(ids.find_map(|(_, id)| material::aws_key(id)));
        }
        all.push((*name, items));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_found_and_values_are_not_kept() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let environment = format!(
            "PATH=/bin\0AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\0AWS_SECRET_ACCESS_KEY={secret}\0HF_TOKEN=\0"
        );
        let entry = |id| crate::bundle::entries(id).next().expect("an entry");
        let variables = BTreeMap::from([
            ("AWS_SECRET_ACCESS_KEY", entry("aws")),
            ("HF_TOKEN", entry("huggingface")),
        ]);
        let found = look(environment.as_bytes(), &variables);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "AWS_SECRET_ACCESS_KEY");
        assert_eq!(found[0].1[0].id.as_deref(), Some("AKIAIOSFODNN7EXAMPLE"));
        assert!(!format!("{found:?}").contains(secret));
    }
}
