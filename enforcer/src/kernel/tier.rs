//! How this node is gated.

use enforcer_common::tier;
use serde::Serialize;

/// The means by which reads and calls are refused. The cgroup network programs are the same on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Programs on LSM hooks: the kernel's LSM list has `bpf`.
    Lsm,
    /// The same programs on the functions that call the hooks (BPF_MODIFY_RETURN), whatever the list says.
    ModifyReturn,
    /// Permission events, answered by the daemon, where the kernel refuses trampolines.
    Fanotify,
}

impl Tier {
    /// Every tier, the strongest first.
    pub const ALL: [Self; 3] = [Self::Lsm, Self::ModifyReturn, Self::Fanotify];

    /// The number that programs know it by.
    pub const fn code(self) -> u32 {
        match self {
            Self::Lsm => tier::LSM,
            Self::ModifyReturn => tier::MODIFY_RETURN,
            Self::Fanotify => tier::FANOTIFY,
        }
    }

    /// The word in bundles, events and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lsm => "lsm",
            Self::ModifyReturn => "modify-return",
            Self::Fanotify => "fanotify",
        }
    }
}
