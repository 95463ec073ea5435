//! Bundles of a size: what is measured, and so much beside it.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use super::operations::{DENIED, HELD, MONITORED, Set};
use crate::harness::Bundle;

/// How many entitlements one of the other workloads has.
const EACH: usize = 10;
/// How many credentials lie in one directory.
const PER_DIRECTORY: usize = 500;

/// What is measured, with so many entitlements [beside] it.
pub fn bundle(entitlements: usize) -> Result<Bundle> {
    let selects = |set: Set| format!("executable: {{path: {}}}", set.program());
    // The measuring program looks at the daemon's programs and tables.
    let bundle = Bundle::default()
        .maintained_by(&std::env::current_exe()?.display().to_string())
        .file("held", HELD)
        .file("denied", DENIED)
        .file("monitored", MONITORED)
        .workload("holder", &selects(Set::Holder))
        .workload("monitored", &selects(Set::Monitored))
        .entitlement(
            "E-held",
            "holder",
            "held",
            "destinations: [{cidr: 127.0.0.0/8}]",
        )
        .entitlement(
            "E-monitored",
            "monitored",
            "monitored",
            "destinations: none, validUntil: 2020-01-01T00:00:00Z, mode: monitor",
        );
    beside(bundle, entitlements)
}

/// The bundle with so many entitlements more, to half as many credentials of a tenth as many workloads that there are none
/// of, and with the files.
pub fn beside(mut bundle: Bundle, entitlements: usize) -> Result<Bundle> {
    let credentials = (entitlements / 2).max(1);
    let mut name = String::new();
    for number in 0..credentials {
        name.clear();
        write!(name, "/srv/b/keys/{}/{number}", number / PER_DIRECTORY)?;
        if number % PER_DIRECTORY == 0 {
            fs::create_dir_all(format!("/srv/b/keys/{}", number / PER_DIRECTORY))?;
        }
        if !fs::exists(&name)? {
            fs::write(&name, "n\n")?;
        }
        bundle = bundle.file(&format!("key-{number}"), &name);
    }
    let workloads = entitlements.div_ceil(EACH);
    for number in 0..workloads {
        let selectors = format!("systemdUnit: bench-{number}.service");
        bundle = bundle.workload(&format!("w-{number}"), &selectors);
    }
    for number in 0..entitlements {
        let rest = format!(
            "destinations: [{{cidr: 10.{}.{}.0/24, ports: [443]}}]",
            number / 250 % 250,
            number % 250
        );
        bundle = bundle.entitlement(
            &format!("E-{number}"),
            &format!("w-{}", number / EACH),
            &format!("key-{}", number % credentials),
            &rest,
        );
    }
    Ok(bundle)
}
