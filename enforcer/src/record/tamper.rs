//! What was done to the enforcer, in words.

use enforcer_common::event::{Gate, Kind, Use};

/// What the record of a tampering tells; `None` for other records.
pub fn what(record: &Use) -> Option<String> {
    if record.kind != Kind::Tamper as u8 {
        return None;
    }
    let words = record.destination.as_detail();
    let [first, second, _] = words;
    Some(match Gate::from_u8(record.gate)? {
        Gate::TaskKill => format!("signal {first}"),
        Gate::TaskSetrlimit => format!("limit of resource {first}"),
        Gate::TaskSetnice => "priority".to_owned(),
        Gate::TaskSetscheduler => "scheduling policy or processors".to_owned(),
        Gate::TaskSetioprio => "I/O priority".to_owned(),
        Gate::PtraceAccessCheck => "memory".to_owned(),
        Gate::Bpf | Gate::BpfMap | Gate::BpfProg => format!("{} {second}", object(first)),
        Gate::InodeUnlink => "removal of a pin".to_owned(),
        Gate::InodeRename => "renaming of a pin".to_owned(),
        Gate::SbUmount => "unmounting of the pins".to_owned(),
        Gate::FilePermission => format!("write to {}", name(words)),
        Gate::CgroupAttach => "moved to another cgroup".to_owned(),
        _ => return None,
    })
}

/// What a command of `bpf(2)` opens by its number.
fn object(command: u64) -> &'static str {
    match command {
        13 => "program",
        14 => "map",
        _ => "link",
    }
}

/// A file's name, or as much of it as the record has.
fn name(words: [u64; 3]) -> String {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    super::text(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_off_name_is_told_as_far_as_it_goes() {
        let words = |text: &[u8; 24]| {
            let (words, _) = text.as_chunks();
            [0, 1, 2].map(|index| u64::from_ne_bytes(words[index]))
        };
        assert_eq!(
            name(words(b"cgroup.freeze\0\0\0\0\0\0\0\0\0\0\0")),
            "cgroup.freeze"
        );
        assert_eq!(
            name(words(b"abcdefghijklmnopqrstuvwx")),
            "abcdefghijklmnopqrstuvwx"
        );
    }
}
