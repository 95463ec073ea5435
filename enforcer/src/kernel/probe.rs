//! What this kernel can do, found by trying.

use std::path::Path;

use serde::Serialize;

use super::{btf, load};

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
}

/// Tries everything this version needs.
pub fn probe() -> Vec<Capability> {
    let mut found = vec![
        check(
            "btf",
            btf::offsets()
                .map(|_| "every struct member that the programs read is known".to_owned()),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        ),
        check(
            "cgroup-v2",
            load::cgroup_root().map(|path| format!("mounted at {}", path.display())),
            "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
        check(
            "bpf-lsm-listed",
            lsm_list(),
            "add `bpf` to the lsm= list on the kernel's command line (or CONFIG_LSM)",
        ),
    ];
    found.extend(programs());
    found
}

/// Whether the kernel lists `bpf` among its security modules. Only a hint: attaching is the proof.
fn lsm_list() -> Result<String, std::io::Error> {
    let list = std::fs::read_to_string(Path::new("/sys/kernel/security/lsm"))?;
    if list.split(',').any(|name| name.trim() == "bpf") {
        Ok(list.trim().to_owned())
    } else {
        Err(std::io::Error::other(format!(
            "the list is {}",
            list.trim()
        )))
    }
}

/// Loads the programs and attaches them one moment, with empty tables, so that nothing is refused.
fn programs() -> Vec<Capability> {
    const LOAD: &str = "run as root on 5.10 or later with CONFIG_BPF_LSM=y and CONFIG_CGROUP_BPF=y; the error names the program";
    const ATTACH: &str = "the program is accepted but not attached: see bpf-lsm-listed for lsm programs; inside a container, mount the host's cgroup root";
    let mut loaded = match load::load(&load::Options::default()) {
        Ok(loaded) => loaded,
        Err(error) => {
            return vec![Capability {
                name: "programs-load",
                available: false,
                detail: crate::chain(&error),
                remedy: Some(LOAD),
            }];
        }
    };
    let verified: Vec<String> = loaded
        .programs()
        .filter_map(|(name, program)| {
            let count = program.info().ok()?.verified_instruction_count()?;
            Some(format!("{name} {count}"))
        })
        .collect();
    let detail = if verified.is_empty() {
        "every program passed the verifier".to_owned()
    } else {
        format!(
            "every program passed the verifier; instructions it walked: {}",
            verified.join(", ")
        )
    };
    vec![
        Capability {
            name: "programs-load",
            available: true,
            detail,
            remedy: None,
        },
        check(
            "programs-attach",
            load::attach(&mut loaded)
                .map(|()| "LSM hooks, tracepoints and cgroup programs; taken off again".to_owned()),
            ATTACH,
        ),
    ]
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
        },
        Err(error) => Capability {
            name,
            available: false,
            detail: crate::chain(&error),
            remedy: Some(remedy),
        },
    }
}
