//! Trying an attack next to its harmless twin, and comparing both with what is expected.

use std::{fs, os::unix::fs::PermissionsExt as _, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{self, MntFlags, MsFlags};

use super::expected::{
    Seen,
    Seen::{Caught, CaughtOrTold, NotCaught, NotRun},
};
use crate::{
    cases::{Scene, entitled, other, standard},
    harness::{
        Actor, Bundle, Cgroup, Daemon, Event, Expect, FILES, Outcome, PROGRAMS, Running, Skipped,
        Step, check, outside::Frames, wait_for, write,
    },
};

/// The credential that most attacks are after, as a step of its holder.
pub const READ: &str = "read /srv/t/key";
/// Sends where its holder may not.
pub const SEND: &str = "tcp 10.20.0.66:9000";
/// Sends where its holder may.
pub const HOME: &str = "tcp 10.20.0.2:9000";
/// How long what was refused may take to arrive all the same: TCP tries again after 200 ms.
const PATIENCE: Duration = Duration::from_millis(350);

/// What is still on its way arrives within this.
const SETTLED: Duration = Duration::from_millis(20);

/// What an attack is after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The bytes of a credential.
    Read,
    /// Bytes outside.
    Send,
    /// To do something to the enforcer.
    Tamper,
}

impl Goal {
    fn kind(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Send => "reach",
            Self::Tamper => "tamper",
        }
    }
}

/// What somebody tried, and what came of it.
#[derive(Debug)]
pub struct Tried {
    /// After what.
    pub goal: Goal,
    /// Whether it got it.
    pub got: bool,
    /// 0, or why the call did not work.
    pub errno: i32,
    /// The processes that took part.
    pub pids: Vec<u32>,
    /// In words, for a message.
    pub text: String,
}

impl Tried {
    /// What an actor came to that was after reading in its last step. The first step that failed says why.
    pub fn read(outcome: &Outcome) -> Result<Self> {
        let last = outcome.last()?;
        let failed = outcome.steps.iter().find(|step| step.errno != 0);
        Ok(Self {
            goal: Goal::Read,
            got: last.errno == 0 && last.read > 0,
            errno: failed.map_or(0, |step| step.errno),
            pids: pids(outcome),
            text: check::summary(outcome),
        })
    }
}

/// All processes of an actor.
pub fn pids(outcome: &Outcome) -> Vec<u32> {
    let mut pids: Vec<u32> = outcome.steps.iter().map(|step| step.pid).collect();
    pids.push(outcome.pid);
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// As root: some attacks need it, and it is no excuse.
pub fn root(program: &str) -> Actor {
    Actor::new(format!("{PROGRAMS}/{program}"))
}

/// An attack under way.
pub struct Stage<'a> {
    /// Daemon, actors' programs, world outside.
    pub scene: &'a mut Scene,
    /// What it should come to here.
    pub seen: Seen,
    /// Whether the machine has other users, and only namespaces are ours.
    pub shared: bool,
    /// What a refused call may end with: the kernel has its own ideas in places.
    pub refusals: &'static [i32],
    /// What the events give as the reason: one of these with `|`, any if empty.
    pub reasons: &'static str,
}

