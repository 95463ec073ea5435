//! A pod, a service and a login session do ordinary work beside each other for a long time: what one holds never shows
//! in another, unless it was handed on, and then the way is told; and nothing of it is lost or left.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::Scene;
use crate::{
    harness::{Actor, Bundle, Cgroup, Outcome, PROGRAMS, check, daemon, wait_for, write},
    peer,
};

/// What is handed from one to another goes through here.
const FIFO: &str = "/srv/t/handed";
/// Between two times that something is handed on.
const HANDED_EVERY: Duration = Duration::from_secs(5);
/// Sockets and the like of the last work have ended by then.
const SETTLED: Duration = Duration::from_secs(10);

/// A kind of workload instance, each with a credential and a destination of its own.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    home: &'static str,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "pod",
        home: peer::ALLOWED,
    },
    Kind {
        name: "service",
        home: peer::BASELINE,
    },
    Kind {
        name: "session",
        home: peer::FORBIDDEN,
    },
];

impl Kind {
    fn cgroup(self, number: u64) -> Result<Cgroup> {
        match self.name {
            "pod" => Cgroup::new(&format!(
                "kubepods.slice/cri-containerd-{number:064x}.scope"
            )),
            "service" => Cgroup::unit(&format!("mixed-{number}.service")),
            _ => Cgroup::new(&format!(
                "user.slice/user-1000.slice/session-{number}.scope"
            )),
        }
    }

    fn key(self) -> String {
        format!("/srv/t/{}-key", self.name)
    }

    fn elsewhere(self) -> impl Iterator<Item = &'static str> {
        let homes = KINDS.into_iter().map(|it| it.home);
        homes.filter(move |home| *home != self.home)
    }
}

/// Each credential must itself cover every destination: whoever holds one too many is refused.
fn bundle() -> Bundle {
    let mut bundle = Bundle::default().workload("app", "executable: {path: /opt/t/entitled}");
    for kind in KINDS {
        let (id, key) = (kind.name, kind.key());
        let (address, port) = kind.home.split_once(':').unwrap_or((kind.home, "9000"));
        bundle = bundle
            .credential(&format!(
                "id: {id}, exclusive: true, follow: true, sources: [{{file: {key}}}]"
            ))
            .entitlement(
                &format!("E-{id}"),
                "app",
                id,
                &format!("destinations: [{{cidr: {address}, ports: [{port}]}}]"),
            );
    }
    bundle
}

/// Works for so long.
pub fn run(how_long: Duration) -> Result<bool> {
    let mut scene = Scene::set_up(false)?;
    for kind in KINDS {
        write(kind.key(), "the secret itself\n")?;
    }
    mkfifo(FIFO, Mode::S_IRUSR | Mode::S_IWUSR).context("cannot make a FIFO")?;
    scene.on(&bundle())?;
    // The slices are made, and stay.
    for kind in KINDS {
        lives(kind, u64::from(u32::MAX))?;
    }
    let before = tables()?;

    let end = Instant::now() + how_long;
    let workers = KINDS.map(|kind| thread::spawn(move || works(kind, end)));
    let mut handed = 0;
    while Instant::now() < end {
        let [from, to] = [handed, handed + 1].map(|index| KINDS[index as usize % KINDS.len()]);
        hands_on(&mut scene, from, to, handed)
            .with_context(|| format!("from a {} to a {}", from.name, to.name))?;
        handed += 1;
        thread::sleep(HANDED_EVERY);
    }
    for (worker, kind) in workers.into_iter().zip(KINDS) {
        let lived = worker
            .join()
            .map_err(|_| anyhow::anyhow!("a worker panicked"))?
            .with_context(|| kind.name.to_owned())?;
        println!("{lived} times a {}", kind.name);
    }
    println!("{handed} times handed on");
    thread::sleep(SETTLED);
    let after = tables()?;
    ensure!(
        before == after,
        "the tables were {before:?}, and are {after:?}"
    );
    scene.off()?;
    Ok(true)
}

/// How many entries each table has, but that of kinds of use: what has ended stays there until the next minute.
fn tables() -> Result<BTreeMap<String, u64>> {
    let mut all = daemon::tables()?;
    all.remove("usages");
    Ok(all)
}

fn within(program: &str, cgroup: &Cgroup) -> Actor {
    Actor::new(format!("{PROGRAMS}/{program}")).within(cgroup.name())
}

/// How many instances lived and died.
fn works(kind: Kind, end: Instant) -> Result<u64> {
    let mut lived = 0;
    while Instant::now() < end {
        lives(kind, lived)?;
        lived += 1;
    }
    Ok(lived)
}

/// From the instance's first process to its last.
fn lives(kind: Kind, number: u64) -> Result<()> {
    let cgroup = kind.cgroup(number)?;
    let tcp = |to: &str| format!("tcp {to}");
    let home = tcp(kind.home);
    // It holds nothing, whoever had a cgroup of this name before it, and whatever the others hold.
    for to in KINDS.map(|it| tcp(it.home)) {
        ends(&within("other", &cgroup).run([to])?, 0)?;
    }
    let read = format!("read {}", kind.key());
    ends(&within("entitled", &cgroup).run([&read, &home])?, 0)?;
    // From now on all of it holds.
    for to in kind.elsewhere().map(tcp) {
        let child = ["fork".to_owned(), to.clone()];
        ends(&within("entitled", &cgroup).run(child)?, libc::EPERM)?;
        ends(&within("other", &cgroup).run([to.clone()])?, libc::EPERM)?;
        let script = format!("shell echo secret | {PROGRAMS}/other {to}");
        ends(&within("other", &cgroup).run([script])?, libc::EPERM)?;
    }
    ends(&within("entitled", &cgroup).run([home])?, 0)
}

fn ends(outcome: &Outcome, errno: i32) -> Result<()> {
    let got = outcome.last()?.errno;
    ensure!(
        got == errno,
        "expected {}, and it was {}: {}",
        check::name(errno),
        check::name(got),
        check::summary(outcome)
    );
    Ok(())
}

/// One of a kind writes its secret into a pipe that one of another kind reads.
fn hands_on(scene: &mut Scene, from: Kind, to: Kind, number: u64) -> Result<()> {
    // Numbers that the workers do not come to.
    let number = 0x8000_0000 + number;
    let (giver, taker) = (from.cgroup(number)?, to.cgroup(number)?);
    let events = scene.daemon()?.events.clone();
    // A process before this one may have had its number.
    let before = events.last();
    let reads =
        within("other", &taker).start([format!("read {FIFO}"), format!("tcp {}", to.home)])?;
    let gives = format!("shell {PROGRAMS}/entitled cat {} > {FIFO}", from.key());
    within("entitled", &giver).run([gives])?;
    let outcome = reads.finish()?;
    ends(&outcome, libc::EPERM)?;
    let pid = outcome.last()?.pid;
    let denial = wait_for("the denial", || {
        events.find(|event| {
            event.is_denial() && event.pid() == u64::from(pid) && event.sequence() > before
        })
    })?;
    let way = denial.0["path"].as_array().map_or(0, Vec::len);
    ensure!(
        way >= 2,
        "the way is not told: {}; the taker: {}",
        denial.0,
        check::summary(&outcome)
    );
    drop((giver, taker));
    fs::metadata(FIFO).map(drop).context("the FIFO has gone")
}
