//! Counts test cases from what test programs print.

use std::{fmt, ops::AddAssign};

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Cases that held.
    pub passed: u64,
    /// Cases that did not.
    pub failed: u64,
    /// Cases that were not run.
    pub skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl Tally {
    /// The fuzz targets that were run to the end.
    pub fn of_fuzzing(log: &str) -> Self {
        let done = |line: &&str| line.starts_with("Done ") && line.contains(" runs in ");
        Self {
            passed: log.lines().filter(done).count() as u64,
            ..Self::default()
        }
    }

    /// The sum over a `cargo test` log, one result line per test program.
    pub fn of_cargo(log: &str) -> Self {
        let mut sum = Self::default();
        for line in log
            .lines()
            .filter_map(|line| line.strip_prefix("test result: "))
        {
            let counts = line.split_once(". ").map_or("", |(_, counts)| counts);
            sum += Self::parse(counts, ';', "ignored").unwrap_or_default();
        }
        sum
    }

    /// The sum of the lines of the form `N passed, N failed, N skipped` in a guest's output: one for each
    /// program that ran. `None` if there is none.
    pub fn of_guest(log: &str) -> Option<Self> {
        log.lines()
            .filter_map(|line| Self::parse(line.trim(), ',', "skipped"))
            .reduce(|mut sum, tally| {
                sum += tally;
                sum
            })
    }

    fn parse(text: &str, separator: char, skipped: &str) -> Option<Self> {
        let mut parts = text.split(separator);
        let mut count = |word: &str| {
            parts
                .next()?
                .trim()
                .strip_suffix(word)?
                .trim_end()
                .parse()
                .ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count(skipped)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Tally {
        Tally {
            passed,
            failed,
            skipped,
        }
    }

    #[test]
    fn cargos_results_add_up() {
        let log = "running 6 tests\n\
                   test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                   test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        assert_eq!(Tally::of_cargo(log), tally(7, 1, 1));
        assert_eq!(Tally::of_cargo("error: could not compile"), tally(0, 0, 0));
    }

    #[test]
    fn a_guests_counts_are_summed() {
        let log =
            "1 passed, 0 failed, 0 skipped\ncase x ... ok\n12 passed, 1 failed, 2 skipped\r\n\n";
        assert_eq!(Tally::of_guest(log), Some(tally(13, 1, 2)));
        assert_eq!(Tally::of_guest("case x ... 1 passed, ok\n"), None);
    }

    #[test]
    fn a_tally_reads_back_what_it_prints() {
        let original = tally(1, 2, 3);
        assert_eq!(Tally::of_guest(&original.to_string()), Some(original));
    }
}