impl Stage<'_> {
    /// The daemon, with this bundle in force.
    pub fn on(&mut self, bundle: &Bundle) -> Result<&mut Daemon> {
        self.scene.on(bundle)
    }

    /// The daemon, with the bundle that most attacks are tried under.
    pub fn standard(&mut self) -> Result<&mut Daemon> {
        let bundle = standard_bundle()?;
        self.scene.on(&bundle)
    }

    /// For what would disturb others on a machine that is not ours alone.
    pub fn alone(&self) -> Result<()> {
        if self.shared {
            bail!(Skipped("it would change the whole machine".to_owned()));
        }
        Ok(())
    }

    /// Frames with the payload that reached the world outside.
    pub fn frames(&mut self) -> Result<Frames> {
        self.scene.outside.frames()
    }

    /// The same, once what was sent before has arrived.
    fn settled_frames(&mut self) -> Result<Frames> {
        let mut frames = self.frames()?;
        loop {
            thread::sleep(SETTLED);
            let now = self.frames()?;
            if now == frames {
                return Ok(frames);
            }
            frames = now;
        }
    }

    /// Whether frames arrived since, waiting for as long as it takes, or until none comes any more.
    pub fn arrived(&mut self, before: &Frames, hope: bool) -> Result<bool> {
        if !hope {
            thread::sleep(PATIENCE);
            return Ok(self.frames()? != *before);
        }
        let waited = wait_for("frames", || self.frames().ok().filter(|now| now != before));
        Ok(waited.is_ok())
    }

    /// Does the steps. All but the last must go well.
    pub fn act(&mut self, actor: &Actor, goal: Goal, steps: &[&str], hope: bool) -> Result<Tried> {
        let before = self.settled_frames()?;
        let outcome = actor.run(steps)?;
        let (last, others) = outcome
            .steps
            .split_last()
            .with_context(|| format!("{actor:?} said nothing: {}", check::summary(&outcome)))?;
        for step in others {
            ensure!(
                step.errno == 0,
                "`{}` ended with {}: {}",
                step.text,
                check::name(step.errno),
                check::summary(&outcome)
            );
        }
        let got = match goal {
            Goal::Read => last.errno == 0 && last.read > 0,
            Goal::Send => self.arrived(&before, hope && last.errno == 0)?,
            Goal::Tamper => last.errno == 0,
        };
        Ok(Tried {
            goal,
            got,
            errno: last.errno,
            pids: pids(&outcome),
            text: check::summary(&outcome),
        })
    }

    /// The harmless twin gets what it is after.
    pub fn twin(&mut self, actor: &Actor, goal: Goal, steps: &[&str]) -> Result<()> {
        let tried = self.act(actor, goal, steps, true)?;
        absent_here(&tried)?;
        ensure!(
            tried.got,
            "the harmless twin, {actor:?}, did not get what it was after: {}",
            tried.text
        );
        Ok(())
    }

    /// The attack comes to what is expected.
    pub fn attack(&mut self, actor: &Actor, goal: Goal, steps: &[&str]) -> Result<()> {
        let hope = !matches!(self.seen, Caught | CaughtOrTold(_));
        let tried = self.act(actor, goal, steps, hope)?;
        self.judge(&tried).with_context(|| format!("{actor:?}"))
    }

    /// The entitled program does something, and then another does the same: the first, the harmless twin, gets what it
    /// is after, the second comes to what is expected.
    pub fn twin_and_other(
        &mut self,
        mut act: impl FnMut(&mut Self, &str) -> Result<Tried>,
    ) -> Result<()> {
        let twin = act(self, "entitled")?;
        ensure!(
            twin.got,
            "the harmless twin did not get what it was after: {}",
            twin.text
        );
        let tried = act(self, "other")?;
        self.judge(&tried)
    }

    /// Compares with what is expected.
    pub fn judge(&mut self, tried: &Tried) -> Result<()> {
        match self.seen {
            Caught | CaughtOrTold(_) => {
                ensure!(!tried.got, "it got through: {}", tried.text);
                ensure!(
                    tried.goal == Goal::Send || self.refusals.contains(&tried.errno),
                    "it ended with {}, expected EPERM: {}",
                    check::name(tried.errno),
                    tried.text
                );
                self.denial(tried.goal.kind(), &tried.pids)
                    .with_context(|| tried.text.clone())?;
            }
            NotCaught(_) => ensure!(
                tried.got,
                "it is not caught here, so it should have got through; better than expected? {}",
                tried.text
            ),
            NotRun(why) => bail!("{why}, and yet it was run: {}", tried.text),
        }
        Ok(())
    }

    /// Waits for the event of a refusal to one of these processes.
    pub fn denial(&mut self, kind: &str, pids: &[u32]) -> Result<Event> {
        let reasons = self.reasons;
        let events = self.scene.daemon()?.events.clone();
        let matches = |event: &Event| {
            event.is_denial()
                && event.kind() == kind
                && pids.iter().any(|pid| u64::from(*pid) == event.pid())
                && (reasons.is_empty() || reasons.split('|').any(|reason| event.reason() == reason))
        };
        wait_for("an event", || events.find(matches)).with_context(|| {
            let all: Vec<_> = pids.iter().flat_map(|pid| events.of(*pid)).collect();
            let all: Vec<_> = all.iter().map(|event| event.0.to_string()).collect();
            format!("no {kind} denied to {pids:?} for {reasons:?}; their events are {all:?}")
        })
    }

    /// A holder is still held to its destinations.
    pub fn holds_to_account(&mut self) -> Result<()> {
        let steps = [
            (READ, Expect::Allowed),
            (SEND, Expect::Refused("outside-destination")),
        ];
        self.scene.check(&entitled(), &steps).map(drop)
    }

    /// All of these must go well.
    pub fn works(&mut self, actor: &Actor, steps: &[&str]) -> Result<Outcome> {
        let outcome = actor.run(steps)?;
        let failed = outcome.steps.iter().find(|step| step.errno != 0);
        ensure!(
            failed.is_none() && outcome.steps.len() >= steps.len(),
            "{actor:?} failed: {}",
            check::summary(&outcome)
        );
        Ok(outcome)
    }

    /// Reading: allowed to the entitled program, refused to its twin.
    pub fn reads(&mut self, steps: &[&str]) -> Result<()> {
        self.standard()?;
        self.reads_as_is(steps)
    }

    /// The same under the bundle in force.
    pub fn reads_as_is(&mut self, steps: &[&str]) -> Result<()> {
        self.twin(&entitled(), Goal::Read, steps)?;
        self.attack(&other(), Goal::Read, steps)
    }

    /// Each of these by itself.
    pub fn each_reads(&mut self, steps: &[&str]) -> Result<()> {
        steps.iter().try_for_each(|step| self.reads(&[step]))
    }

    /// The same as root.
    pub fn root_reads(&mut self, steps: &[&str]) -> Result<()> {
        self.standard()?;
        self.twin(&root("entitled"), Goal::Read, steps)?;
        self.attack(&root("other"), Goal::Read, steps)
    }

    /// Sending where no holder may: allowed to who has not read, refused to who has between `before` and `after`.
    pub fn sends(&mut self, before: &[&str], after: &[&str]) -> Result<()> {
        self.sends_as(&entitled(), before, after)
    }

    /// The same as root.
    pub fn root_sends(&mut self, before: &[&str], after: &[&str]) -> Result<()> {
        self.sends_as(&root("entitled"), before, after)
    }

    /// The same as anybody entitled.
    pub fn sends_as(&mut self, actor: &Actor, before: &[&str], after: &[&str]) -> Result<()> {
        self.standard()?;
        self.twin(actor, Goal::Send, &[before, after].concat())?;
        self.attack(actor, Goal::Send, &[before, &[READ], after].concat())
    }

    /// And the same to where a holder may is allowed to one.
    pub fn sends_home(&mut self, before: &[&str], after: &[&str]) -> Result<()> {
        self.sends(before, after)?;
        let at_home: Vec<String> = [before, &[READ], after].concat().iter().map(home).collect();
        let steps: Vec<&str> = at_home.iter().map(String::as_str).collect();
        self.twin(&entitled(), Goal::Send, &steps)
            .context("to where a holder may")
    }

    /// Each of these ways, to where no holder may and to where one may.
    pub fn ways(&mut self, ways: &[&str]) -> Result<()> {
        ways.iter().try_for_each(|way| self.sends_home(&[], &[way]))
    }

    /// One listens with its last step, and another tries to tell it something.
    pub fn relayed(
        &mut self,
        (listener, listening): (&Actor, &[&str]),
        (teller, telling): (&Actor, &[&str]),
    ) -> Result<Tried> {
        let mut server = listener.start(listening)?;
        server.until("serving")?;
        let outcome = teller.run(telling)?;
        let last = outcome.last()?;
        let got = last.errno == 0 && {
            let heard = server.finish()?;
            heard.last()?.read > 0
        };
        Ok(Tried {
            goal: Goal::Send,
            got,
            errno: last.errno,
            pids: pids(&outcome),
            text: check::summary(&outcome),
        })
    }

    /// What came of steps whose last one sends, begun when these frames had arrived. With `hope` that it arrives, that
    /// is waited for.
    pub fn sent(&mut self, before: &Frames, hope: bool, outcome: &Outcome) -> Result<Tried> {
        Ok(Tried {
            goal: Goal::Send,
            got: self.arrived(before, hope)?,
            errno: outcome.last()?.errno,
            pids: pids(outcome),
            text: check::summary(outcome),
        })
    }

    /// A holder tells somebody of another workload something; so does, as the twin, who holds nothing.
    pub fn tells(&mut self, listening: &[&str], telling: &str) -> Result<()> {
        let twin = self.relayed((&root("other"), listening), (&root("entitled"), &[telling]))?;
        absent_here(&twin)?;
        ensure!(twin.got, "the harmless twin was not heard: {}", twin.text);
        let holder = [READ, telling];
        let tried = self.relayed((&root("other"), listening), (&root("entitled"), &holder))?;
        self.judge(&tried)
    }

    /// An actor that did these steps and waits.
    pub fn waiting(&mut self, actor: &Actor, steps: &[&str], then: &[&str]) -> Result<Waiting> {
        let mut running = actor.start([steps, &["pause"], then].concat())?;
        // A daemon may come or go in the meantime, which takes long on older kernels.
        running.patiently(Duration::from_secs(180));
        running.until("paused")?;
        let failed = running.said().iter().find(|step| step.errno != 0);
        ensure!(failed.is_none(), "an actor that waits failed: {failed:?}");
        Ok(Waiting { running })
    }

    /// A unit with the name that the standard bundle entitles to `unit-key`.
    pub fn app_unit(&self) -> Result<Cgroup> {
        Cgroup::unit("app.service")
    }
}

