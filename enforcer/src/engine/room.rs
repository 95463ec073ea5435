//! Whether the kernel's tables have room enough for this node.

use enforcer_common::capacity::{self, Room};

use super::{Engine, Error};
use crate::kernel::at_root;
use crate::kernel::presence::Counters;

impl Engine {
    /// What this node has too much of for the tables as they are. There are larger ones.
    pub fn outgrown(&self) -> Option<&str> {
        self.outgrown.as_deref()
    }

    /// Tells of an error, unless it is that of tables that are too small, and there are larger ones: the bundle that met
    /// it is applied with those.
    pub(super) fn outgrows(&mut self, error: Error) -> Error {
        if self.loaded.room == Room::Ordinary && error.is_for_want_of_room() {
            self.outgrown = Some(crate::chain(&error));
        }
        error
    }

    /// Looks at the tables that fill without a bundle. They are left while half of them is empty.
    pub(super) fn look_at_room(&mut self) {
        if self.loaded.room == Room::Large || self.outgrown.is_some() {
            return;
        }
        let contents = match self.contents() {
            Ok(contents) => contents,
            Err(error) => {
                return tracing::warn!(
                    "it is not known how full the tables are: {}",
                    crate::chain(&error)
                );
            }
        };
        self.outgrown = contents.into_iter().find_map(|(what, got, most)| {
            let half = u64::from(Room::Ordinary.of(most) / 2);
            (got > half).then(|| format!("there are {got} {what}, more than {half}"))
        });
    }

    /// What fills them, how much there is of it, and for how much there is place where there is much room.
    fn contents(&self) -> Result<[(&'static str, u64, u32); 4], Error> {
        let count = |counters| Ok::<_, Error>(Counters::open(&self.loaded.ebpf, counters)?.sum());
        Ok([
            ("holdings", count("HELD_PRESENT")?, capacity::HOLDERS),
            (
                "origins of processes",
                count("ORIGINS_PRESENT")?,
                capacity::ORIGINS,
            ),
            ("files", count("FILES_PRESENT")?, capacity::FILES),
            ("cgroups", at_root::descendants()?, capacity::CGROUPS),
        ])
    }
}
