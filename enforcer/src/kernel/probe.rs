//! What this kernel can do, found by trying.

use std::collections::BTreeMap;

use enforcer_common::ids::Tgid;
use serde::Serialize;

use super::at_root;
use super::btf::{self, Types};
use super::load::{self, Loaded};
use super::tier::Tier;
use crate::fanotify;

/// One capability.
#[derive(Debug, Serialize)]
pub struct Capability {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub available: bool,
    /// How that was found, or why it is not there.
    pub detail: String,
    /// What to do about it, if it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<&'static str>,
    /// Of a tier: how many instructions the verifier walked, by program. Kernels tell since 5.16.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub verified: BTreeMap<String, u32>,
}

/// Whether some tier can be had.
pub fn enforceable(found: &[Capability]) -> bool {
    found
        .iter()
        .any(|it| it.available && it.name.starts_with("tier-"))
}

/// Tries everything this version needs.
pub fn probe() -> Vec<Capability> {
    let types = Types::read();
    let mut found = vec![
        check(
            "btf",
            types
                .as_ref()
                .map(|_| "every struct member that the programs read is known".to_owned()),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        ),
        check(
            "cgroup-v2",
            at_root::path().map(|path| format!("mounted at {}", path.display())),
            "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
        check(
            "bpf-lsm-listed",
            lsm_list(),
            "add `bpf` to the lsm= list on the kernel's command line (or CONFIG_LSM)",
        ),
    ];
    found.extend(permission_events());
    found.extend(Tier::ALL.map(|tier| try_tier(tier, types.as_ref())));
    found
}

/// What permission events stop here, each tried on a file of our own. Only the `fanotify` tier needs them.
fn permission_events() -> Vec<Capability> {
    const OPEN: &str = "fanotify-open";
    const NEWER: &str = "on the fanotify tier reads through it are not gated";
    let remedy = "run as root on a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y";
    let abilities = match fanotify::trial() {
        Ok(abilities) => abilities,
        Err(error) => return vec![check(OPEN, Err(error), remedy)],
    };
    let tried = |name, refused, what: &str, remedy| {
        let result = match refused {
            Some(true) => Ok(format!("{what} was refused")),
            Some(false) => Err(std::io::Error::other(format!(
                "{what} was not refused: {NEWER}"
            ))),
            None => Err(std::io::Error::other(
                "no overlay could be mounted to try it",
            )),
        };
        check(name, result, remedy)
    };
    vec![
        tried(
            OPEN,
            Some(abilities.open),
            "the open of a marked file",
            remedy,
        ),
        tried(
            "fanotify-older-descriptor",
            Some(abilities.older_descriptor),
            "a read from a descriptor older than the mark",
            "kernels up to 6.11 ask about those; or use another tier",
        ),
        tried(
            "fanotify-overlay",
            abilities.through_overlay,
            "the open of a marked file through an overlay mount",
            "kernels from 6.5 on ask about those; or use another tier",
        ),
    ]
}

/// Whether the kernel lists `bpf` among its security modules. Only a hint: that the hooks are called is the proof.
fn lsm_list() -> Result<String, std::io::Error> {
    match load::lsm_list() {
        Some(list) if list.split(',').any(|name| name == "bpf") => Ok(list),
        Some(list) => Err(std::io::Error::other(format!("the list is {list}"))),
        None => Err(std::io::Error::other(
            "/sys/kernel/security/lsm cannot be read: mount securityfs there to see it",
        )),
    }
}

/// Loads and attaches a tier's programs one moment, with empty tables, so that nothing is refused.
fn try_tier(tier: Tier, types: Result<&Types, &btf::Error>) -> Capability {
    let (name, remedy) = match tier {
        Tier::Lsm => (
            "tier-lsm",
            "add `bpf` to the lsm= list on the kernel's command line; CONFIG_BPF_LSM=y, 5.10 or later",
        ),
        Tier::ModifyReturn => (
            "tier-modify-return",
            "a kernel 5.10 or later with BPF trampolines (CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS) and without lockdown",
        ),
        Tier::Fanotify => (
            "tier-fanotify",
            "run as root on 5.10 or later with CONFIG_CGROUP_BPF=y and CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y; inside a container, mount the host's cgroup root",
        ),
    };
    let nobody = Tgid(std::process::id());
    let tried = match types {
        Ok(types) => load::start_tier(types, &load::Options::default(), tier, nobody),
        Err(error) => return check(name, Err(error), remedy),
    };
    let verified = tried.as_ref().map(verified).unwrap_or_default();
    let mut works = "attached, seen to be called, taken off again".to_owned();
    let walked: u64 = verified.values().copied().map(u64::from).sum();
    if walked > 0 {
        works += &format!("; the verifier walked {walked} instructions");
    }
    Capability {
        verified,
        ..check(name, tried.map(|_| works), remedy)
    }
}

fn verified(loaded: &Loaded) -> BTreeMap<String, u32> {
    let programs = loaded.ebpf.programs();
    let counts = programs.filter_map(|(name, program)| {
        let count = program.info().ok()?.verified_instruction_count()?;
        Some((name.to_owned(), count))
    });
    counts.collect()
}

fn check<E: std::error::Error>(
    name: &'static str,
    result: Result<String, E>,
    remedy: &'static str,
) -> Capability {
    match result {
        Ok(detail) => Capability {
            name,
            available: true,
            detail,
            remedy: None,
            verified: BTreeMap::new(),
        },
        Err(error) => Capability {
            name,
            available: false,
            detail: crate::chain(&error),
            remedy: Some(remedy),
            verified: BTreeMap::new(),
        },
    }
}