/// An actor that waits to be told to go on.
pub struct Waiting {
    running: Running,
}

impl Waiting {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it said in a step, as a number.
    pub fn said(&self, verb: &str, field: &str) -> Result<u64> {
        let step: Option<&Step> =
            self.running.said().iter().find(|step| {
                step.text.split(' ').next() == Some(verb) && !step.more[field].is_null()
            });
        Ok(step
            .with_context(|| format!("it never said `{field}` in `{verb}`"))?
            .count(field))
    }

    /// Lets it do the rest.
    pub fn go_on(mut self) -> Result<Outcome> {
        self.running.go_on()?;
        self.running.finish()
    }
}

/// What the kernel does not have cannot be attacked by.
pub fn absent_here(tried: &Tried) -> Result<()> {
    const ABSENT: [i32; 4] = [
        libc::EAFNOSUPPORT,
        libc::EPROTONOSUPPORT,
        libc::ESOCKTNOSUPPORT,
        libc::ENOSYS,
    ];
    if ABSENT.contains(&tried.errno) {
        bail!(Skipped(format!("this kernel cannot: {}", tried.text)));
    }
    Ok(())
}

/// A name that goes when dropped.
pub struct Temporary(String);

impl Temporary {
    /// A second name of a file.
    pub fn link(from: &str, to: &str) -> Result<Self> {
        fs::hard_link(from, to).with_context(|| format!("cannot link {to}"))?;
        Ok(Self(to.to_owned()))
    }

