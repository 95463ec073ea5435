//! Calls that the kernel made without one of our programs.
//!
//! It does not call a BPF_MODIFY_RETURN program, or a tracepoint's, while another task that was interrupted in the
//! same program waits on the same processor, and counts that in `bpf_prog_info.recursion_misses` (from 5.12 on).

use std::collections::BTreeMap;
use std::io;

use super::load::Loaded;
use super::sys;

/// What was counted so far.
#[derive(Debug, Default)]
pub struct PassedOver(BTreeMap<String, u64>);

/// Calls of one program that were passed over.
#[derive(Debug, PartialEq)]
pub struct More {
    /// The program.
    pub program: String,
    /// How many since the last look.
    pub count: u64,
    /// How many since the start.
    pub total: u64,
}

impl PassedOver {
    /// Asks the kernel, and says what is more than the last time.
    pub fn look(&mut self, loaded: &Loaded) -> io::Result<Vec<More>> {
        let mut counts = Vec::new();
        for (program, descriptor) in loaded.programs() {
            counts.push((
                program.to_owned(),
                sys::program_info(descriptor)?.recursion_misses,
            ));
        }
        Ok(self.more(counts))
    }

    /// The programs that were ever passed over, with the number of calls.
    pub fn totals(&self) -> &BTreeMap<String, u64> {
        &self.0
    }

    fn more(&mut self, counts: Vec<(String, u64)>) -> Vec<More> {
        let mut list = Vec::new();
        for (program, total) in counts {
            let before = self.0.get(&program).copied().unwrap_or(0);
            if total > before {
                self.0.insert(program.clone(), total);
                list.push(More {
                    program,
                    count: total - before,
                    total,
                });
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let mut passed_over = PassedOver::default();
        let counts = |opened, forked| {
            vec![
                ("file_open".to_owned(), opened),
                ("sched_process_fork".to_owned(), forked),
            ]
        };
        assert_eq!(passed_over.more(counts(0, 0)), []);
        let more = |count, total| More {
            program: "file_open".to_owned(),
            count,
            total,
        };
        assert_eq!(passed_over.more(counts(2, 0)), [more(2, 2)]);
        assert_eq!(passed_over.more(counts(5, 0)), [more(3, 5)]);
        assert_eq!(passed_over.more(counts(5, 0)), []);
        assert_eq!(passed_over.totals().len(), 1);
    }
}
