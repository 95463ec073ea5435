//! What a permission is remembered by with the socket that it was given on: one word made of everything that it depends on,
//! so that each of them that changes ends it, and nothing has to be taken back.
//!
//! A decision depends on the task, the destination, what the task holds, the bundle and the time. The first two are in
//! the seal; of holdings the number of all that were ever recorded ([`moment`]); of the bundle its generation, because
//! nothing that a generation says is changed but by a revocation, which gives it another secret; and of time
//! [`Bundle::steady_until`], until which no entitlement begins or ends. That moves on past each such moment, and what was
//! sealed before it must not come back: so it is in the seal as well.
//!
//! It is one word, written at once: two processes that share a socket cannot mix what was permitted to each. And it is made with a
//! secret of the bundle's, so that nobody can look for another destination with the same seal.

use crate::address::Destination;
use crate::facts::Task;
use crate::tables::Bundle;
use crate::verdict::Verdict;

/// The bundle, the holdings and the stretch of time that a decision is made by: to be taken before it, and before its time.
#[inline(always)]
pub const fn moment(bundle: &Bundle, holdings: u64) -> u64 {
    // Times an odd number no two moments are the same, and nobody can tell how many holdings make up for a difference.
    let stretch = bundle.steady_until.0.wrapping_mul(bundle.secret[1] | 1);
    stretch ^ holdings << 32 ^ bundle.generation.0 as u64
}

/// The seal of what `verdict` permits. Never 0, which is none.
#[inline(always)]
pub fn of(secret: &[u64; 2], task: &Task, to: &Destination, moment: u64, verdict: Verdict) -> u64 {
    let inode = &task.executable.inode;
    let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let mut seal = secret[0];
    let mut add = |word: u64| {
        // Two rounds, each with a factor that is not known: a difference in one word cannot be made up for by the next.
        seal = (seal ^ word).wrapping_mul(secret[0] | 1);
        seal = (seal ^ seal >> 32).wrapping_mul(secret[1] | 1);
        seal ^= seal >> 29;
    };
    add(inode.ino);
    add(pair(inode.dev, inode.generation));
    add(task.executable.changed_ns);
    add(task.start.0);
    add(task.instance.0);
    add(task.cgroup.0);
    add(pair(task.tgid.0, task.uid.0));
    add(pair(task.identity.0, task.classified));
    add(to.address.high);
    add(to.address.low);
    add(to.transport());
    add(moment);
    add(verdict.0);
    seal | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, Protocol};
    use crate::ids::{
        BootNs, CgroupId, CredentialId, EntitlementId, Generation, IdentityId, Tgid, Uid,
    };

    const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

    #[test]
    fn whatever_differs_ends_it() {
        let (task, to) = (Task::NOBODY, Destination::NONE);
        let verdict =
            |credential| Verdict::new(0, false, 1, 0, CredentialId(credential), EntitlementId(1));
        let bundle = |generation, steady_until| Bundle {
            generation: Generation(generation),
            steady_until: BootNs(steady_until),
            secret: SECRET,
            ..Bundle::default()
        };
        let now = moment(&bundle(1, 1), 1);
        let mut tasks = [task; 11];
        tasks[0].executable.inode.ino = 1;
        tasks[1].executable.inode.dev = 1;
        tasks[2].executable.inode.generation = 1;
        tasks[3].executable.changed_ns = 1;
        tasks[4].start = BootNs(1);
        tasks[5].instance = CgroupId(1);
        tasks[6].cgroup = CgroupId(1);
        tasks[7].tgid = Tgid(1);
        tasks[8].uid = Uid(1);
        tasks[9].identity = IdentityId(1);
        tasks[10].classified = 1;
        let mut seals: Vec<u64> = tasks
            .iter()
            .map(|task| of(&SECRET, task, &to, now, verdict(1)))
            .collect();
        let address = |high, low| Address { high, low };
        for to in [
            Destination::new(address(1, 0), 0, Protocol::TCP),
            Destination::new(address(0, 1), 0, Protocol::TCP),
            Destination::new(address(0, 0), 1, Protocol::TCP),
            Destination::new(address(0, 0), 0, Protocol::UDP),
            Destination::answer(address(0, 0), 0, Protocol::TCP),
            Destination::new(address(1 << 63, 0), 0, Protocol::TCP),
            Destination::new(address(0, 1 << 63 | 1 << 31), 0, Protocol::TCP),
            Destination::new(address(1 << 63, 1 << 63 | 1 << 31), 0, Protocol::TCP),
        ] {
            seals.push(of(&SECRET, &task, &to, now, verdict(1)));
        }
        seals.push(of(&SECRET, &task, &to, now, verdict(1)));
        seals.push(of(&SECRET, &task, &to, now, verdict(2)));
        for moment in [
            moment(&bundle(2, 1), 1),
            moment(&bundle(1, 1), 2),
            moment(&bundle(1, 2), 1),
        ] {
            seals.push(of(&SECRET, &task, &to, moment, verdict(1)));
        }
        seals.push(of(&[SECRET[1], SECRET[0]], &task, &to, now, verdict(1)));
        let count = seals.len();
        seals.sort_unstable();
        seals.dedup();
        assert_eq!(seals.len(), count);
        assert!(seals.iter().all(|seal| *seal != 0));
    }
}