    /// A new file or link that somebody else makes.
    pub fn made(path: &str, make: impl FnOnce(&str) -> std::io::Result<()>) -> Result<Self> {
        make(path).with_context(|| format!("cannot make {path}"))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed or removed is as good.
        let _ = fs::remove_file(&self.0);
    }
}

/// A mount that goes when dropped.
pub struct Mounted(String);

impl Mounted {
    /// Mounts with options.
    pub fn new(kind: &str, source: &str, place: &str, options: &str) -> Result<Self> {
        fs::create_dir_all(place)?;
        let options = Some(options).filter(|text| !text.is_empty());
        mount::mount(Some(source), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("cannot mount {kind} at {place}"))?;
        Ok(Self(place.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = mount::umount2(self.0.as_str(), MntFlags::MNT_DETACH) {
            eprintln!("enforcer-tests: cannot unmount {}: {error}", self.0);
        }
    }
}

/// The same step to where holders may go.
fn home(step: &&str) -> String {
    step.replace("10.20.0.66", "10.20.0.2")
        .replace("fd20::66", "fd20::2")
}

/// Files that are there before any daemon.
pub fn make_files() -> Result<()> {
    for (name, text) in [
        ("vault/key", "the secret itself\n"),
        // Whoever runs it does nothing, but somebody has read it.
        ("vault/script", "#!/bin/true\n"),
        ("plain", "the secret that nobody named\n"),
        ("nil", "nothing of interest\n"),
        ("place", ""),
    ] {
        write(format!("{FILES}/{name}"), text)?;
    }
    fs::set_permissions(
        format!("{FILES}/vault/script"),
        fs::Permissions::from_mode(0o755),
    )?;
    Ok(())
}

/// The bundle after `key` was taken away from the program.
pub fn revoked_bundle() -> Bundle {
    Bundle::default()
        .file("key", "/srv/t/key")
        .file("second-key", "/srv/t/second-key")
        .workload("app", "executable: {path: /opt/t/entitled}")
        .entitlement("E2", "app", "second-key", standard::DESTINATIONS)
}

/// The cases' bundle, and a directory with things for attacks only.
pub fn standard_bundle() -> Result<Bundle> {
    Ok(standard::bundle()?
        .credential("id: vault, sources: [{directory: /srv/t/vault}]")
        .entitlement("E-vault", "app", "vault", standard::DESTINATIONS))
}
